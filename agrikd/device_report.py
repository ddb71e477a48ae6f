"""What a board makes of exported models, as one JSON to send back: the only honest row of a table "tested on".

Made for the first person with a Jetson: they run one verb, and what it writes becomes a fixture here.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import console, files
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.trt import TrtPredictor
from agrikd.types import Image, Prediction

FORMAT = 1
_THERMAL, _CLOCKS = Path("/sys/class/thermal"), Path("/sys/class/devfreq")
_MEMORY = Path("/proc/meminfo")
_HELD = 8
"""Photos in memory while frames are timed."""


def report(
    models: Sequence[Path], photos: Sequence[Image], minutes: float, cache: Path | None = None
) -> dict[str, Any]:
    """Build, compare and time each model; `minutes` of frames are shared by them.

    Each model's answers are held against ONNX Runtime's on the CPU of the same board, from the same file.
    """
    return {
        "format": FORMAT,
        "agrikd": version("agrikd"),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "board": board(),
        "models": [_model(path, photos, 60 * minutes / len(models), cache) for path in models],
    }


def board() -> dict[str, Any]:
    """What there is to read of the machine; empty where it does not say."""
    memory = [line.split()[1] for line in lines_of(_MEMORY) if line.startswith("MemTotal:")]
    return {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memory_mib": int(memory[0]) // 1024 if memory else None,
        "power_mode": _said("nvpmodel", "-q"),
        "jetson_clocks": _said("jetson_clocks", "--show"),
        "jetpack": _said("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"),
    }


def _model(path: Path, photos: Sequence[Image], seconds: float, cache: Path | None) -> dict[str, Any]:
    predictor, reference = TrtPredictor(path, cache), OrtPredictor(path)
    console.say(f"{path.name}: {predictor.backend}")
    predictor.wait()
    said = predictor(photos)
    build = predictor.built
    found = {
        "file": path.name,
        "sha256": files.sha256(path.read_bytes()),
        "precision": reference.precision,
        "backend": predictor.backend,
        "key": vars(predictor.key) if predictor.key else None,
        "build": build and {"seconds": build.took_s, "peak_mib": build.peak_mib, "failed": build.why},
        "parity": _parity(said, reference(photos)),
        **_latency(predictor, photos, seconds),
    }
    predictor.close()
    return found


def _parity(ours: Sequence[Prediction], theirs: Sequence[Prediction]) -> dict[str, Any]:
    a, b = (np.stack([one.logits for one in said]) for said in (ours, theirs))
    return {
        "photos": len(a),
        "max_logit": float(np.abs(a - b).max()),
        "flipped": int((a.argmax(1) != b.argmax(1)).sum()),
    }


def _latency(predictor: TrtPredictor, photos: Sequence[Image], seconds: float) -> dict[str, Any]:
    """Quantiles over all frames, and a line a minute with the temperatures and clocks at its end."""
    start, held = time.monotonic(), photos[:_HELD]  # reading them would leave the board idle between frames
    times: list[float] = []
    minutes: list[dict[str, Any]] = []
    while (now := time.monotonic() - start) < seconds or not times:
        begun = time.perf_counter()
        predictor([held[len(times) % len(held)]])
        times.append(1000 * (time.perf_counter() - begun))
        if now >= 60 * (len(minutes) + 1):
            minutes.append({"p50_ms": float(np.median(times[-1000:])), **state()})
            console.say(f"{predictor.spec.name}: minute {len(minutes)}, {minutes[-1]['p50_ms']:.2f} ms a frame")
    p50, p90, p99 = np.percentile(times, (50, 90, 99)).tolist()
    quantiles = {"frames": len(times), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
    return {"latency": quantiles, "over_time": [*minutes, {"p50_ms": float(np.median(times[-1000:])), **state()}]}


def state() -> dict[str, Any]:
    """Temperatures in °C by zone, and clocks in MHz by device, as the kernel says them now."""
    zones = {text_of(zone / "type"): text_of(zone / "temp") for zone in sorted(_THERMAL.glob("thermal_zone*"))}
    clocks = {found.name: text_of(found / "cur_freq") for found in sorted(_CLOCKS.glob("*"))}
    return {
        "celsius": {name: int(value) / 1000 for name, value in zones.items() if value.lstrip("-").isdecimal()},
        "mhz": {name: int(value) / 1e6 for name, value in clocks.items() if value.isdecimal()},
    }


def row(made: dict[str, Any]) -> str:
    """A line of the table "tested on" for each model."""
    own = made["board"]
    return "\n".join(
        f"| {(one['key'] or {}).get('module') or own['machine']} | {own['jetpack'] or '–'} | {one['backend']} "
        f"| {one['precision']} | {one['latency']['p50_ms']:.2f} / {one['latency']['p99_ms']:.2f} ms |"
        for one in made["models"]
    )


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def lines_of(path: Path) -> list[str]:
    """Of what the kernel says; none where it says nothing."""
    return text_of(path).splitlines()


def text_of(path: Path) -> str:
    """What the kernel says; empty where it says nothing."""
    try:
        return path.read_text().strip("\0\n ")
    except (OSError, ValueError):
        return ""
