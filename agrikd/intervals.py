"""How sure we may be of a figure: intervals, and which of two ways of training is better, in words.

Shapes: N rows, S seeds, R resamples. A wrong shape or an empty array is the caller's mistake and a `ValueError`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agrikd.arrays import Floats, Ints, finite, places, within
from agrikd.metrics import macro_f1_of
from agrikd.types import figure

CHUNK = 4_000_000  # bounds the bootstrap's memory: the most row weights (float32) drawn at once


class Interval(NamedTuple):
    """A confidence interval, in the unit of its statistic."""

    low: float
    high: float


class Difference(NamedTuple):
    """How much better b is than a, in macro-F1 (−1 to 1) or in a number's unit, with its confidence interval."""

    mean: float
    low: float
    high: float
    confidence: float = 0.95


class Pair(NamedTuple):
    """Two arms of a study, judged on the same rows of one dataset.

    truth: int [N]. a, b: int [S, N], what each arm's run predicted; a[s] and b[s] share a seed. For numbers all three
    are float and `classes` is None. groups: [N] names of what must be resampled together (plants, plots); None where
    each row stands alone.
    """

    truth: ArrayLike
    a: ArrayLike
    b: ArrayLike
    classes: int | None
    groups: ArrayLike | None = None


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of the share successes / n (Wilson 1927); sound for small n and near 0 and 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n and n ≥ 1")
    z = NormalDist().inv_cdf(0.5 + within(confidence, "confidence", 0, 1) / 2)
    share, room = successes / n, z * z / n
    half = math.sqrt(room * share * (1 - share) + room * room / 4)
    low, high = ((share + room / 2 + side * half) / (1 + room) for side in (-1, 1))
    return Interval(0.0 if successes == 0 else low, 1.0 if successes == n else high)


