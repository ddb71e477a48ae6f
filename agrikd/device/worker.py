"""The process that holds the model: python -m agrikd.device.worker FOLDER FILE ENGINES [live].

Whatever a model does to it, the agent lives on. It says {"ready": …} when it can answer, then answers what it hears on
stdin: {"probe": rounds} with the logits of the release's probes and the time of a frame, {"predict": [fd, height,
width]} with what it says of the pixels in that file.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import errors, files
from agrikd.bundle import Release
from agrikd.device import probes
from agrikd.device.tether import die_with_parent
from agrikd.dsse import Envelope
from agrikd.predict import open_predictor
from agrikd.predict._base import Predictor
from agrikd.records import Opinion
from agrikd.types import Image
from agrikd.wire import Wire, WireError


def main(folder: Path, file: str, engines: Path, live: bool) -> int:
    """Answer until stdin ends. live: at once, by ONNX Runtime while an engine is built, as after a new TensorRT."""
    die_with_parent()
    wire = Wire(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # TensorRT prints its warnings to stdout, where they would break the frames
    try:
        photos = _probes(folder)
        predictor = open_predictor(folder / file, cache=engines, wait=not live)
        wire.say(ready=predictor.backend, spec=predictor.spec.to_json())
        eyes = Eyes(predictor)
        while True:
            asked = wire.hear()
            if "predict" in asked:
                wire.say(said=eyes.look(*map(int, asked["predict"])))
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


def _probes(folder: Path) -> list[Image]:
    """Of a release; another model has none."""
    if not (folder / "release.dsse").exists():
        return []
    payload = Envelope.from_bytes(files.read_bytes(folder / "release.dsse"), str(folder)).payload
    return probes.photos(folder, Release.from_payload(payload, str(folder)))


def _probe(predictor: Predictor, photos: list[Image], rounds: int) -> dict[str, Any]:
    times = []
    for _ in range(rounds):
        for photo in photos:
            begun = time.perf_counter()
            predictor([photo])
            times.append(1000 * (time.perf_counter() - begun))
    logits = [one.logits.astype(float).tolist() for one in predictor(photos)]
    return {"logits": logits, "p50_ms": float(np.median(times)), "backend": predictor.backend}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:] == ["live"]))
