"""What a prediction is worth: pure functions over numpy.

Shapes: N rows, C classes, R resamples, M bins. Shares and probabilities lie in [0, 1], losses and
divergences are in nats. A wrong shape, an empty array, a non-finite number or a label out of range is the
caller's mistake and a `ValueError`; what a metric cannot define is said at the metric.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agrikd.arrays import Floats, Ints, finite, integers, places, within

NEVER = float(np.nextafter(1.0, 2.0))  # a threshold that no probability reaches


class Reliability(NamedTuple):
    """Per bin the mean confidence, the accuracy and the number of rows; [M] each, zeros in an empty bin."""

    confidence: Floats
    accuracy: Floats
    rows: Ints


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities [N, C] of logits [N, C] divided by `temperature` > 0; each row sums to 1."""
    return np.asarray(np.exp(log_softmax(logits, temperature)))


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Log-probabilities [N, C] of logits [N, C]; no logit is too large."""
    scaled = finite(logits, "logits") / float(within(temperature, "temperature", 0, math.inf))
    return scaled - _logsumexp(scaled)[:, None]


def energy(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """−T · logsumexp(logits / T), [N]: low where the model knows the picture (Liu et al. 2020, eq. 4)."""
    scaled = finite(logits, "logits") / float(within(temperature, "temperature", 0, math.inf))
    return -temperature * _logsumexp(scaled)


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of rows whose predicted class [N] is the true one [N]."""
    return agreement(truth, predicted)


def agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Share of rows on which the top classes of two models, int [N] each, are equal."""
    first, second = integers(a, "a"), integers(b, "b")
    if len(first) != len(second):
        raise ValueError(f"the arrays have {len(first)} and {len(second)} rows, expected the same rows")
    return float(np.mean(first == second))


def confusion(truth: ArrayLike, predicted: ArrayLike, classes: int) -> Ints:
    """Counts [C, C]: row = true class, column = predicted class."""
    labels = places(truth, "truth", None, classes)
    guesses = places(predicted, "predicted", len(labels), classes)
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


def mae(truth: ArrayLike, said: ArrayLike) -> float:
    """Mean absolute error of numbers [N], in their unit."""
    return float(np.mean(np.abs(_errors(truth, said))))


def rmse(truth: ArrayLike, said: ArrayLike) -> float:
    """Root of the mean squared error of numbers [N], in their unit."""
    return float(np.sqrt(np.mean(_errors(truth, said) ** 2)))


def r2(truth: ArrayLike, said: ArrayLike) -> float:
    """1 − Σ error² / Σ (truth − its mean)²: 1 at the best, 0 for always saying the mean, 0 where truths are equal."""
    numbers = finite(truth, "truth", 1)
    spread = np.sum((numbers - numbers.mean()) ** 2)
    return float(1 - np.sum(_errors(truth, said) ** 2) / spread) if spread else 0.0


def auroc(scores_negative: ArrayLike, scores_positive: ArrayLike) -> float:
    """How often a positive scores above a negative, ties counted half: Mann–Whitney U / (n₋ · n₊)."""
    negative = np.sort(finite(scores_negative, "scores_negative", 1))
    positive = finite(scores_positive, "scores_positive", 1)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(np.mean(below) / (2 * len(negative)))


def nll(logits: ArrayLike, truth: ArrayLike) -> float:
    """Mean −log p(truth). Takes logits [N, C], or log-probabilities, which are their own log-softmax."""
    logs = log_softmax(logits)
    labels = places(truth, "truth", *logs.shape)
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
    at = np.searchsorted(np.arange(1, within(bins, "bins", 0, math.inf)) / bins, top, side="left")
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
    scores = finite(logits, "logits")
    labels = places(truth, "truth", *scores.shape)
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
    return float(np.mean(finite(probabilities, "probabilities").max(axis=1) >= threshold))


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
    return min(quantile_of(1 - shares[np.arange(len(labels)), labels], coverage), 1.0)


def quantile_of(scores: ArrayLike, coverage: float) -> float:
    """The ⌈(n+1) · coverage⌉-th smallest of n held-out scores: a score to come lies at or below it with probability ≥
    `coverage` (split conformal: Vovk et al. 2005). Infinite where n is too small for that rank."""
    found = np.sort(finite(scores, "scores", 1))
    rank = math.ceil((len(found) + 1) * within(coverage, "coverage", 0, 1) - 1e-9)  # 100 · 0.07 > 7 in binary
    return float(found[rank - 1]) if rank <= len(found) else math.inf


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


def macro_f1_of(weights: NDArray[np.float32], truth: Ints, predicted: Ints, classes: int) -> Floats:
    """Macro-F1 [R] of R resamples, given how often each drew each row [R, N]: three matrix products."""
    occurs, guessed = (labels[:, None] == np.arange(classes) for labels in (truth, predicted))
    return _macro_f1(*(weights @ hot.astype(np.float32) for hot in (occurs & guessed, occurs, guessed)))


def _errors(truth: ArrayLike, said: ArrayLike) -> Floats:
    numbers, answers = finite(truth, "truth", 1), finite(said, "said", 1)
    if len(numbers) != len(answers):
        raise ValueError(f"the arrays have {len(numbers)} and {len(answers)} rows, expected the same rows")
    return answers - numbers


def _judged(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Floats, Ints]:
    shares = finite(probabilities, "probabilities")
    if shares.min() < 0 or not np.allclose(shares.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must not be negative and must sum to 1 in each row: apply softmax first")
    return shares, places(truth, "truth", *shares.shape)


def _table(values: ArrayLike) -> Ints:
    counts = integers(values, "confusion", 2)
    if counts.shape[0] != counts.shape[1] or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"confusion {counts.shape} must be square and hold counts, not all 0")
    return counts
