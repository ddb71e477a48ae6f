"""The few calls of CUDA's runtime that an inference needs, by ctypes: a stock JetPack has it and no binding for it."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd.errors import DeviceError

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_TO_DEVICE, _TO_HOST = 1, 2
_MAJOR, _MINOR = 75, 76
"""cudaMemcpyKind and cudaDeviceAttr, in CUDA's driver_types.h."""


class Cuda:
    """Memory and a stream on the first device; every failure is a `DeviceError` with CUDA's own words."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def open(cls) -> Cuda:
        """From $AGRIKD_CUDART, else where the system's linker finds it; raises `DeviceError` where it does not."""
        own = os.environ.get("AGRIKD_CUDART")
        for name in (own,) if own else _NAMES:
            try:
                return cls(ctypes.CDLL(name))
            except OSError:
                continue
        mend = "install CUDA's runtime, or say where it is with AGRIKD_CUDART"
        raise DeviceError(f"no {own or 'libcudart.so'} can be loaded\n    → {mend}")

    @property
    def version(self) -> str:
        """Of the runtime, as 12.6."""
        found = ctypes.c_int()
        self._call("cudaRuntimeGetVersion", ctypes.byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"

    @property
    def compute_capability(self) -> str:
        """Of the first device, as 8.7."""
        found = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            found.append(str(value.value))
        return ".".join(found)

    def allocate(self, size_bytes: int) -> int:
        """An address on the device."""
        found = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(found), ctypes.c_size_t(size_bytes))
        return int(found.value or 0)

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def stream(self) -> int:
        found = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(found))
        return int(found.value or 0)

    def destroy(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def to_device(self, address: int, values: NDArray[Any], stream: int) -> None:
        self._copy(address, values.ctypes.data, values.nbytes, _TO_DEVICE, stream)

    def to_host(self, values: NDArray[Any], address: int, stream: int) -> None:
        self._copy(values.ctypes.data, address, values.nbytes, _TO_HOST, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def _copy(self, to: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        addresses = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size_bytes)
        self._call("cudaMemcpyAsync", *addresses, kind, ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: Any) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            raise DeviceError(f"{name}: {self._library.cudaGetErrorString(code).decode()} ({code})")


def host_array(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Memory that stays where it is while a copy runs."""
    return np.empty(shape, np.float32)
