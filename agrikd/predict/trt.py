"""An exported .onnx file in TensorRT, on a Jetson or another machine with an NVIDIA GPU.

Named tensors and `execute_async_v3`: one runner for TensorRT 8.6 to 11. The engine is built here, in another process;
until it is there, and whenever it fails, ONNX Runtime answers on the CPU, and `backend` says so.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import console, files
from agrikd.errors import DeviceError
from agrikd.predict._base import Doubt
from agrikd.predict._build import POLICY
from agrikd.predict._cudart import Cuda, host_array
from agrikd.predict._engines import Build, EngineCache, EngineKey, Limits
from agrikd.predict.decode import decode
from agrikd.predict.ort import OrtPredictor, as_input
from agrikd.types import Image, Prediction

_L4T, _MODEL, _MACHINE = Path("/etc/nv_tegra_release"), Path("/proc/device-tree/model"), Path("/etc/machine-id")

_PROVEN, _ODD = 1000, 30
"""Good answers after which one that is no number is the frame's fault; so many in a row are the engine's again."""
_AGAIN_S, _TRIES = 60.0, 3
"""When an engine that was given up is tried again; how often one that does not load, perhaps for want of room."""


class UnfitError(DeviceError):
    """An engine that will never answer here."""


class NotLoadedError(DeviceError):
    """TensorRT gave no engine, and does not say whether it is the file or the memory."""


class Engine:
    """A loaded engine with its memory on the device: float32 inputs and outputs of fixed shapes, by name."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes) -> None:
        self._cuda = cuda
        self._logger = trt.Logger(trt.Logger.WARNING)
        try:
            self._runtime = trt.Runtime(self._logger)
        except TypeError as error:  # so say NVIDIA's bindings that the library gave none
            raise DeviceError(f"TensorRT does not start: {error}") from None
        self._cuda_engine = self._runtime.deserialize_cuda_engine(plan)
        if self._cuda_engine is None:
            raise NotLoadedError("TensorRT does not load the engine")
        self._context = self._cuda_engine.create_execution_context()
        if self._context is None:
            raise DeviceError("TensorRT gives no context for the engine: there may be too little memory")
        self._stream = cuda.stream()
        self._inputs: dict[str, int] = {}
        self._outputs: dict[str, tuple[int, NDArray[np.float32]]] = {}
        try:
            for number in range(self._cuda_engine.num_io_tensors):
                self._bind(trt, self._cuda_engine.get_tensor_name(number))
        except DeviceError:
            self.close()
            raise

    def _bind(self, trt: Any, name: str) -> None:
        shape = tuple(self._cuda_engine.get_tensor_shape(name))
        if self._cuda_engine.get_tensor_dtype(name) != trt.float32 or min(shape) < 1:
            raise UnfitError(f"the tensor {name} of the engine is not float32 of a fixed shape, but {shape}")
        values = host_array(shape)
        address = self._cuda.allocate(values.nbytes)
        if not self._context.set_tensor_address(name, address):
            raise DeviceError(f"TensorRT takes no address for the tensor {name}")
        if self._cuda_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            self._inputs[name] = address
        else:
            self._outputs[name] = address, values

    def __call__(self, **inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name; the arrays are the caller's own."""
        held = {name: np.ascontiguousarray(values, np.float32) for name, values in inputs.items()}
        for name, values in held.items():
            self._cuda.to_device(self._inputs[name], values, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise DeviceError("TensorRT did not run the engine")
        for address, values in self._outputs.values():
            self._cuda.to_host(values, address, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: values.copy() for name, (_, values) in self._outputs.items()}

    def close(self) -> None:
        """Give the memory on the device back."""
        for address in (*self._inputs.values(), *(address for address, _ in self._outputs.values())):
            self._cuda.free(address)
        self._cuda.destroy(self._stream)
        self._inputs, self._outputs = {}, {}


class TrtPredictor:
    """An .onnx file; `cache`: the folder of its engines; `doubt`: asked of each. For one thread at a time.

    built: the build of its engine, None where one was there already. key: of the engine on this device, None without
    TensorRT.
    """

    def __init__(
        self,
        path: Path,
        cache: Path | None = None,
        limits: Limits | None = None,
        threads: int = 1,
        doubt: Doubt | None = None,
    ) -> None:
        self._path, self._limits, self._doubt = path, limits or Limits(), doubt
        self._artefact = files.sha256(files.read_bytes(path))
        self._standby = OrtPredictor(path, threads)
        self.spec, self.parameters, self.size_bytes = (
            self._standby.spec,
            self._standby.parameters,
            self._standby.size_bytes,
        )
        self._cache = EngineCache(cache or files.cache_folder() / "engines")
        self._engine: Engine | None = None
        self._building: Build | None = None
        self.built: Build | None = None
        self._why: str | None = None
        self._good = self._odd = self._refusals = 0
        self._again_at = math.inf
        self._open()

    @property
    def backend(self) -> str:
        """What answers now, and why where it is not TensorRT."""
        if self._engine is not None:
            return f"tensorrt {self._trt.__version__}"
        if self._building is not None:
            done = self._building.progress
            how_far = f"{100 * done:.0f} %" if done is not None else f"{self._building.seconds:.0f} s"
            return f"{self._standby.backend} (the engine is being built: {how_far})"
        return f"{self._standby.backend} (no engine: {self._why})"

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        self._adopt()
        return [self._answer(one) for one in images]

    @property
    def key(self) -> EngineKey | None:
        return getattr(self, "_key", None)

    def wait(self, seconds: float | None = None) -> bool:
        """Until the engine is built or has failed; whether TensorRT answers from now on."""
        if self._building is not None:
            self._building.done.wait(seconds)
        self._adopt()
        return self._engine is not None

    def close(self) -> None:
        """Stop a build and free the device's memory."""
        if self._building is not None:
            self._building.stop()
            self._building, self._why = None, "closed"
        self._drop()

    def _answer(self, one: Image) -> Prediction:
        if self._engine is None:
            return self._standby([one])[0]
        try:
            said = self._engine(image=as_input(one, self.spec))
            if np.isfinite(said["logits"]).all():
                self._good, self._odd = self._good + 1, 0
                return decode(said["logits"], said["embedding"], [one], self.spec)[0]
            self._odd += 1
            if self._good < _PROVEN:
                self._fail("the engine's logits are not finite numbers")
            elif self._odd >= _ODD:
                raise DeviceError("the engine's logits are not finite numbers")
        except DeviceError as error:
            self._give_up(str(error))
        return self._standby([one])[0]

    def _open(self) -> None:
        """Look for TensorRT and what engines depend on, and then for the engine."""
        try:
            self._trt = importlib.import_module("tensorrt")
            self._cuda = Cuda.open()
            self._key = self._key_of_this_device()
        except (ImportError, OSError, DeviceError) as error:
            self._fail(str(error))
        else:
            self._find()

    def _find(self) -> None:
        """Load the engine that is there, or begin to build one."""
        try:
            plan = self._cache.find(self._key)
            if plan is None or not self._fits(plan):
                self._building = self.built = Build(self._path, self._key, self._cache, self._limits)
        except (OSError, DeviceError) as error:
            self._fail(str(error))

    def _fits(self, plan: bytes) -> bool:
        """Whether an engine that was there answers from now on, or as soon as the device has room for it."""
        try:
            self._load(plan)
        except UnfitError as error:
            console.say(f"{self._path.name}: {error}; it is built anew")
            return False
        except DeviceError as error:
            self._give_up(str(error))
        return True

    def _load(self, plan: bytes) -> None:
        """Let an engine answer from now on; one that may not is forgotten. Raises `DeviceError`."""
        try:
            self._engine = engine = Engine(self._trt, self._cuda, plan)
            if self._doubt and (why := self._doubt(lambda one: engine(image=as_input(one, self.spec))["logits"][0])):
                raise UnfitError(why)
        except DeviceError as error:
            self._drop()
            self._refusals += isinstance(error, NotLoadedError)
            if not isinstance(error, UnfitError) and self._refusals < _TRIES:
                raise
            self._refusals = 0
            self._cache.forget(self._key)
            raise UnfitError(str(error)) from None
        self._good = self._odd = self._refusals = 0

    def _adopt(self) -> None:
        """Take over from ONNX Runtime when the build has ended well, or the device may have room again."""
        if time.monotonic() >= self._again_at:
            self._again_at = math.inf
            self._find()
            return
        build = self._building
        if build is None or not build.done.is_set():
            return
        self._building = None
        plan = self._cache.find(self._key) if build.why is None else None
        if plan is None:
            self._fail(build.why or "the engine that was built is not whole")
            return
        try:
            self._load(plan)
        except UnfitError as error:
            self._fail(str(error))
        except DeviceError as error:
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        """For a minute: the device may have been out of memory."""
        self._fail(why)
        self._again_at = time.monotonic() + _AGAIN_S

    def _fail(self, why: str) -> None:
        self._drop()
        if why != self._why:
            console.say(f"{self._path.name}: {why}; ONNX Runtime answers on the CPU")
        self._why = why

    def _drop(self) -> None:
        if self._engine is not None:
            with contextlib.suppress(DeviceError):  # a device that failed may not even take its memory back
                self._engine.close()
        self._engine = None

    def _key_of_this_device(self) -> EngineKey:
        return EngineKey(
            artefact=self._artefact,
            tensorrt=self._trt.__version__,
            cuda=self._cuda.version,
            l4t=_first_line(_L4T),
            module=_first_line(_MODEL) or platform.machine(),
            sm=self._cuda.compute_capability,
            machine=files.sha256(_first_line(_MACHINE).encode())[:16],
            precision=self._standby.precision,
            shape=(1, 3, *self.spec.input_size),
            policy=POLICY,
        )


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip("\0\n ").partition("\n")[0]
    except OSError:
        return ""
