"""How long a photo takes on this machine: all the way from a camera's frame, beside the net alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import console
from agrikd.image import opencv
from agrikd.predict import open_predictor
from agrikd.predict._base import Predictor
from agrikd.predict.ort import OrtPredictor, as_input
from agrikd.types import Image

_TURN = 10
"""Frames in a row, as a camera gives them to one model; the first finds the caches as another left them."""
FRAME = (480, 640)
"""Of a usual field camera: (height, width), pixels."""


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


def bench(
    paths: Sequence[Path], threads: Sequence[int], frames: int = 200, frame: tuple[int, int] = FRAME
) -> list[Latency]:
    """Every model at every number of threads, ten frames a turn, so that what else the machine does hits all alike.

    `frames` are brought to whole turns; the first turn does not count, and who comes next is drawn by lot. The frames
    are noise of `frame` (height, width): what is on them does not change the time. OpenCV has one thread, as in a
    device's agent.
    """
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 256, (*frame, 3)).astype(np.uint8) for _ in range(4)]
    ways = [_Way(path, count) for path in paths for count in threads]
    works = [(way, name) for way in ways for name in way.works]
    turns = 1 + -(-frames // _TURN)
    with _one_opencv_thread(), console.job("bench", turns) as advance:
        for turn in range(turns):
            for one in rng.permutation(len(works)):
                way, name = works[one]
                way.take(name, [shown[number % len(shown)] for number in range(_TURN)], keep=turn > 0)
            advance(turn + 1)
    return [way.latency() for way in ways]


class _Way:
    """A model at a number of threads, and its times."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.predictor: Predictor = open_predictor(path, threads)
        ready = as_input(np.zeros((*self.predictor.spec.input_size, 3), np.uint8), self.predictor.spec)
        self.works: dict[str, Callable[[Image], object]] = {"whole": self._whole}
        if isinstance(self.predictor, OrtPredictor):
            run = self.predictor.run
            self.works["bare"] = lambda _: run(ready)
        if rival := _openvino(path, threads):
            self.works["openvino"] = lambda _: rival(ready)
        self.took: dict[str, list[float]] = {name: [] for name in self.works}

    def take(self, name: str, frames: Sequence[Image], keep: bool) -> None:
        if self.predictor.backend == "torch":
            _set_torch_threads(self.threads)
        took = [_milliseconds(partial(self.works[name], frame)) for frame in frames]
        self.took[name] += took if keep else []

    def latency(self) -> Latency:
        p50, p90, p99 = np.percentile(self.took["whole"], (50, 90, 99)).tolist()
        name = f"{self.path.parent.name}/{self.path.name}" if self.path.suffix == ".onnx" else self.path.name
        medians = (float(np.median(self.took[one])) if one in self.took else None for one in ("bare", "openvino"))
        count = len(self.took["whole"])
        return Latency(name, self.predictor.backend, self.threads, count, p50, p90, p99, *medians)

    def _whole(self, frame: Image) -> object:
        cv2 = opencv()
        return self.predictor([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)])


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    cv2 = opencv()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


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


def _set_torch_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)
