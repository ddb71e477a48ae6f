"""The process that holds the model: python -m agrikd.device.worker FOLDER FILE ENGINES UNTIL [live].

Whatever a model does to it, the agent lives on. It says {"ready": …} when it can answer, then answers what it hears on
stdin: {"probe": rounds} with the logits of the release's probes and the time of a frame, {"predict": [fd, height,
width]} with what it says of the pixels in that file; both say what answered.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import errors, files
from agrikd.bundle import Release
from agrikd.device import probes
from agrikd.device.tether import die_with_parent
from agrikd.dsse import Envelope
from agrikd.predict import open_predictor
from agrikd.predict._base import Doubt, Predictor
from agrikd.predict._engines import Limits
from agrikd.records import Opinion
from agrikd.types import Image
from agrikd.wire import Wire, WireError

_PROBING_S = 20.0
"""After which no round of probes begins."""


def main(folder: Path, file: str, engines: Path, until: float, live: bool) -> int:
    """Answer until stdin ends. until: by the monotonic clock, when a build has failed. live: at once, by ONNX Runtime
    while an engine is built, as after a new TensorRT; it answers where it passes the probes, as another one did when
    this was installed."""
    die_with_parent()
    wire = Wire(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # TensorRT prints its warnings to stdout, where they would break the frames
    try:
        release = _release(folder)
        photos = probes.photos(folder, release) if release else []
        doubt = _doubt(folder, file, release, photos) if release and live else None
        limits = Limits(seconds=until - time.monotonic())
        predictor = open_predictor(folder / file, cache=engines, wait=not live, limits=limits, doubt=doubt)
        wire.say(ready=predictor.backend, spec=predictor.spec.to_json())
        eyes = Eyes(predictor)
        while True:
            asked = wire.hear()
            if "predict" in asked:
                wire.say(said=eyes.look(*map(int, asked["predict"])), backend=predictor.backend)
            else:
                wire.say(**_probe(predictor, photos, int(asked["probe"])))
    except WireError:
        return 0
    except (errors.AgriKDError, ValueError) as error:  # numbers that are not finite are a ValueError
        wire.say(failed=str(error))
        return 1


class Eyes:
    """A model that looks into files of pixels, which others fill."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._maps: dict[int, mmap.mmap] = {}

    def look(self, pixels: int, height: int, width: int) -> dict[str, Any]:
        """What it says of the picture [H, W, 3] in a file, as of an `Opinion`."""
        if pixels not in self._maps:
            self._maps[pixels] = mmap.mmap(pixels, 0, prot=mmap.PROT_READ)
        photo = np.frombuffer(self._maps[pixels], np.uint8, height * width * 3).reshape(height, width, 3)
        begun = time.perf_counter()
        (said,) = self._predictor([photo])
        taken_ms = 1000 * (time.perf_counter() - begun)
        return asdict(Opinion.of(said, model="", role="student", t=0.0, latency_ms=taken_ms))


def _release(folder: Path) -> Release | None:
    """Another model is of none."""
    if not (folder / "release.dsse").exists():
        return None
    payload = Envelope.from_bytes(files.read_bytes(folder / "release.dsse"), str(folder)).payload
    return Release.from_payload(payload, str(folder))


def _doubt(folder: Path, file: str, release: Release, photos: list[Image]) -> Doubt:
    """The installation's, but of how fast it is: beside others at work nobody can tell."""
    artefact = next(one for one in release.artefacts if one.file == file)

    def why_not(logits: Callable[[Image], NDArray[np.float32]]) -> str:
        said = probes.Answer([logits(one).astype(float).tolist() for one in photos], 0.0, "")
        return probes.why_not(said, folder, release, artefact, math.inf)

    return why_not


def _probe(predictor: Predictor, photos: list[Image], rounds: int) -> dict[str, Any]:
    """Of a model so slow that the rounds would outlast who waits for them, fewer."""
    times: list[float] = []
    logits: list[list[float]] = []
    while len(times) < rounds * len(photos) and sum(times) < 1000 * _PROBING_S:
        logits = []
        for photo in photos:
            begun = time.perf_counter()
            (said,) = predictor([photo])
            times.append(1000 * (time.perf_counter() - begun))
            logits.append(said.logits.astype(float).tolist())
    return {"logits": logits, "p50_ms": float(np.median(times)), "backend": predictor.backend}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), sys.argv[5:] == ["live"]))
