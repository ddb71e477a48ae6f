"""How long a photo takes on this machine: all the way from a camera's frame, beside the net alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import console
from agrikd.image import opencv
from agrikd.predict import open_predictor
from agrikd.predict._base import Predictor
from agrikd.predict.ort import OrtPredictor, as_input
from agrikd.types import Image

_WARM_UP = 10
FRAME = (720, 1280)
"""Of a usual camera: (height, width)."""


@dataclass(frozen=True)
class Latency:
    """Of one model, in milliseconds a frame, one frame at a time.

    p50, p90, p99: from a BGR frame to the prediction. bare: p50 of the session alone on a picture that is ready; None
    where the backend does not show it. openvino: of the same file in OpenVINO, None where that is not installed.
    threads: of the backend.
    """

    model: str
    backend: str
    threads: int
    frames: int
    p50: float
    p90: float
    p99: float
    bare: float | None
    openvino: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(paths: Sequence[Path], threads: Sequence[int], frames: int = 200) -> list[Latency]:
    """Every model at every number of threads, a frame each in turn, so that what else the machine does hits all alike.

    The frames are noise of `FRAME`: what is on them does not change the time.
    """
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 256, (*FRAME, 3)).astype(np.uint8) for _ in range(4)]
    ways = [_Way(path, count) for path in paths for count in threads]
    with console.job("bench", frames + _WARM_UP) as advance:
        for number in range(frames + _WARM_UP):
            for way in ways:
                way.take(shown[number % len(shown)], keep=number >= _WARM_UP)
            advance(number + 1)
    return [way.latency() for way in ways]


class _Way:
    """A model at a number of threads, and its times."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.predictor: Predictor = open_predictor(path, threads)
        self.rival = _openvino(path, threads)
        self.whole: list[float] = []
        self.alone: list[float] = []
        self.rivals: list[float] = []

    def take(self, frame: Image, keep: bool) -> None:
        set_threads = _torch_threads() if self.predictor.backend == "torch" else lambda count: None
        set_threads(self.threads)
        cv2 = opencv()
        whole = _milliseconds(lambda: self.predictor([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)]))
        ready = as_input(np.zeros((*self.predictor.spec.input_size, 3), np.uint8), self.predictor.spec)
        run, rival = self.predictor.run if isinstance(self.predictor, OrtPredictor) else None, self.rival
        alone = _milliseconds(lambda: run(ready)) if run else None
        beside = _milliseconds(lambda: rival(ready)) if rival else None
        if keep:
            self.whole.append(whole)
            self.alone += [] if alone is None else [alone]
            self.rivals += [] if beside is None else [beside]

    def latency(self) -> Latency:
        p50, p90, p99 = np.percentile(self.whole, (50, 90, 99)).tolist()
        name = f"{self.path.parent.name}/{self.path.name}" if self.path.suffix == ".onnx" else self.path.name
        medians = (float(np.median(found)) if found else None for found in (self.alone, self.rivals))
        return Latency(name, self.predictor.backend, self.threads, len(self.whole), p50, p90, p99, *medians)


def _openvino(path: Path, threads: int) -> Callable[[Any], object] | None:
    """The file in OpenVINO, which measures what ONNX Runtime leaves on the table; None for what it is not made of."""
    try:
        import openvino
    except ImportError:
        return None
    if path.suffix != ".onnx":
        return None
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    return lambda picture: request.infer([picture])


def _torch_threads() -> Callable[[int], object]:
    import torch

    return torch.set_num_threads


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)
