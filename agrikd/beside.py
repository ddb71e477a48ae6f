"""Two models on the same photos: is one better, is it faster, and is either told from noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import intervals
from agrikd.intervals import Pair
from agrikd.predict._base import Predictor
from agrikd.types import Prediction

_MIDDLE = (0.1, 0.5, 0.9)
"""Of the rows' ratios of time: what leaves 1 out here is more than a busy machine's moods."""
EVEN = 1.2
"""Ratios of size or time nearer to one than this are not worth a word."""


@dataclass(frozen=True)
class Answered:
    """What a model said of each row, and the seconds that each took, [N]."""

    predictor: Predictor
    predictions: list[Prediction]
    seconds: NDArray[np.float64]

    @property
    def said(self) -> NDArray[Any]:
        """Classes, or numbers, [N]."""
        return np.array([one.top if one.value is None else one.value for one in self.predictions])

    @property
    def ms(self) -> float:
        return 1000 * float(np.median(self.seconds))


@dataclass(frozen=True)
class Beside:
    """How a model stands to another that was judged on the same rows.

    gain: how much higher its macro-F1 is, or, of numbers, how much lower its mean error in their unit; low and high are
    the 95 % bootstrap interval, paired by row (by group, where the manifest names them); words: the verdict on it.
    pace: how many times as fast it was, row by row: a tenth, the median and nine tenths; None on different backends.
    """

    other: str
    gain: float
    low: float
    high: float
    words: str
    pace: tuple[float, float, float] | None

    @property
    def times(self) -> str:
        """ "2.1 times faster", or nothing where the time is not told from noise."""
        if self.pace is None or self.pace[0] <= 1 <= self.pace[2]:
            return ""
        return ratio(1.0, self.pace[1], "faster", "slower")


@dataclass(frozen=True)
class Rows:
    """What models are judged on: truth [N], how many classes (None: numbers, in `unit`), and what is resampled
    together (None: each row alone)."""

    truth: NDArray[Any]
    classes: int | None
    groups: list[str] | None
    unit: str | None = None

    def beside(self, answered: Mapping[str, Answered], label: str) -> tuple[Beside, ...]:
        """How a model stands to each that was named before it."""
        before = list(answered)[: list(answered).index(label)]
        return tuple(self._beside(other, answered[other], answered[label]) for other in before)

    def _beside(self, label: str, other: Answered, own: Answered) -> Beside:
        pair = Pair(self.truth, other.said[None], own.said[None], self.classes, self.groups)
        found = intervals.paired_bootstrap(pair, np.random.default_rng(0))
        words = intervals.verdict(found, unit=self.unit, ways=("better by", "worse by"))
        if np.array_equal(other.said, own.said):
            words = "no difference: the same answer to every photo"
        pace = None
        if other.predictor.backend == own.predictor.backend:
            low, median, high = np.quantile(other.seconds / own.seconds, _MIDDLE).tolist()
            pace = (low, median, high)
        return Beside(label, found.mean, found.low, found.high, words, pace)


def ratio(own: float, its: float, less: str, more: str) -> str:
    """ "2.1 times smaller", or nothing where both are about the same or unknown (0)."""
    if own <= 0 or its <= 0 or max(own / its, its / own) < EVEN:
        return ""
    times, word = (its / own, less) if own < its else (own / its, more)
    return f"{times:.1f} times {word}"
