"""Builds a TensorRT engine, in a process of its own: python -m agrikd.predict._build JSON.

A build may need more memory than a small Jetson has, and the system then kills who asked for it: this process, not the
one that answers. It says on stdout, a line of JSON each, how far it is ({"progress": …}), why it failed
({"error": …}) and what memory it took ({"peak_mib": …}); a finished engine and the timing cache are written whole.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrikd import files
from agrikd.errors import StorageError
from agrikd.predict._engines import EngineCache, EngineKey, peak_mib

POLICY = 2
"""Changes with whatever below changes the engine that is built; it is part of the engines' key."""
_STRONGLY_TYPED = (10, 12)
"""The first release in which NVIDIA calls strong typing complete; TensorRT 11 knows nothing else."""
_GRACE_S = 10.0
"""Who watches a build ends it first, with a reason."""
WORKSPACE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Policy:
    """How a release builds a precision: names of NetworkDefinitionCreationFlag and of BuilderFlag."""

    network: tuple[str, ...]
    builder: tuple[str, ...]


def policy(version: tuple[int, ...], precision: str) -> Policy:
    """From 10.12 on the graph's own types hold; before, flags allow the builder to use fewer bits."""
    if version >= _STRONGLY_TYPED:
        return Policy(("STRONGLY_TYPED",), ())
    flags: dict[str, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}
    if precision not in flags:
        raise ValueError(f"{precision} is for TensorRT {'.'.join(map(str, _STRONGLY_TYPED))} and later")
    return Policy(("EXPLICIT_BATCH",) if version < (10,) else (), flags[precision])


def version_of(trt: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in trt.__version__.split(".")[:3] if part.isdecimal())


def build(trt: Any, onnx: bytes, precision: str, timing: bytes) -> tuple[bytes, bytes]:
    """(the engine, the timing cache); raises `ValueError` with what the parser or the builder said."""
    logger, asked = _logger(trt), policy(version_of(trt), precision)
    builder = trt.Builder(logger)
    network = builder.create_network(_bits(trt.NetworkDefinitionCreationFlag, asked.network))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        said = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        raise ValueError(f"the parser refuses the graph: {'; '.join(said) or 'it does not say why'}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default, and multiplies FP32 with ten bits
    for name in asked.builder:
        config.set_flag(getattr(trt.BuilderFlag, name))
    measured = config.create_timing_cache(timing)
    if measured is None or not config.set_timing_cache(measured, False):  # of another driver, or damaged
        measured = config.create_timing_cache(b"")
        config.set_timing_cache(measured, False)
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("the builder gave no engine; its own words stand above")
    measured = config.get_timing_cache()
    return bytes(plan), bytes(measured.serialize()) if measured is not None else b""


def _bits(flags: Any, names: tuple[str, ...]) -> int:
    return sum(1 << int(getattr(flags, name)) for name in names)


def _logger(trt: Any) -> Any:
    return trt.Logger(trt.Logger.WARNING)


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Says each finished step of the outermost phase."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                say(progress=(step + 1) / max(self.steps[phase_name], 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def say(**what: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked may be gone; the engine is of use all the same
        print(json.dumps(what), flush=True)


def main(asked: dict[str, Any]) -> int:
    """asked: onnx and folder (paths), key (an `EngineKey`'s fields), seconds. 0, or 1 with an {"error": …} said."""
    key = EngineKey(**{**asked["key"], "shape": tuple(asked["key"]["shape"])})
    _give_way(float(asked["seconds"]))
    cache = EngineCache(Path(asked["folder"]))
    with cache.building(key):
        if cache.find(key) is not None:  # another process has built it meanwhile
            return 0
        try:
            _build_into(cache, key, Path(asked["onnx"]).read_bytes())
        except (ValueError, OSError, StorageError) as error:
            say(error=str(error))
            return 1
        finally:
            say(peak_mib=peak_mib())  # a short build ends between two looks of who watches it
    return 0


def _build_into(cache: EngineCache, key: EngineKey, onnx: bytes) -> None:
    if files.sha256(onnx) != key.artefact:
        raise ValueError("the .onnx file was replaced while its engine was to be built")
    timing = cache.timing(key)
    known = timing.read_bytes() if timing.exists() else b""
    plan, measured = build(importlib.import_module("tensorrt"), onnx, key.precision, known)
    cache.keep(key, plan)
    with contextlib.suppress(StorageError):  # it only makes the next build faster
        files.write_bytes(timing, measured)


def _give_way(seconds: float) -> None:
    """What answers comes first; what builds dies first where memory ends, and at its time if nobody watches it."""
    os.nice(10)
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_S)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
