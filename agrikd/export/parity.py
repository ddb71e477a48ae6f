"""Same image, same answer, else no export: uint8 pixels to probabilities, through both doors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agrikd import console
from agrikd.errors import ParityError
from agrikd.predict._base import Predictor
from agrikd.types import Image, Prediction

_MAY_FLIP, _MUST_BE_CLEAR, _MAY_MOVE = 0.005, 0.95, 0.05
TOLERANCE = 1e-3
"""Largest difference of a logit in FP32: float32 sums in another order stay well below it."""


@dataclass(frozen=True)
class Parity:
    """What two backends said of the same images.

    max_logit, max_probability: largest absolute difference. clear: images whose margin between the two highest
    logits exceeds twice the tolerance; flipped: those of them with another top class. For numbers every image is
    clear, and flipped where the number is off by more than a quarter of a bin.
    """

    images: int
    max_logit: float
    max_probability: float
    clear: int
    flipped: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_logit <= self.tolerance and self.flipped == 0

    def __str__(self) -> str:
        logit = f"largest difference of a logit {self.max_logit:.2g}"
        flipped = f"{self.flipped} of {self.clear} clear answers flipped"
        return f"{self.images} images: {logit}, of a probability {self.max_probability:.2g}; {flipped}"


def compare(source: Predictor, exported: Predictor, images: Sequence[Image], tolerance: float = TOLERANCE) -> Parity:
    """Both predictors on the same uint8 [H, W, 3] images of any size.

    Raises `ParityError` where they name other classes or fewer images than one are given.
    """
    if source.spec.classes != exported.spec.classes:
        raise ParityError("the export names other classes than its source")
    if not images:
        raise ParityError("there is no image to compare on")
    pairs = [(source([one])[0], _answer(exported, one)) for one in console.track(images, "parity")]
    a, b = (np.stack([pair[side].logits for pair in pairs]) for side in (0, 1))
    p, q = (np.stack([pair[side].probabilities for pair in pairs]) for side in (0, 1))
    clear, flipped = _margin(a) > 2 * tolerance, a.argmax(1) != b.argmax(1)
    if scale := source.spec.scale:
        clear, flipped = np.ones(len(a), bool), np.abs(scale.values(p) - scale.values(q)) > scale.width(len(a[0])) / 4
    return Parity(
        images=len(images),
        max_logit=float(np.abs(a - b).max()),
        max_probability=float(np.abs(p - q).max()),
        clear=int(clear.sum()),
        flipped=int(flipped[clear].sum()),
        tolerance=tolerance,
    )


def require(parity: Parity, what: str) -> None:
    """Raise `ParityError` if the two did not answer alike."""
    if not parity.passed:
        raise ParityError(f"{what} does not answer as its source does; nothing was written\n  {parity}")


def require_same_answers(parity: Parity, what: str) -> None:
    """Raise `ParityError` unless 99.5 % of the clear answers are the same, 95 % of the images are clear, and no
    probability moves by more than 0.05, which the thresholds of a calibration would notice."""
    if parity.flipped > _MAY_FLIP * parity.clear:
        raise ParityError(f"{what} gives other answers than its source; nothing was written\n  {parity}")
    if parity.max_probability > _MAY_MOVE:
        raise ParityError(
            f"{what} moves a probability by {parity.max_probability:.2g}; nothing was written\n  {parity}"
        )
    if parity.clear < _MUST_BE_CLEAR * parity.images:
        said = f"{parity.images - parity.clear} of {parity.images} images have no clear answer to compare"
        raise ParityError(f"{what} cannot be judged: {said}; nothing was written\n    → train longer, or give others")


def _answer(exported: Predictor, one: Image) -> Prediction:
    """The metrics refuse numbers that are not finite; in an export they are a failed parity."""
    try:
        return exported([one])[0]
    except ValueError as error:
        raise ParityError(f"the export gives no usable answer ({error}); nothing was written") from None


def _margin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    ordered = np.sort(logits, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])
