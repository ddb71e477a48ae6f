"""The process that holds the model: python -m agrikd.device.worker FOLDER FILE ENGINES [live].

Whatever a model does to it, the agent lives on. It says {"ready": …} when it can answer, then answers what it hears on
stdin: {"probe": rounds} with the logits of the release's probes and the time of a frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import errors, files
from agrikd.bundle import Release
from agrikd.device import probes
from agrikd.dsse import Envelope
from agrikd.predict import open_predictor
from agrikd.predict._base import Predictor
from agrikd.types import Image
from agrikd.wire import Wire, WireError

_PR_SET_PDEATHSIG = 1


def main(folder: Path, file: str, engines: Path, live: bool) -> int:
    """Answer until stdin ends. live: at once, by ONNX Runtime while an engine is built, as after a new TensorRT."""
    _die_with_the_agent()
    wire = Wire(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # TensorRT prints its warnings to stdout, where they would break the frames
    try:
        payload = Envelope.from_bytes(files.read_bytes(folder / "release.dsse"), str(folder)).payload
        photos = probes.photos(folder, Release.from_payload(payload, str(folder)))
        predictor = open_predictor(folder / file, cache=engines, wait=not live)
        wire.say(ready=predictor.backend)
        while True:
            asked = wire.hear()
            wire.say(**_probe(predictor, photos, int(asked["probe"])))
    except WireError:
        return 0
    except (errors.AgriKDError, ValueError) as error:  # numbers that are not finite are a ValueError
        wire.say(failed=str(error))
        return 1


def _die_with_the_agent() -> None:
    """A model that hangs would not notice that nobody asks any more."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
