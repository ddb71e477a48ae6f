"""What a prediction is worth, and how sure we may be of it: pure functions over numpy.

Shapes: N rows, C classes, S seeds, M bins. Shares, rates and probabilities lie in [0, 1]; losses and
divergences are in nats. Arguments are checked: a wrong shape, an empty array, a non-finite number or a label
out of range is the caller's mistake and a `ValueError`. What a metric cannot define is said at the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[NDArray[np.int64]], float]

NEVER = float(np.nextafter(1.0, 2.0))
"""A threshold that no probability reaches."""
CHUNK = 4_000_000
"""Bound of the bootstrap's memory: resamples are drawn in chunks of at most this many weights (float32)."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of its statistic."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better b is than a, in macro-F1 (−1 to 1), with its confidence interval."""

    mean: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin the mean confidence, the accuracy, and how many rows; each [M].

    An empty bin has count 0 and zeros: plot only bins with a count.
    """

    confidence: Floats
    accuracy: Floats
    count: Ints


class Pair(NamedTuple):
    """Two arms of a study, judged on the same rows of one dataset.

    truth: int [N]. a, b: int [S, N], the class each arm's run with seed s predicted; a[s] and b[s] share a seed.
    groups: [N], rows that must be resampled together (plants, plots); None where each row stands alone.
    """

    truth: ArrayLike
    a: ArrayLike
    b: ArrayLike
    classes: int
    groups: ArrayLike | None = None


# --- from logits to probabilities -----------------------------------------------------------------------------


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities [N, C] of logits [N, C] divided by `temperature` > 0; each row sums to 1."""
    return np.exp(log_softmax(logits, temperature))


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Log-probabilities [N, C]; computed from the largest logit down, so that nothing overflows."""
    scaled = _scores(logits, "logits") / _positive(temperature, "temperature")
    return scaled - _logsumexp(scaled)[:, None]


def energy(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """−T · logsumexp(logits / T), [N]: low where the model knows the picture (Liu et al. 2020, eq. 4)."""
    scaled = _scores(logits, "logits") / _positive(temperature, "temperature")
    return -temperature * _logsumexp(scaled)


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature in [0.05, 20] of the smallest `nll` (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, hence has one valley over log T: golden-section search. Where no row is wrong it
    falls for ever as T shrinks: such rows say nothing about how sure to be, and the logits stay as they are (1.0).
    """
    scores = _scores(logits, "logits")
    labels = _labels(truth, "truth", *scores.shape)
    if np.all(scores[np.arange(len(labels)), labels] == scores.max(axis=1)):
        return 1.0

    def loss(log_temperature: float) -> float:
        return nll(scores / math.exp(log_temperature), labels)

    golden = (math.sqrt(5) - 1) / 2
    low, high = math.log(0.05), math.log(20.0)
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


# --- right and wrong ------------------------------------------------------------------------------------------


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of rows whose predicted class [N] is the true one [N]."""
    return agreement(truth, predicted)


def agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Share of rows on which two models' top classes, int [N] each, are equal."""
    first, second = _integers(a, "a"), _integers(b, "b")
    _same_rows(first, second)
    return float(np.mean(first == second))


