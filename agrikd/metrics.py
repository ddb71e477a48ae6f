"""What a prediction is worth, and how sure we may be of it: pure functions over numpy.

Shapes: N rows, C classes, S seeds, R resamples, M bins. Shares and probabilities lie in [0, 1], losses and
divergences are in nats. A wrong shape, an empty array, a non-finite number or a label out of range is the
caller's mistake and a `ValueError`; what a metric cannot define is said at the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEVER = float(np.nextafter(1.0, 2.0))  # a threshold that no probability reaches
CHUNK = 4_000_000  # bounds the bootstrap's memory: the most row weights (float32) drawn at once


class Interval(NamedTuple):
    """A confidence interval, in the unit of its statistic."""

    low: float
    high: float


class Difference(NamedTuple):
    """How much better b is than a, in macro-F1 (−1 to 1), with its confidence interval."""

    mean: float
    low: float
    high: float
    confidence: float = 0.95


class Reliability(NamedTuple):
    """Per bin the mean confidence, the accuracy and the number of rows; [M] each, zeros in an empty bin."""

    confidence: Floats
    accuracy: Floats
    rows: Ints


class Pair(NamedTuple):
    """Two arms of a study, judged on the same rows of one dataset.

    truth: int [N]. a, b: int [S, N], what each arm's run predicted; a[s] and b[s] share a seed.
    groups: [N] names of what must be resampled together (plants, plots); None where each row stands alone.
    """

    truth: ArrayLike
    a: ArrayLike
    b: ArrayLike
    classes: int
    groups: ArrayLike | None = None


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities [N, C] of logits [N, C] divided by `temperature` > 0; each row sums to 1."""
    return np.asarray(np.exp(log_softmax(logits, temperature)))


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Log-probabilities [N, C] of logits [N, C]; no logit is too large."""
    scaled = _finite(logits, "logits") / float(_within(temperature, "temperature", 0, math.inf))
    return scaled - _logsumexp(scaled)[:, None]


def energy(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """−T · logsumexp(logits / T), [N]: low where the model knows the picture (Liu et al. 2020, eq. 4)."""
    scaled = _finite(logits, "logits") / float(_within(temperature, "temperature", 0, math.inf))
    return -temperature * _logsumexp(scaled)


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of rows whose predicted class [N] is the true one [N]."""
    return agreement(truth, predicted)


def agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Share of rows on which the top classes of two models, int [N] each, are equal."""
    first, second = _integers(a, "a"), _integers(b, "b")
    if len(first) != len(second):
        raise ValueError(f"the arrays have {len(first)} and {len(second)} rows, expected the same rows")
    return float(np.mean(first == second))


def confusion(truth: ArrayLike, predicted: ArrayLike, classes: int) -> Ints:
    """Counts [C, C]: row = true class, column = predicted class."""
    labels = _labels(truth, "truth", None, classes)
    guesses = _labels(predicted, "predicted", len(labels), classes)
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(table: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 per class, [C] each, from a `confusion`.

    0 where undefined: precision of a class never guessed, recall of one that never occurs, F1 of neither.
    """
    counts = _table(table)
    hits, occurs, guessed = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return _ratio(hits, guessed), _ratio(hits, occurs), _ratio(2 * hits, occurs + guessed)


def macro_f1(table: ArrayLike) -> float:
    """Mean F1, from a `confusion`, over the classes that occur in truth or prediction (one only guessed has F1 0).

    As scikit-learn's f1_score(average="macro", zero_division=0).
    """
    counts = _table(table)
    return float(_macro_f1(np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)))


def auroc(scores_negative: ArrayLike, scores_positive: ArrayLike) -> float:
    """How often a positive scores above a negative, ties counted half: Mann–Whitney U / (n₋ · n₊)."""
    negative = np.sort(_finite(scores_negative, "scores_negative", 1))
    positive = _finite(scores_positive, "scores_positive", 1)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(np.mean(below) / (2 * len(negative)))


