"""The border of every backend: one verb, and a fake that keeps to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agrikd.predict.decode import decode
from agrikd.types import Image, ModelSpec, Prediction

Doubt = Callable[[Callable[[Image], NDArray[np.float32]]], str]
"""Asked before an engine answers, with what gives its logits [C] of a photo: why it may not answer, empty if it may."""


class Predictor(Protocol):
    """A model with its door: it resizes and normalises by itself.

    parameters: how many weights. size_bytes: of the weights as stored. backend: in words.
    """

    spec: ModelSpec
    parameters: int
    size_bytes: int

    @property
    def backend(self) -> str: ...

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        """uint8 [H, W, 3] RGB images of any size, one `Prediction` each, in order."""


class FakePredictor:
    """Answers from an image's mean colour: deterministic and without a backend, for tests of what stands behind."""

    backend = "fake"
    parameters = 0
    size_bytes = 0

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        colours = np.array([image.reshape(-1, 3).mean(axis=0) / 255 for image in images], np.float32).reshape(-1, 3)
        angles = np.arange(len(self.spec.classes))[:, None] + np.arange(3)[None]
        return decode((4 * colours @ np.cos(angles).T).astype(np.float32), colours, images, self.spec)