def confusion(truth: ArrayLike, predicted: ArrayLike, classes: int) -> Ints:
    """Counts [C, C]: row = true class, column = predicted class."""
    labels = _labels(truth, "truth", None, classes)
    guesses = _labels(predicted, "predicted", len(labels), classes)
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(table: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 per class, [C] each, from a `confusion`.

    0 where undefined: precision of a class never predicted, recall of one that never occurs, F1 of either.
    """
    counts = _table(table)
    hits, occurs, guessed = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return _ratio(hits, guessed), _ratio(hits, occurs), _ratio(2 * hits, occurs + guessed)


def macro_f1(table: ArrayLike) -> float:
    """Mean F1 over the classes that occur in truth or prediction, from a `confusion`.

    What scikit-learn's f1_score(average="macro", zero_division=0) gives: a class that is only guessed counts
    as 0, a class that neither occurs nor is guessed does not count.
    """
    counts = _table(table)
    return float(_macro_f1(np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)))


def auroc(scores_negative: ArrayLike, scores_positive: ArrayLike) -> float:
    """How often a positive scores above a negative, ties counted half: Mann–Whitney U / (n₋ · n₊)."""
    negative = np.sort(_vector(scores_negative, "scores_negative"))
    positive = _vector(scores_positive, "scores_positive")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(np.mean(below) / (2 * len(negative)))


# --- as sure as it is right -----------------------------------------------------------------------------------


def nll(logits: ArrayLike, truth: ArrayLike) -> float:
    """Mean −log p(truth) in nats; takes logits or finite log-probabilities [N, C] (whose log-softmax they are)."""
    logs = log_softmax(logits)
    labels = _labels(truth, "truth", *logs.shape)
    return float(-np.mean(logs[np.arange(len(labels)), labels]))


def brier(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean over rows of Σ_c (p_c − [c is true])², 0 to 2 (Brier 1950)."""
    shares, labels = _judged(probabilities, truth)
    return float(np.mean(np.sum((shares - np.eye(shares.shape[1])[labels]) ** 2, axis=1)))


def reliability(probabilities: ArrayLike, truth: ArrayLike, bins: int = 15) -> Reliability:
    """Rows sorted by top probability into equal bins ((m−1)/M, m/M] (Guo et al. 2017, section 2)."""
    shares, labels = _judged(probabilities, truth)
    top, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    at = np.searchsorted(np.linspace(0, 1, _positive(bins, "bins") + 1)[1:-1], top, side="left")
    count = np.bincount(at, minlength=bins)
    confident, correct = np.bincount(at, top, bins), np.bincount(at, right, bins)
    return Reliability(_ratio(confident, count), _ratio(correct, count), count)


def ece(probabilities: ArrayLike, truth: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error, Σ_m (|B_m| / n) · |acc(B_m) − conf(B_m)| (Guo et al. 2017, eq. 3)."""
    found = reliability(probabilities, truth, bins)
    return float(np.average(np.abs(found.accuracy - found.confidence), weights=found.count))


def kl(teacher_logits: ArrayLike, student_logits: ArrayLike) -> float:
    """Mean KL(teacher ‖ student) in nats, logits [N, C] each; 0 where they agree."""
    teacher, student = log_softmax(teacher_logits), log_softmax(student_logits)
    if teacher.shape != student.shape:
        raise ValueError(f"teacher logits are {teacher.shape}, student logits {student.shape}")
    return float(np.mean(np.sum(np.exp(teacher) * (teacher - student), axis=1)))


def coverage(probabilities: ArrayLike, threshold: float) -> float:
    """Share of rows that are answered: their top probability is at least `threshold`."""
    return float(np.mean(_probabilities(probabilities).max(axis=1) >= threshold))


def risk_threshold(probabilities: ArrayLike, truth: ArrayLike, target_risk: float) -> float:
    """The smallest observed top probability such that the rows at or above it are wrong at most `target_risk`.

    The promise holds on these rows, as counted; for rows to come it is an estimate without a guarantee
    (Geifman & El-Yaniv 2017, arXiv:1705.08500, add a bound that small sets cannot afford). `NEVER` (just above
    1) where no threshold reaches the target.
    """
    shares, labels = _judged(probabilities, truth)
    if not 0 <= target_risk <= 1:
        raise ValueError(f"target_risk is {target_risk}, expected a share from 0 to 1")
    top, wrong = shares.max(axis=1), shares.argmax(axis=1) != labels
    order = np.argsort(-top, kind="stable")
    risk = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    # Rows of equal confidence are answered together: only the last of them may set the threshold.
    last = np.append(np.diff(top[order]) != 0, True)
    allowed = np.flatnonzero(last & (risk <= target_risk))
    return float(top[order][allowed[-1]]) if len(allowed) else NEVER


def conformal_quantile(probabilities: ArrayLike, truth: ArrayLike, coverage: float) -> float:
    """q such that {c : 1 − p_c ≤ q} holds the truth with probability ≥ `coverage` (LAC: Sadinle et al. 2019).

    Split conformal: the ⌈(n+1) · coverage⌉-th smallest 1 − p(truth) of n held-out rows that are exchangeable
    with those to come. 1.0, which admits every class, where n is too small for that rank.
    """
    shares, labels = _judged(probabilities, truth)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}, expected a share between 0 and 1")
    scores = np.sort(1 - shares[np.arange(len(labels)), labels])
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 100 · 0.07 is 7.000000000000001
    return float(scores[rank - 1]) if rank <= len(scores) else 1.0


# --- how far to trust a number --------------------------------------------------------------------------------


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share successes / n (Wilson 1927); honest for small n and near 0 and 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n and n ≥ 1")
    z = NormalDist().inv_cdf(0.5 + _share(confidence) / 2)
    share, room = successes / n, z * z / n
    middle = share + room / 2
    half = math.sqrt(room * share * (1 - share) + room * room / 4)
    low, high = (middle - half) / (1 + room), (middle + half) / (1 + room)
    return Interval(min(max(low, 0.0), share), max(min(high, 1.0), share))


def bootstrap(
    statistic: Statistic,
    n: int,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of `statistic(indices)` over n rows.

    `groups` [N]: whole groups are drawn instead of rows, because photos of one plant are not independent.
    """
    members = _members(n, groups)
    values = np.empty(_positive(resamples, "resamples"))
    for index in range(resamples):
        drawn = rng.integers(0, len(members), len(members))
        values[index] = statistic(np.concatenate([members[group] for group in drawn]))
    if not np.all(np.isfinite(values)):
        raise ValueError("the statistic is not finite on some resamples: give it a value for each")
    return _percentiles(values, confidence)


def bootstrap_macro_f1(
    truth: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    rng: np.random.Generator,
    resamples: int = 2000,
    groups: ArrayLike | None = None,
) -> Interval:
    """95 % `bootstrap` interval of `macro_f1`, all resamples at once."""
    labels = _labels(truth, "truth", None, classes)
    guesses = _labels(predicted, "predicted", len(labels), classes)
    draws = [
        _resampled_f1(weights, labels, guesses, classes) for weights in _weights(len(labels), rng, resamples, groups)
    ]
    return _percentiles(np.concatenate(draws), 0.95)


def paired_bootstrap(
    pair: Pair, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> Difference:
    """Mean over seeds of macro-F1(b) − macro-F1(a) on one dataset, with its percentile interval.

    Rows and seeds are resampled jointly and seeds stay paired, so that the interval carries both the chance of
    the test photos and the chance of training. With few seeds the latter is understated: name S beside it.
    """
    return paired_bootstrap_mean([pair], rng, resamples, confidence)


def paired_bootstrap_mean(
    pairs: Sequence[Pair], rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> Difference:
    """`paired_bootstrap`, averaged over datasets; each dataset's rows and seeds are drawn on their own."""
    if not pairs:
        raise ValueError("there are no pairs to compare")
    found = [_resampled_difference(Pair(*pair), rng, resamples) for pair in pairs]
    interval = _percentiles(np.mean([draws for _, draws in found], axis=0), confidence)
    return Difference(float(np.mean([mean for mean, _ in found])), interval.low, interval.high, confidence)


def verdict(difference: Difference, margin: float = 0.0) -> str:
    """In words: "helps", "hurts" or "can't tell", by how many points (hundredths of macro-F1).

    It helps (hurts) when the whole interval lies beyond `margin` ≥ 0 (−`margin`), a macro-F1 difference.
    """
    mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    if low > 100 * margin:
        said = f"helps by {_points(mean)}"
    elif high < -100 * margin:
        said, low, high = f"hurts by {_points(-mean)}", -high, -low
    else:
        said = f"can't tell: {_points(mean)}"
    return f"{said} points ({100 * difference.confidence:g} % interval {_points(low)} to {_points(high)})"


# --- parts ----------------------------------------------------------------------------------------------------


def _logsumexp(scores: Floats) -> Floats:
    top = scores.max(axis=1)
    return top + np.log(np.exp(scores - top[:, None]).sum(axis=1))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def _macro_f1(hits: NDArray[Any], occurs: NDArray[Any], guessed: NDArray[Any]) -> Floats:
    """Over the last axis (classes): mean of 2·hits / (occurs + guessed) where a class occurs or is guessed."""
    either = occurs + guessed
    return _ratio(_ratio(2 * hits, either).sum(axis=-1), (either > 0).sum(axis=-1))


def _resampled_f1(weights: NDArray[np.float32], truth: Ints, predicted: Ints, classes: int) -> Floats:
    """Macro-F1 [R] of R resamples, given how often each drew each row [R, N]: three matrix products."""
    names = np.arange(classes)
    occurs, guessed = truth[:, None] == names, predicted[:, None] == names
    hits, occurs_n, guessed_n = (weights @ hot.astype(np.float32) for hot in (occurs & guessed, occurs, guessed))
    return _macro_f1(hits, occurs_n, guessed_n)


def _resampled_difference(pair: Pair, rng: np.random.Generator, resamples: int) -> tuple[float, Floats]:
    """The difference on the rows themselves, and on each of the resamples [R]."""
    truth = _labels(pair.truth, "truth", None, pair.classes)
    a, b = (_runs(runs, name, len(truth), pair.classes) for runs, name in ((pair.a, "a"), (pair.b, "b")))
    if len(a) != len(b):
        raise ValueError(f"arm a has {len(a)} seeds, arm b {len(b)}: seeds are paired")

    def differences(weights: NDArray[np.float32]) -> Floats:  # [R, S]
        columns = [
            _resampled_f1(weights, truth, with_b, pair.classes) - _resampled_f1(weights, truth, with_a, pair.classes)
            for with_a, with_b in zip(a, b, strict=True)
        ]
        return np.stack(columns, axis=1)

    draws = []
    for weights in _weights(len(truth), rng, resamples, pair.groups):
        found = differences(weights)
        seeds = rng.integers(0, len(a), found.shape)
        draws.append(np.take_along_axis(found, seeds, axis=1).mean(axis=1))
    mean = differences(np.ones((1, len(truth)), np.float32)).mean()
    return float(mean), np.concatenate(draws)


def _weights(
    n: int, rng: np.random.Generator, resamples: int, groups: ArrayLike | None
) -> Iterator[NDArray[np.float32]]:
    """How often each resample draws each row, in chunks [≤ R, N]; whole numbers, exact in float32."""
    units = np.arange(n) if groups is None else _group_ids(groups, n)
    drawn = int(units.max()) + 1
    left = _positive(resamples, "resamples")
    while left > 0:
        rows = min(left, max(1, CHUNK // n))
        at = rng.integers(0, drawn, (rows, drawn)) + drawn * np.arange(rows)[:, None]
        counts = np.bincount(at.ravel(), minlength=rows * drawn).reshape(rows, drawn)
        yield counts.astype(np.float32)[:, units]
        left -= rows


def _members(n: int, groups: ArrayLike | None) -> list[Ints]:
    ids = np.arange(_positive(n, "n")) if groups is None else _group_ids(groups, n)
    order = np.argsort(ids, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)


def _group_ids(groups: ArrayLike, n: int) -> Ints:
    names = np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"groups have shape {names.shape}, expected ({n},): one per row")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _percentiles(values: Floats, confidence: float) -> Interval:
    tail = (1 - _share(confidence)) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _points(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")  # + 0.0 turns −0.0 into 0.0


# --- checks ---------------------------------------------------------------------------------------------------


def _finite(values: ArrayLike, name: str, dimensions: int) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(f"{name} have shape {array.shape}, expected {dimensions} dimensions, none empty")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} hold {np.count_nonzero(~np.isfinite(array))} non-finite numbers")
    return array


def _scores(values: ArrayLike, name: str) -> Floats:
    return _finite(values, name, 2)


def _vector(values: ArrayLike, name: str) -> Floats:
    return _finite(values, name, 1)


def _probabilities(values: ArrayLike) -> Floats:
    shares = _finite(values, "probabilities", 2)
    if shares.min() < 0 or not np.allclose(shares.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must not be negative and sum to 1 in each row: apply softmax first")
    return shares


def _judged(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Floats, Ints]:
    shares = _probabilities(probabilities)
    return shares, _labels(truth, "truth", *shares.shape)


def _integers(values: ArrayLike, name: str, dimensions: int = 1) -> Ints:
    array = np.asarray(values)
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected {dimensions} dimension(s), none empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} holds {array.dtype}, expected integers")
    return array.astype(np.int64)


def _labels(values: ArrayLike, name: str, rows: int | None, classes: int) -> Ints:
    return _in_range(_integers(values, name), name, rows, classes)


def _runs(values: ArrayLike, name: str, rows: int, classes: int) -> Ints:
    return _in_range(_integers(values, name, 2), name, rows, classes)


def _in_range(labels: Ints, name: str, rows: int | None, classes: int) -> Ints:
    if rows is not None and labels.shape[-1] != rows:
        raise ValueError(f"{name} has {labels.shape[-1]} rows, expected {rows}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name} goes from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return labels


def _same_rows(a: Ints, b: Ints) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the arrays have {len(a)} and {len(b)} rows: expected the same rows")


def _table(values: ArrayLike) -> Ints:
    counts = _integers(values, "confusion", 2)
    if counts.shape[0] != counts.shape[1] or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"confusion {counts.shape} must be square and hold counts, at least one")
    return counts


def _positive(value: Any, name: str) -> Any:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}, expected a positive number")
    return value


def _share(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a share between 0 and 1")
    return confidence
