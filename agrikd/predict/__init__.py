"""Predictors: uint8 photos in, `Prediction`s out, whatever runs the net."""

from __future__ import annotations

import importlib
from pathlib import Path

from agrikd.errors import InputError, Problem
from agrikd.predict._base import Doubt, Predictor
from agrikd.predict._engines import Limits


def open_predictor(
    path: Path,
    threads: int = 1,
    cache: Path | None = None,
    wait: bool = True,
    limits: Limits | None = None,
    doubt: Doubt | None = None,
) -> Predictor:
    """A Run folder (runs in torch) or an exported .onnx file (in TensorRT where it is installed, else ONNX Runtime).

    cache: the folder of TensorRT's engines. wait: until the engine is built or has failed, so that all answers come
    from one backend; else ONNX Runtime answers until then. limits: of a build. doubt: asked of each engine; one that
    is in doubt answers nothing, and ONNX Runtime all.
    """
    if path.suffix == ".onnx":
        return _exported(path, threads, cache, wait, limits, doubt)
    if path.is_dir():
        from agrikd.predict.torch import TorchPredictor

        return TorchPredictor.from_run(path)
    raise InputError(Problem(str(path), "is no model", "expected a Run folder or an .onnx file"))


def _exported(
    path: Path, threads: int, cache: Path | None, wait: bool, limits: Limits | None, doubt: Doubt | None
) -> Predictor:
    try:
        importlib.import_module("tensorrt")
    except (ImportError, OSError):
        from agrikd.predict.ort import OrtPredictor

        return OrtPredictor(path, threads)
    from agrikd.predict.trt import TrtPredictor

    predictor = TrtPredictor(path, cache, limits, threads, doubt)
    if wait:
        predictor.wait()
    return predictor
