"""`evaluate` for numbers: how far off a Predictor is on a split of a manifest, and whether its intervals hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import intervals, metrics
from agrikd.beside import Answered, Beside, Rows
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.evaluate import Estimate, Refusals, answer, groups_of, refusals, truth_of
from agrikd.predict._base import Predictor
from agrikd.types import Scale

_WORST = 12


@dataclass(frozen=True)
class Point:
    """A photo, its number, what was said of it, and the interval where the model was calibrated."""

    path: str
    truth: float
    said: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class NumberReport:
    """What a model is worth on a split, in the scale's unit.

    mae, rmse, r2: with 95 % bootstrap intervals. bias: mean of said − truth. at_median: the MAE of always saying the
    median of the labelled training photos. covered: share of photos whose interval holds the truth, of which
    `promised` was the aim; width: of the interval, mean; all three None without a calibration. points: every photo, the
    worst first. apart: mean distance from the teacher. ms_per_image, refusals, calibrated,
    beside: as in `Report`.
    """

    model: str
    backend: str
    data_digest: str
    split: str
    rows: int
    scale: Scale
    mae: Estimate
    rmse: Estimate
    r2: Estimate
    bias: float
    at_median: float | None
    covered: float | None
    promised: float | None
    width: float | None
    points: tuple[Point, ...]
    teacher: str | None
    apart: float | None
    parameters: int
    size_bytes: int
    ms_per_image: float
    refusals: Refusals | None = None
    calibrated: bool = False
    beside: tuple[Beside, ...] = ()

    @property
    def worst(self) -> tuple[Point, ...]:
        return self.points[:_WORST]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_numbers(
    predictor: Predictor, manifest: Manifest, split: str, teacher: Predictor | None = None
) -> NumberReport:
    """`evaluate_all_numbers` of one model; the distance is measured from `teacher`."""
    models = {"model": predictor, **({"teacher": teacher} if teacher else {})}
    return evaluate_all_numbers(models, manifest, split, "teacher" if teacher else None)["model"]


def evaluate_all_numbers(
    predictors: Mapping[str, Predictor], manifest: Manifest, split: str, teacher: str | None = None
) -> dict[str, NumberReport]:
    """Judge models whose specs have the same scale, by label, on the labelled rows of `split`.

    Raises `InputError` where the split has no labelled rows or the models have different scales.
    """
    rows, spec = manifest.indices(split, labelled=True), next(iter(predictors.values())).spec
    assert spec.scale
    truth = truth_of(manifest, rows, spec, split)
    scales = {label: one.spec.scale for label, one in predictors.items()}
    if strange := [label for label, scale in scales.items() if scale is None or scale.range != spec.scale.range]:
        raise InputError([Problem(label, "speaks of another scale, or of classes") for label in strange])
    answered = answer(predictors, manifest, rows)
    judged = Rows(truth, None, groups_of(manifest, rows), spec.scale.unit)
    told = {label: answered[teacher] if teacher and teacher != label else None for label in answered}
    return {label: _report(answered, label, judged, told[label], (manifest, split)) for label in answered}


def _report(
    answered: Mapping[str, Answered], label: str, judged: Rows, told: Answered | None, where: tuple[Manifest, str]
) -> NumberReport:
    own, truth, groups, (manifest, split) = answered[label], judged.truth, judged.groups, where
    predictor, predictions, said = own.predictor, own.predictions, own.said
    rows, spec = manifest.indices(split, labelled=True), predictor.spec
    assert spec.scale
    ends = [one.interval for one in predictions if one.interval]
    held = [low <= value <= high for (low, high), value in zip(ends, truth, strict=bool(ends))]
    points = [
        Point(manifest.rows[row].path, float(value), float(answer), one.interval)
        for row, value, answer, one in zip(rows, truth, said, predictions, strict=True)
    ]
    return NumberReport(
        model=spec.name,
        backend=predictor.backend,
        data_digest=manifest.digest,
        split=split,
        rows=len(rows),
        scale=spec.scale,
        mae=_estimate(metrics.mae, truth, said, groups),
        rmse=_estimate(metrics.rmse, truth, said, groups),
        r2=_estimate(metrics.r2, truth, said, groups),
        bias=float(np.mean(said - truth)),
        at_median=_at_median(manifest, predictor, truth),
        covered=float(np.mean(held)) if held else None,
        promised=spec.calibration.coverage if spec.calibration else None,
        width=float(np.mean([high - low for low, high in ends])) if ends else None,
        points=tuple(sorted(points, key=lambda point: -abs(point.said - point.truth))),
        teacher=told.predictor.spec.name if told else None,
        apart=metrics.mae(told.said, said) if told else None,
        parameters=predictor.parameters,
        size_bytes=predictor.size_bytes,
        ms_per_image=own.ms,
        refusals=refusals(predictor, predictions, manifest, split),
        calibrated=spec.calibration is not None,
        beside=judged.beside(answered, label),
    )


def _at_median(manifest: Manifest, predictor: Predictor, truth: NDArray[Any]) -> float | None:
    """None where no training photo has a label, as in a manifest made to judge by."""
    if not (rows := manifest.indices("train", labelled=True)):
        return None
    return metrics.mae(truth, np.full(len(truth), np.median(truth_of(manifest, rows, predictor.spec, "train"))))


def _estimate(
    metric: Callable[[NDArray[Any], NDArray[Any]], float],
    truth: NDArray[Any],
    said: NDArray[Any],
    groups: list[str] | None,
) -> Estimate:
    rng = np.random.default_rng(0)
    interval = intervals.bootstrap(lambda i: metric(truth[i], said[i]), len(truth), rng, groups=groups)
    return Estimate(metric(truth, said), interval.low, interval.high)