def nll(logits: ArrayLike, truth: ArrayLike) -> float:
    """Mean −log p(truth). Takes logits [N, C], or log-probabilities, which are their own log-softmax."""
    logs = log_softmax(logits)
    labels = _labels(truth, "truth", *logs.shape)
    return float(-np.mean(logs[np.arange(len(labels)), labels]))


def kl(teacher_logits: ArrayLike, student_logits: ArrayLike) -> float:
    """Mean KL(teacher ‖ student), logits [N, C] each; 0 where they agree."""
    teacher, student = log_softmax(teacher_logits), log_softmax(student_logits)
    if teacher.shape != student.shape:
        raise ValueError(f"the teacher's logits are {teacher.shape}, the student's {student.shape}")
    return float(np.mean(np.sum(np.exp(teacher) * (teacher - student), axis=1)))


def brier(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean over rows of Σ_c (p_c − [c is true])², 0 to 2 (Brier 1950)."""
    shares, labels = _judged(probabilities, truth)
    return float(np.mean(np.sum((shares - np.eye(shares.shape[1])[labels]) ** 2, axis=1)))


def reliability(probabilities: ArrayLike, truth: ArrayLike, bins: int = 15) -> Reliability:
    """Rows sorted by top probability into equal bins ((m−1)/M, m/M] (Guo et al. 2017, section 2)."""
    shares, labels = _judged(probabilities, truth)
    top, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    at = np.searchsorted(np.arange(1, _within(bins, "bins", 0, math.inf)) / bins, top, side="left")
    rows, sure, correct = (np.bincount(at, weight, bins) for weight in (None, top, right))
    return Reliability(_ratio(sure, rows), _ratio(correct, rows), rows.astype(np.int64))


def ece(probabilities: ArrayLike, truth: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error, Σ_m (|B_m| / n) · |acc(B_m) − conf(B_m)| (Guo et al. 2017, eq. 3)."""
    found = reliability(probabilities, truth, bins)
    return float(np.average(np.abs(found.accuracy - found.confidence), weights=found.rows))


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature in [0.05, 20] of the smallest `nll` (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T and its slope there, mean(E_p[logit] − logit of truth), rises with 1/T: bisection.
    Where no row is wrong the loss falls for ever as T shrinks: such rows cannot say how sure to be, and the
    logits are left as they are (1.0) rather than blown up to certainty.
    """
    scores = _finite(logits, "logits")
    labels = _labels(truth, "truth", *scores.shape)
    true = scores[np.arange(len(labels)), labels]
    if np.all(true == scores.max(axis=1)):
        return 1.0
    low, high = math.log(0.05), math.log(20.0)
    for _ in range(40):
        middle = (low + high) / 2
        slope = np.mean((softmax(scores, math.exp(middle)) * scores).sum(axis=1) - true)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def coverage(probabilities: ArrayLike, threshold: float) -> float:
    """Share of rows that are answered: their top probability is at least `threshold`."""
    return float(np.mean(_finite(probabilities, "probabilities").max(axis=1) >= threshold))


def risk_threshold(probabilities: ArrayLike, truth: ArrayLike, target_risk: float) -> float:
    """The smallest top probability seen such that of the rows at or above it at most `target_risk` are wrong.

    A count on these rows; for rows to come an estimate without guarantee, and a flattering one, being chosen on
    them (Geifman & El-Yaniv 2017, arXiv:1705.08500, bound it given more rows). `NEVER` where none reaches it.
    """
    shares, labels = _judged(probabilities, truth)
    if not 0 <= target_risk <= 1:
        raise ValueError(f"target_risk is {target_risk}, expected a share from 0 to 1")
    top, wrong = shares.max(axis=1), shares.argmax(axis=1) != labels
    order = np.argsort(-top, kind="stable")
    risk = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    last_of_equals = np.append(np.diff(top[order]) != 0, True)  # equals are answered together
    allowed = np.flatnonzero(last_of_equals & (risk <= target_risk))
    return float(top[order][allowed[-1]]) if len(allowed) else NEVER


def conformal_quantile(probabilities: ArrayLike, truth: ArrayLike, coverage: float) -> float:
    """q such that {c : 1 − p_c ≤ q} holds the truth with probability ≥ `coverage` (LAC: Sadinle et al. 2019).

    Split conformal: the ⌈(n+1) · coverage⌉-th smallest 1 − p(truth) of n held-out rows, exchangeable with those
    to come. 1.0, which admits every class, where n is too small for that rank.
    """
    shares, labels = _judged(probabilities, truth)
    scores = np.sort(1 - shares[np.arange(len(labels)), labels])
    rank = math.ceil((len(scores) + 1) * _within(coverage, "coverage", 0, 1) - 1e-9)  # 100 · 0.07 > 7 in binary
    return float(scores[rank - 1]) if rank <= len(scores) else 1.0


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of the share successes / n (Wilson 1927); sound for small n and near 0 and 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n and n ≥ 1")
    z = NormalDist().inv_cdf(0.5 + _within(confidence, "confidence", 0, 1) / 2)
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
    return _percentiles(_finite(values, "the statistic's values", 1), confidence)


def bootstrap_macro_f1(
    truth: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    rng: np.random.Generator,
    resamples: int = 2000,
    groups: ArrayLike | None = None,
) -> Interval:
    """95 % `bootstrap` interval of `macro_f1`, a chunk of resamples at once."""
    labels = _labels(truth, "truth", None, classes)
    guesses = _labels(predicted, "predicted", len(labels), classes)
    chunks = _weights(len(labels), rng, resamples, groups)
    return _percentiles(np.concatenate([_f1_of(chunk, labels, guesses, classes) for chunk in chunks]), 0.95)


def paired_bootstrap(
    pair: Pair, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> Difference:
    """Mean over seeds of macro-F1(b) − macro-F1(a) on one dataset, with its percentile interval.

    Rows and seeds are resampled jointly and seeds stay paired: the interval carries the chance of the test
    photos and the chance of training. Few seeds understate the latter, so name S beside it.
    """
    return paired_bootstrap_mean([pair], rng, resamples, confidence)


def paired_bootstrap_mean(
    pairs: Sequence[Pair], rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> Difference:
    """`paired_bootstrap` averaged over datasets; each dataset's rows and seeds are drawn on their own."""
    _within(len(pairs), "the number of pairs", 0, math.inf)
    found = [_difference(Pair(*pair), rng, resamples) for pair in pairs]
    interval = _percentiles(np.mean([draws for _, draws in found], axis=0), confidence)
    return Difference(float(np.mean([mean for mean, _ in found])), interval.low, interval.high, confidence)


def verdict(difference: Difference, margin: float = 0.0) -> str:
    """In words: "helps", "hurts" or "can't tell", by how many points (hundredths of macro-F1).

    It helps (hurts) when the whole interval lies above `margin` ≥ 0 (below −`margin`), in macro-F1.
    """
    sign = -1 if difference.high < -margin else 1
    mean, low, high = (100 * sign * value for value in (difference.mean, difference.low, difference.high))
    word = "hurts by" if sign < 0 else "helps by" if difference.low > margin else "can't tell:"
    mean_text, *ends = (f"{round(value, 1) + 0.0:.1f}".replace("-", "−") for value in (mean, *sorted((low, high))))
    return f"{word} {mean_text} points ({100 * difference.confidence:g} % interval {' to '.join(ends)})"


def _logsumexp(scores: Floats) -> Floats:
    top = scores.max(axis=1)
    return np.asarray(top + np.log(np.exp(scores - top[:, None]).sum(axis=1)))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, 0 where whole is 0."""
    return np.asarray(part / np.where(whole > 0, whole, np.inf).astype(np.float64))


def _macro_f1(hits: NDArray[Any], occurs: NDArray[Any], guessed: NDArray[Any]) -> Floats:
    """Over the last axis (classes): mean of 2·hits / (occurs + guessed) where a class occurs or is guessed."""
    either = occurs + guessed
    return _ratio(_ratio(2 * hits, either).sum(axis=-1), (either > 0).sum(axis=-1))


def _f1_of(weights: NDArray[np.float32], truth: Ints, predicted: Ints, classes: int) -> Floats:
    """Macro-F1 [R] of R resamples, given how often each drew each row [R, N]: three matrix products."""
    occurs, guessed = (labels[:, None] == np.arange(classes) for labels in (truth, predicted))
    return _macro_f1(*(weights @ hot.astype(np.float32) for hot in (occurs & guessed, occurs, guessed)))


def _difference(pair: Pair, rng: np.random.Generator, resamples: int) -> tuple[float, Floats]:
    """Mean over seeds of macro-F1(b) − macro-F1(a): on the rows themselves, and on each resample [R]."""
    truth = _labels(pair.truth, "truth", None, pair.classes)
    a, b = (_labels(runs, name, len(truth), pair.classes, 2) for runs, name in ((pair.a, "a"), (pair.b, "b")))
    if len(a) != len(b):
        raise ValueError(f"arm a has {len(a)} seeds, arm b {len(b)}: seeds are paired")

    def by_seed(weights: NDArray[np.float32]) -> Floats:  # [R, S]
        f1_a, f1_b = (np.stack([_f1_of(weights, truth, run, pair.classes) for run in runs], 1) for runs in (a, b))
        return f1_b - f1_a

    draws = []
    for weights in _weights(len(truth), rng, resamples, pair.groups):
        seeds = rng.integers(0, len(a), (len(weights), len(a)))
        draws.append(np.take_along_axis(by_seed(weights), seeds, axis=1).mean(axis=1))
    return float(by_seed(np.ones((1, len(truth)), np.float32)).mean()), np.concatenate(draws)


def _weights(
    n: int, rng: np.random.Generator, resamples: int, groups: ArrayLike | None
) -> Iterator[NDArray[np.float32]]:
    """How often each resample draws each row, in chunks [≤ R, N]; whole numbers, exact in float32."""
    names = np.arange(_within(n, "n", 0, math.inf)) if groups is None else np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"groups has shape {names.shape}, expected ({n},)")
    units, unit_of = np.unique(names, return_inverse=True)
    at_once = max(1, CHUNK // n)
    for start in range(0, _within(resamples, "resamples", 0, math.inf), at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, len(units), (rows, len(units))) + len(units) * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield counts.astype(np.float32)[:, unit_of]


def _percentiles(values: Floats, confidence: float) -> Interval:
    tail = (1 - _within(confidence, "confidence", 0, 1)) / 2
    return Interval(*np.quantile(values, [tail, 1 - tail]).tolist())


def _numbers(values: ArrayLike, name: str, dimensions: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected {dimensions} dimension(s), none empty")
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise ValueError(f"{name} holds {bad} non-finite numbers")
    return array


def _finite(values: ArrayLike, name: str, dimensions: int = 2) -> Floats:
    return _numbers(values, name, dimensions).astype(np.float64)


def _integers(values: ArrayLike, name: str, dimensions: int = 1) -> Ints:
    array = _numbers(values, name, dimensions)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} holds {array.dtype}, expected integers")
    return array.astype(np.int64)


def _labels(values: ArrayLike, name: str, rows: int | None, classes: int, dimensions: int = 1) -> Ints:
    labels = _integers(values, name, dimensions)
    if rows not in (None, labels.shape[-1]):
        raise ValueError(f"{name} has {labels.shape[-1]} rows, expected {rows}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name} goes from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return labels


def _judged(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Floats, Ints]:
    shares = _finite(probabilities, "probabilities")
    if shares.min() < 0 or not np.allclose(shares.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must not be negative and must sum to 1 in each row: apply softmax first")
    return shares, _labels(truth, "truth", *shares.shape)


def _table(values: ArrayLike) -> Ints:
    counts = _integers(values, "confusion", 2)
    if counts.shape[0] != counts.shape[1] or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"confusion {counts.shape} must be square and hold counts, not all 0")
    return counts


def _within(value: Any, name: str, low: float, high: float) -> Any:
    if not low < value < high:
        raise ValueError(f"{name} is {value}, expected a number between {low} and {high}")
    return value
