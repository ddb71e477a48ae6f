"""One judge for every backend: a Predictor, a split of a manifest, a Report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import console, intervals, metrics
from agrikd.beside import Answered, Beside, Rows
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
    j. agreement, kl: with the teacher on the same rows. calibrated: without it, ece and decisions are of raw
    probabilities. ms_per_image: median wall time of one photo at a time, from pixels to prediction; several models
    take turns photo by photo. refusals: None where the model does not say them. beside: how it stands to each of the
    models named before it.
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
    calibrated: bool = False
    beside: tuple[Beside, ...] = ()

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
            "beside": tuple(Beside(**{**one, "pace": one["pace"] and tuple(one["pace"])}) for one in value["beside"]),
        }
        return cls(**{**value, **made})


def evaluate(predictor: Predictor, manifest: Manifest, split: str, teacher: Predictor | None = None) -> Report:
    """`evaluate_all` of one model; agreement is measured with `teacher`."""
    models = {"model": predictor, **({"teacher": teacher} if teacher else {})}
    return evaluate_all(models, manifest, split, "teacher" if teacher else None)["model"]


def evaluate_all(
    predictors: Mapping[str, Predictor], manifest: Manifest, split: str, teacher: str | None = None
) -> dict[str, Report]:
    """Judge models, by label, on the labelled rows of `split`; agreement of the others is with the one named `teacher`.

    Raises `InputError` where the split has no labelled rows or a class the models do not know, or where the models
    know different classes.
    """
    rows = manifest.indices(split, labelled=True)
    first = next(iter(predictors.values())).spec
    truth = truth_of(manifest, rows, first, split)
    if other := {label: one.spec.classes for label, one in predictors.items() if one.spec.classes != first.classes}:
        raise InputError([Problem(label, f"knows other classes: {listed(known)}") for label, known in other.items()])
    answered = answer(predictors, manifest, rows)
    judged = Rows(truth, len(first.classes), groups_of(manifest, rows))
    told = {label: answered[teacher] if teacher and teacher != label else None for label in answered}
    return {label: _report(answered, label, judged, told[label], (manifest, split)) for label in answered}


def _report(
    answered: Mapping[str, Answered], label: str, judged: Rows, told: Answered | None, where: tuple[Manifest, str]
) -> Report:
    own, truth, (manifest, split) = answered[label], judged.truth, where
    predictor, predictions, rows = own.predictor, own.predictions, manifest.indices(split, labelled=True)
    classes, top = predictor.spec.classes, own.said
    logits = np.stack([p.logits for p in predictions])
    probabilities = np.stack([p.probabilities for p in predictions])
    table = metrics.confusion(truth, top, len(classes))
    return Report(
        model=predictor.spec.name,
        backend=predictor.backend,
        data_digest=manifest.digest,
        split=split,
        rows=len(rows),
        classes=classes,
        accuracy=_accuracy(truth, top, judged.groups),
        macro_f1=_macro_f1(truth, top, len(classes), judged.groups),
        nll=metrics.nll(np.log(np.maximum(probabilities, 1e-30)), truth),
        ece=metrics.ece(probabilities, truth),
        brier=metrics.brier(probabilities, truth),
        per_class=_per_class(table, classes),
        confusion=tuple(tuple(int(n) for n in row) for row in table),
        reliability=_reliability(probabilities, truth),
        worst=_worst(manifest, rows, truth, predictions, classes),
        decisions=_decisions(predictor, predictions, truth),
        teacher=told.predictor.spec.name if told else None,
        agreement=metrics.agreement(told.said, top) if told else None,
        kl=metrics.kl(np.stack([p.logits for p in told.predictions]), logits) if told else None,
        parameters=predictor.parameters,
        size_bytes=predictor.size_bytes,
        ms_per_image=own.ms,
        refusals=refusals(predictor, predictions, manifest, split),
        calibrated=predictor.spec.calibration is not None,
        beside=judged.beside(answered, label),
    )


def answer(predictors: Mapping[str, Predictor], manifest: Manifest, rows: Sequence[int]) -> dict[str, Answered]:
    """What each model says of each row, and how long it took (decoding of the file not counted).

    Photo by photo the models take turns, and each photo begins with another one, so that a busy moment slows all
    alike. The first photo warms them up: its time counts only where it is the only one.
    """
    labels = list(predictors)
    said: dict[str, list[Prediction]] = {label: [] for label in labels}
    seconds = np.zeros((len(rows), len(labels)))
    for number, row in enumerate(console.track(rows, f"judge {', '.join(labels)}")):
        pixels = manifest.photo(row)
        for place in np.roll(np.arange(len(labels)), number):
            start = time.perf_counter()
            said[labels[place]] += predictors[labels[place]]([pixels])
            seconds[number, place] = time.perf_counter() - start
    warm = seconds[1:] if len(rows) > 1 else seconds
    return {label: Answered(predictors[label], said[label], warm[:, place]) for place, label in enumerate(labels)}


def predict_rows(predictor: Predictor, manifest: Manifest, rows: Sequence[int]) -> list[Prediction]:
    """A prediction for each row."""
    return answer({predictor.spec.name: predictor}, manifest, rows)[predictor.spec.name].predictions


def truth_of(manifest: Manifest, rows: Sequence[int], spec: ModelSpec, split: str) -> NDArray[Any]:
    """The rows' labels, [N]: int64 places in the model's classes, or float64 numbers on its scale."""
    if not rows:
        raise InputError(Problem(f"split {split}", "has no labelled rows", _other_split(manifest, split)))
    if spec.scale:
        return np.array(numbers_of(manifest, rows, spec.scale, f"split {split}"))
    labels, classes = [str(manifest.rows[row].target) for row in rows], spec.classes
    if strange := sorted(set(labels) - set(classes)):
        mend = f"the model knows {', '.join(classes)}"
        raise InputError(Problem(f"split {split}", f"has labels the model does not know: {', '.join(strange)}", mend))
    return np.array([classes.index(label) for label in labels], np.int64)


def _other_split(manifest: Manifest, split: str) -> str:
    """What to judge on where `split` has no labels."""
    known = [split for split in ("train", "val", "test") if manifest.indices(split, labelled=True)]
    mend = f"splits with labels: {', '.join(known) or 'none'}"
    if split == "val" and "test" in known:
        mend += (
            "; agrikd data split MANIFEST.csv writes a manifest with a val split, for new Runs; "
            "--split test reads the test set, and each reading is counted: do it once, at the end"
        )
    return mend


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


def refusals(
    predictor: Predictor, predictions: Sequence[Prediction], manifest: Manifest, split: str
) -> Refusals | None:
    """Of the split's labelled photos, which got these predictions, and of its pictures of no plant."""
    if any(one.unknown is None for one in predictions):
        return None
    others = predict_rows(predictor, manifest, manifest.others(split))
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
