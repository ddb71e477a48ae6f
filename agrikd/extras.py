"""Which extra brings which module: what each kind of work imports beyond the base install."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from agrikd.errors import MissingExtraError

LAB = dict.fromkeys(("torch", "timm", "albumentations", "cv2", "safetensors"), "train")
REPORT = dict.fromkeys(("matplotlib", "jinja2"), "train")
EXPORT = dict.fromkeys(("onnx", "onnxruntime"), "export")
CHECK = dict.fromkeys(("sklearn", "cleanlab", "PIL"), "check")
AGENT = dict.fromkeys(("cv2", "onnxruntime", "cryptography", "fastapi", "uvicorn", "websockets"), "agent")
APP = dict.fromkeys(("streamlit", "authlib", "argon2", "itsdangerous"), "app")
SERVE = dict.fromkeys(("fastapi", "uvicorn", "sqlalchemy", "psycopg", "cv2"), "serve")
WHEELHOUSE = {"packaging": "export"}
_ALL = {**SERVE, **APP, **AGENT, **CHECK, **EXPORT, **REPORT, **LAB}
"""Each module once: what more than one extra brings is the lab's first."""


def missing(needs: Mapping[str, str]) -> dict[str, str]:
    """Of these modules, with the extra that brings each, those that are not installed."""
    return {module: extra for module, extra in needs.items() if importlib.util.find_spec(module) is None}


def require(needs: Mapping[str, str]) -> None:
    """Raises `MissingExtraError` with the first that is not installed."""
    for module, extra in missing(needs).items():
        raise MissingExtraError(module, extra)


def of(error: ModuleNotFoundError) -> MissingExtraError | None:
    """What an import that failed means to a person; None where no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    return MissingExtraError(module, _ALL[module]) if module in _ALL else None
