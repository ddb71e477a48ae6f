"""One judge for every backend: a Predictor, a split of a manifest, a Report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import console, intervals, metrics
from agrikd.data.manifest import Manifest, numbers_of
from agrikd.errors import InputError, Problem, listed
from agrikd.predict._base import Predictor
from agrikd.types import ModelSpec, Prediction

_WORST = 12


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over images (over groups, where the manifest names them)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassReport:
    """How one class fared; precision, recall and f1 in [0, 1], 0 where undefined; rows with that label."""

    name: str
    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True)
class Mistake:
    """A photo the model was most sure about and wrong."""

    path: str
    truth: str
    said: str
    probability: float


@dataclass(frozen=True)
class Decisions:
    """What the calibration's promises came to on these rows: shares in [0, 1].

    answered: not "unsure". risk: error among the answered. covered: the candidate set held the truth.
    set_size: mean size of that set.
    """

    answered: float
    risk: float
    covered: float
    set_size: float


@dataclass(frozen=True)
class Refusals:
    """How many were called "not a plant I know": of `plants` labelled photos, and of `others`, pictures of no plant."""

    plants: int
    plants_refused: int
    others: int
    others_refused: int

    def __str__(self) -> str:
        counted = (
            (self.plants_refused, self.plants, "plants"),
            (self.others_refused, self.others, "pictures of no plant"),
        )
        return " and ".join(f"{k} of {n} {what} ({100 * k / n:.1f}\u00a0%)" for k, n, what in counted if n)


@dataclass(frozen=True)
class Report:
    """What a model is worth on a split.

    ece: expected calibration error, 15 bins. nll: mean log loss in nats. confusion[i][j]: rows of class i called
    j. agreement, kl: with the teacher on the same rows. ms_per_image: median wall time of one photo at a
    time, from pixels to prediction, on `threads` threads. refusals: None where the model does not say them.
    """

    model: str
    backend: str
    data_digest: str
    split: str
    rows: int
    classes: tuple[str, ...]
    accuracy: Estimate
    macro_f1: Estimate
    nll: float
    ece: float
    brier: float
    per_class: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[tuple[float, float, int], ...]
    worst: tuple[Mistake, ...]
    decisions: Decisions | None
    teacher: str | None
    agreement: float | None
    kl: float | None
    parameters: int
    size_bytes: int
    ms_per_image: float
    refusals: Refusals | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Report:
        made = {
            "classes": tuple(value["classes"]),
            "accuracy": Estimate(**value["accuracy"]),
            "macro_f1": Estimate(**value["macro_f1"]),
            "per_class": tuple(ClassReport(**one) for one in value["per_class"]),
            "confusion": tuple(tuple(row) for row in value["confusion"]),
            "reliability": tuple((a, b, n) for a, b, n in value["reliability"]),
            "worst": tuple(Mistake(**one) for one in value["worst"]),
            "decisions": Decisions(**value["decisions"]) if value["decisions"] else None,
            "refusals": Refusals(**value["refusals"]) if value["refusals"] else None,
        }
        return cls(**{**value, **made})


def evaluate(predictor: Predictor, manifest: Manifest, split: str, teacher: Predictor | None = None) -> Report:
    """Judge `predictor` on the labelled rows of `split`.

    Raises `InputError` where the split has no labelled rows or a class the model does not know.
    """
    rows = manifest.indices(split, labelled=True)
    classes = predictor.spec.classes
    truth = truth_of(manifest, rows, predictor.spec, split)
    predictions, seconds = predict_rows(predictor, manifest, rows)
    logits = np.stack([p.logits for p in predictions])
    probabilities = np.stack([p.probabilities for p in predictions])
    top = probabilities.argmax(axis=1)
    table = metrics.confusion(truth, top, len(classes))
    groups = groups_of(manifest, rows)
    told = teacher_on(teacher, manifest, rows, classes)
    return Report(
        model=predictor.spec.name,
        backend=predictor.backend,
        data_digest=manifest.digest,
        split=split,
        rows=len(rows),
        classes=classes,
        accuracy=_accuracy(truth, top, groups),
        macro_f1=_macro_f1(truth, top, len(classes), groups),
        nll=metrics.nll(np.log(np.maximum(probabilities, 1e-30)), truth),
        ece=metrics.ece(probabilities, truth),
        brier=metrics.brier(probabilities, truth),
        per_class=_per_class(table, classes),
        confusion=tuple(tuple(int(n) for n in row) for row in table),
        reliability=_reliability(probabilities, truth),
        worst=_worst(manifest, rows, truth, predictions, classes),
        decisions=_decisions(predictor, predictions, truth),
        teacher=teacher.spec.name if teacher else None,
        agreement=metrics.agreement([p.top for p in told], top) if told else None,
        kl=metrics.kl(np.stack([p.logits for p in told]), logits) if told else None,
        parameters=predictor.parameters,
        size_bytes=predictor.size_bytes,
        ms_per_image=1000 * seconds,
        refusals=refusals(predictor, predictions, manifest, split),
    )


def predict_rows(predictor: Predictor, manifest: Manifest, rows: Sequence[int]) -> tuple[list[Prediction], float]:
    """A prediction for each row, and the median seconds of one photo (decoding of the file not counted)."""
    made, seconds = [], []
    for row in console.track(rows, f"judge {predictor.spec.name}"):
        pixels = manifest.photo(row)
        start = time.perf_counter()
        made += predictor([pixels])
        seconds.append(time.perf_counter() - start)
    return made, float(np.median(seconds))


def truth_of(manifest: Manifest, rows: Sequence[int], spec: ModelSpec, split: str) -> NDArray[Any]:
    """The rows' labels, [N]: int64 places in the model's classes, or float64 numbers on its scale."""
    if not rows:
        mend = f"splits with labels: {', '.join(_labelled_splits(manifest)) or 'none'}"
        raise InputError(Problem(f"split {split}", "has no labelled rows", mend))
    if spec.scale:
        return np.array(numbers_of(manifest, rows, spec.scale, f"split {split}"))
    labels, classes = [str(manifest.rows[row].target) for row in rows], spec.classes
    if strange := sorted(set(labels) - set(classes)):
        mend = f"the model knows {', '.join(classes)}"
        raise InputError(Problem(f"split {split}", f"has labels the model does not know: {', '.join(strange)}", mend))
    return np.array([classes.index(label) for label in labels], np.int64)


def _labelled_splits(manifest: Manifest) -> list[str]:
    return [split for split in ("train", "val", "test") if manifest.indices(split, labelled=True)]


def groups_of(manifest: Manifest, rows: Sequence[int]) -> list[str] | None:
    """What is resampled together; None where no row names a group."""
    named = [manifest.rows[row].group for row in rows]
    return [group or manifest.rows[row].path for group, row in zip(named, rows, strict=True)] if any(named) else None


def _accuracy(truth: NDArray[np.int64], top: NDArray[Any], groups: list[str] | None) -> Estimate:
    right = (truth == top).astype(np.float64)
    interval = intervals.bootstrap(
        lambda i: float(right[i].mean()), len(right), np.random.default_rng(0), groups=groups
    )
    return Estimate(float(right.mean()), interval.low, interval.high)


def _macro_f1(truth: NDArray[np.int64], top: NDArray[Any], classes: int, groups: list[str] | None) -> Estimate:
    value = metrics.macro_f1(metrics.confusion(truth, top, classes))
    interval = intervals.bootstrap_macro_f1(truth, top, classes, np.random.default_rng(0), groups=groups)
    return Estimate(value, interval.low, interval.high)


def _per_class(table: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ClassReport, ...]:
    figures = zip(classes, *metrics.precision_recall_f1(table), table.sum(axis=1), strict=True)
    return tuple(ClassReport(name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in figures)


def _reliability(probabilities: NDArray[Any], truth: NDArray[np.int64]) -> tuple[tuple[float, float, int], ...]:
    """(mean confidence, accuracy, rows) of each bin that holds rows."""
    bins = metrics.reliability(probabilities, truth)
    found = zip(bins.confidence, bins.accuracy, bins.rows, strict=True)
    return tuple((float(c), float(a), int(n)) for c, a, n in found if n)


def _worst(
    manifest: Manifest,
    rows: Sequence[int],
    truth: NDArray[np.int64],
    predictions: Sequence[Prediction],
    classes: tuple[str, ...],
) -> tuple[Mistake, ...]:
    mistakes = [
        Mistake(manifest.rows[row].path, classes[t], classes[p.top], float(p.probabilities[p.top]))
        for row, t, p in zip(rows, truth, predictions, strict=True)
        if p.top != t
    ]
    return tuple(sorted(mistakes, key=lambda mistake: -mistake.probability)[:_WORST])


def teacher_on(
    teacher: Predictor | None, manifest: Manifest, rows: Sequence[int], classes: tuple[str, ...]
) -> list[Prediction]:
    """What the teacher says of the rows; nothing where there is none."""
    if teacher is None:
        return []
    if teacher.spec.scale is None and teacher.spec.classes != classes:
        known = listed(teacher.spec.classes)
        raise InputError(Problem(f"teacher {teacher.spec.name}", f"knows other classes: {known}"))
    return predict_rows(teacher, manifest, rows)[0]


def refusals(
    predictor: Predictor, predictions: Sequence[Prediction], manifest: Manifest, split: str
) -> Refusals | None:
    """Of the split's labelled photos, which got these predictions, and of its pictures of no plant."""
    if any(one.unknown is None for one in predictions):
        return None
    others = predict_rows(predictor, manifest, manifest.others(split))[0] if manifest.others(split) else []
    refused, others_refused = (sum(bool(one.unknown) for one in said) for said in (predictions, others))
    return Refusals(len(predictions), refused, len(others), others_refused)


def _decisions(predictor: Predictor, predictions: Sequence[Prediction], truth: NDArray[np.int64]) -> Decisions | None:
    if predictor.spec.calibration is None:
        return None
    right = np.array([p.top == t for p, t in zip(predictions, truth, strict=True)])
    answered = np.array([not p.unsure for p in predictions])
    return Decisions(
        answered=float(answered.mean()),
        risk=float(1 - right[answered].mean()) if answered.any() else 0.0,
        covered=float(np.mean([t in p.candidates for p, t in zip(predictions, truth, strict=True)])),
        set_size=float(np.mean([len(p.candidates) for p in predictions])),
    )
