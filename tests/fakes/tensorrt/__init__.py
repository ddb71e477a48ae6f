"""TensorRT as far as agrikd uses it, computing in ONNX Runtime on the memory of tests/fakes/cudart.c.

An engine is the ONNX file behind a line that says for which version and GPU it was built; like the real one it loads
nowhere else, and then says so in the log and gives None. $AGRIKD_FAKE_TRT is JSON: version, sm, and what is to go
wrong: parse (errors), build_none, load_none, run_false, killed, hangs (seconds a build takes), memory_mib, off (what is
added to logits).
The contract tests hold its names against those of NVIDIA's own classes.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import sys
import time
from typing import Any

import numpy as np

_ASKED = json.loads(os.environ.get("AGRIKD_FAKE_TRT", "{}"))
__version__ = _ASKED.get("version", "10.3.0")
_VERSION = tuple(int(part) for part in __version__.split(".")[:2])
float32 = "float32"


def _own() -> dict[str, Any]:
    return {"tensorrt": __version__, "sm": os.environ.get("AGRIKD_FAKE_SM", "8.7")}


class Logger:
    WARNING = 2

    def __init__(self, min_severity: int = WARNING) -> None:
        self.min_severity = min_severity


_TYPED, _EXPLICIT = {"STRONGLY_TYPED": 1}, {"EXPLICIT_BATCH": 0}
_CREATION = _EXPLICIT if _VERSION < (10, 0) else _TYPED if _VERSION >= (11, 0) else {**_EXPLICIT, **_TYPED}
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", _CREATION)
BuilderFlag = enum.Enum("BuilderFlag", ["TF32"] if _VERSION >= (11, 0) else ["FP16", "INT8", "TF32"])


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


if _VERSION >= (10, 0):

    class IProgressMonitor:
        """Its subclasses are told how far a build is."""


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags, self.onnx = flags, b""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Logger) -> None:
        self._network, self._errors = network, list(_ASKED.get("parse", []))

    def parse(self, model: bytes) -> bool:
        self._network.onnx = model
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return str(self._errors[index])


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+"


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: list[Any] = []
        self.cache = ITimingCache(b"")
        if _VERSION >= (10, 0):
            self.progress_monitor: Any = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert isinstance(pool, MemoryPoolType) and size > 0

    def set_flag(self, flag: Any) -> None:
        self.flags.append(BuilderFlag(flag))

    def clear_flag(self, flag: Any) -> None:
        BuilderFlag(flag)

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.data.startswith(b"damaged"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self.cache


class Builder:
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        if _ASKED.get("killed"):
            os.kill(os.getpid(), 9)
        hoard = bytearray(int(_ASKED.get("memory_mib", 0)) << 20)
        for place in range(0, len(hoard), 4096):
            hoard[place] = 1
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            monitor.step_complete("Building Engine", 0)
        time.sleep(float(_ASKED.get("hangs", 0)))
        if monitor is not None:
            monitor.step_complete("Building Engine", 1)
            monitor.phase_finish("Building Engine")
        if _ASKED.get("build_none"):
            print("[TRT] [E] IBuilder::buildSerializedNetwork: Error Code 10: Internal Error", flush=True)
            return None
        said = {**_own(), "flags": [flag.name for flag in config.flags], "network": network.flags}
        return json.dumps(said).encode() + b"\n" + network.onnx


class Runtime:
    def __init__(self, logger: Logger) -> None:
        if _ASKED.get("no_runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        head, _, onnx = serialized_engine.partition(b"\n")
        try:
            built = json.loads(head)
        except ValueError:
            built = {}
        if _ASKED.get("load_none") or any(built.get(name) != value for name, value in _own().items()):
            said = f"engine generated for {built.get('sm')} with {built.get('tensorrt')}, expecting {_own()}"
            print(f"[TRT] [E] {said}", file=sys.stderr)
            return None
        return ICudaEngine(onnx)


class ICudaEngine:
    def __init__(self, onnx: bytes) -> None:
        import onnxruntime as ort

        self._session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self._inputs = {one.name: tuple(one.shape) for one in self._session.get_inputs()}
        self._outputs = {one.name: tuple(one.shape) for one in self._session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {**self._inputs, **self._outputs}[name]

    def get_tensor_dtype(self, name: str) -> str:
        return float32

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._addresses = engine, {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if _ASKED.get("run_false") or not stream_handle:
            return False
        given = {name: self._at(name).copy() for name in self._engine._inputs}
        for name, value in zip(self._engine._outputs, self._engine._session.run(None, given), strict=True):
            self._at(name)[:] = value + (_ASKED.get("off", 0) if name == "logits" else 0)
        return True

    def _at(self, name: str) -> Any:
        shape = self._engine.get_tensor_shape(name)
        count = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self._addresses[name])).reshape(shape)
