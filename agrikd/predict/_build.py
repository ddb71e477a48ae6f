"""Builds a TensorRT engine, in a process of its own: python -m agrikd.predict._build JSON.

A build may need more memory than a small Jetson has, and the system then kills who asked for it: this process, not the
one that answers. It says on stdout, a line of JSON each, how far it is ({"progress": …}) and why it failed
({"error": …}); a finished engine and the timing cache are written whole.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrikd import files

POLICY = 1
"""Changes with whatever below changes the engine that is built; it is part of the engines' key."""
_STRONGLY_TYPED = (10, 12)
"""The first release in which NVIDIA calls strong typing complete; TensorRT 11 knows nothing else."""
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
    for name in asked.builder:
        config.set_flag(getattr(trt.BuilderFlag, name))
    cache = config.create_timing_cache(timing)
    config.set_timing_cache(cache, False)
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("the builder gave no engine; its own words stand above")
    cache = config.get_timing_cache()
    return bytes(plan), bytes(cache.serialize())


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
    print(json.dumps(what), flush=True)


def main(asked: dict[str, Any]) -> int:
    """asked: onnx, precision, engine and timing (paths). 0, or 1 with an {"error": …} said."""
    _give_way()
    tensorrt = importlib.import_module("tensorrt")
    timing = Path(asked["timing"])
    known = timing.read_bytes() if timing.exists() else b""
    try:
        plan, cache = build(tensorrt, Path(asked["onnx"]).read_bytes(), asked["precision"], known)
    except ValueError as error:
        say(error=str(error))
        return 1
    files.write_bytes(timing, cache)
    files.write_bytes(Path(asked["engine"]), plan)
    return 0


def _give_way() -> None:
    """What answers comes first, and what builds dies first where memory ends."""
    os.nice(10)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
