"""What an array must be; anything else is the caller's mistake and a `ValueError` that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _numbers(values: ArrayLike, name: str, dimensions: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected {dimensions} dimension(s), none empty")
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise ValueError(f"{name} holds {bad} non-finite numbers")
    return array


def finite(values: ArrayLike, name: str, dimensions: int = 2) -> Floats:
    return _numbers(values, name, dimensions).astype(np.float64)


def integers(values: ArrayLike, name: str, dimensions: int = 1) -> Ints:
    array = _numbers(values, name, dimensions)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} holds {array.dtype}, expected integers")
    return array.astype(np.int64)


def places(values: ArrayLike, name: str, rows: int | None, classes: int, dimensions: int = 1) -> Ints:
    labels = integers(values, name, dimensions)
    if rows not in (None, labels.shape[-1]):
        raise ValueError(f"{name} has {labels.shape[-1]} rows, expected {rows}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name} goes from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return labels


def within(value: Any, name: str, low: float, high: float) -> Any:
    if not low < value < high:
        raise ValueError(f"{name} is {value}, expected a number between {low} and {high}")
    return value