def bootstrap(
    statistic: Callable[[Ints], float],
    n: int,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of `statistic(indices)` over n rows; indices come sorted.

    `groups` [N]: whole groups are drawn instead of rows, because photos of one plant are not independent.
    """
    drawn = (row for weights in _weights(n, rng, resamples, groups) for row in weights)
    values = np.asarray([statistic(np.repeat(np.arange(n), row.astype(np.int64))) for row in drawn])
    return _percentiles(finite(values, "the statistic's values", 1), confidence)


def bootstrap_macro_f1(
    truth: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    rng: np.random.Generator,
    resamples: int = 2000,
    groups: ArrayLike | None = None,
) -> Interval:
    """95 % `bootstrap` interval of `macro_f1`, a chunk of resamples at once."""
    labels = places(truth, "truth", None, classes)
    guesses = places(predicted, "predicted", len(labels), classes)
    chunks = _weights(len(labels), rng, resamples, groups)
    return _percentiles(np.concatenate([macro_f1_of(chunk, labels, guesses, classes) for chunk in chunks]), 0.95)


def paired_bootstrap(
    pair: Pair, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> Difference:
    """Mean over seeds of macro-F1(b) − macro-F1(a) on one dataset, for numbers of MAE(a) − MAE(b), with its interval.

    Rows and seeds are resampled jointly and seeds stay paired: the interval carries the chance of the test
    photos and the chance of training. Few seeds understate the latter, so name S beside it.
    """
    return paired_bootstrap_mean([pair], rng, resamples, confidence)


def paired_bootstrap_mean(
    pairs: Sequence[Pair],
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    datasets: Sequence[str] | None = None,
) -> Difference:
    """`paired_bootstrap` averaged over pairs; each dataset's rows and seeds are drawn on their own.

    datasets: of each pair; those of one have the same photos and seeds, and share their draws, since a second look at
    the same photos is no second dataset. By default every pair has its own.
    """
    within(len(pairs), "the number of pairs", 0, math.inf)
    before: dict[str, np.random.Generator] = {}
    found = []
    for pair, name in zip(pairs, datasets or map(str, range(len(pairs))), strict=True):
        draws = copy.deepcopy(before[name]) if name in before else rng
        before.setdefault(name, copy.deepcopy(rng))
        found.append(_difference(Pair(*pair), draws, resamples))
    interval = _percentiles(np.mean([draws for _, draws in found], axis=0), confidence)
    return Difference(float(np.mean([mean for mean, _ in found])), interval.low, interval.high, confidence)


def verdict(
    difference: Difference,
    margin: float = 0.0,
    unit: str | None = None,
    ways: tuple[str, str] = ("helps by", "hurts by"),
) -> str:
    """In words: "helps", "hurts" or "can't tell", by how many points (hundredths of macro-F1), or how much of `unit`.

    It helps (hurts) when the whole interval lies above `margin` ≥ 0 (below −`margin`), in macro-F1 or the unit. An
    interval without width is none: no draw of the rows told one from the other.
    """
    if difference.low == difference.high == 0:
        return "can't tell: no difference on any draw of the photos"
    sign = -1 if difference.high < -margin else 1
    mean, low, high = (sign * value for value in (difference.mean, difference.low, difference.high))
    word = ways[1] if sign < 0 else ways[0] if difference.low > margin else "can't tell:"
    mean_text, *ends = (_amount(value, unit) for value in (mean, *sorted((low, high))))
    of = "points" if unit is None else f"{unit} of error".strip()
    return f"{word} {mean_text} {of} ({100 * difference.confidence:g} % interval {' to '.join(ends)})"


def brief(difference: Difference, unit: str | None = None) -> str:
    """`verdict` as a table's cell, with its sign: "hurts −3.1 (−5.8 to −0.4)"."""
    if difference.low == difference.high == 0:
        return "no difference"
    word = "hurts" if difference.high < 0 else "helps" if difference.low > 0 else "can't tell"
    mean, low, high = (_amount(value, unit) for value in difference[:3])
    ends = f"({low} to {high})".replace(" ", "\u00a0")
    return f"{word} {'+' if difference.mean > 0 else ''}{mean} {ends}"


def _amount(value: float, unit: str | None) -> str:
    """In points, or in the unit."""
    return figure(value) if unit is not None else f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")


def _difference(pair: Pair, rng: np.random.Generator, resamples: int) -> tuple[float, Floats]:
    """Mean over seeds of how much better b is: on the rows themselves, and on each resample [R]."""
    better = _less_off(pair) if pair.classes is None else _higher_f1(pair, pair.classes)
    rows, seeds = np.shape(pair.truth)[0], np.shape(pair.a)[0]
    if seeds != np.shape(pair.b)[0]:
        raise ValueError(f"arm a has {seeds} seeds, arm b {np.shape(pair.b)[0]}: seeds are paired")
    draws = []
    for weights in _weights(rows, rng, resamples, pair.groups):
        drawn = rng.integers(0, seeds, (len(weights), seeds))
        draws.append(np.take_along_axis(better(weights), drawn, axis=1).mean(axis=1))
    return float(better(np.ones((1, rows), np.float32)).mean()), np.concatenate(draws)


_BySeed = Callable[[NDArray[np.float32]], Floats]
"""From how often each of R resamples drew each row, [R, N], to how much better b is with each seed, [R, S]."""


def _higher_f1(pair: Pair, classes: int) -> _BySeed:
    truth = places(pair.truth, "truth", None, classes)
    a, b = (places(runs, name, len(truth), classes, 2) for runs, name in ((pair.a, "a"), (pair.b, "b")))

    def by_seed(weights: NDArray[np.float32]) -> Floats:
        f1_a, f1_b = (np.stack([macro_f1_of(weights, truth, run, classes) for run in runs], 1) for runs in (a, b))
        return f1_b - f1_a

    return by_seed


def _less_off(pair: Pair) -> _BySeed:
    truth = finite(pair.truth, "truth", 1)
    a, b = (np.abs(finite(runs, name, 2) - truth) for runs, name in ((pair.a, "a"), (pair.b, "b")))
    return lambda weights: (weights @ (a - b).T) / weights.sum(axis=1, keepdims=True)


def _weights(
    n: int, rng: np.random.Generator, resamples: int, groups: ArrayLike | None
) -> Iterator[NDArray[np.float32]]:
    """How often each resample draws each row, in chunks [≤ R, N]; whole numbers, exact in float32."""
    names = np.arange(within(n, "n", 0, math.inf)) if groups is None else np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"groups has shape {names.shape}, expected ({n},)")
    units, unit_of = np.unique(names, return_inverse=True)
    at_once = max(1, CHUNK // n)
    for start in range(0, within(resamples, "resamples", 0, math.inf), at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, len(units), (rows, len(units))) + len(units) * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield counts.astype(np.float32)[:, unit_of]


def _percentiles(values: Floats, confidence: float) -> Interval:
    tail = (1 - within(confidence, "confidence", 0, 1)) / 2
    return Interval(*np.quantile(values, [tail, 1 - tail]).tolist())
