"""What a Run is worth: its reports (`agrikd evaluate`), and its predictions on rows that it never learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from agrikd import metrics
from agrikd.errors import InputError, Problem
from agrikd.gallery.texts import json_of, shown
from agrikd.run import Run

HELD_OUT = "held out"
"""The name of what is no split."""
_MOST_REPORTS, _MOST_CLASSES = 10, 1000
_MOST_HELD_OUT_BYTES = 2**28
_ESTIMATES = ("accuracy", "macro_f1", "mae", "rmse", "r2")
_NUMBERS = ("ece", "nll", "brier", "bias", "covered", "width", "agreement", "kl", "apart", "ms_per_image", "size_bytes")
_DECISIONS = ("answered", "risk", "covered", "set_size")


class Figure(NamedTuple):
    """A number and its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Point(NamedTuple):
    """A photo's number and what was said of it; `low` and `high` are the interval, where there is one."""

    truth: float
    said: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Judgement:
    """figures: by the names of `agrikd.evaluate.Report`'s fields. confusion[i][j]: rows of class i called j.
    reliability: (mean confidence, share right, rows) of each bin. points: of numbers, in `unit`. The last three are
    empty where the answer is of the other kind."""

    split: str
    rows: int
    figures: dict[str, Figure]
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    reliability: tuple[tuple[float, float, int], ...] = ()
    points: tuple[Point, ...] = ()
    unit: str = ""

    @property
    def sample(self) -> tuple[Any, ...]:
        """Equal for Runs that were judged on the same photos, as far as a report tells."""
        truths = sorted(point.truth for point in self.points)
        return self.rows, self.classes, [sum(row) for row in self.confusion], truths

    @property
    def confusions(self) -> list[tuple[str, str, int, int]]:
        """(class, what it was called, how often, of how many), the most frequent first."""
        found = [
            (self.classes[i], self.classes[j], times, sum(row))
            for i, row in enumerate(self.confusion)
            for j, times in enumerate(row)
            if i != j and times
        ]
        return sorted(found, key=lambda one: -one[2])


def judgements(run: Run, record: dict[str, Any]) -> tuple[list[Judgement], list[str]]:
    """Of each split it was judged on, the test split first, and of its held-out rows; and what of this cannot be read,
    in words. record: what its run.json says."""
    found, wrong = [], []
    paths = sorted(islice(run.folder.glob("report_*.json"), _MOST_REPORTS), key=lambda p: (p.stem != "report_test", p))
    for path in paths:
        try:
            at = path.stat()
            found.append(_report(path, at.st_mtime_ns, at.st_size))
        except (InputError, OSError) as error:
            wrong.append(shown(error))
    try:
        found += _held_out(run, record)
    except InputError as error:
        wrong.append(shown(error))
    return found, wrong


@lru_cache(maxsize=400)
def _report(path: Path, changed_ns: int, size_bytes: int) -> Judgement:
    said = json_of(path)
    try:
        numbers = "points" in said
        classes = () if numbers else tuple(str(name) for name in said["classes"])
        return Judgement(
            split=str(said["split"]),
            rows=int(said["rows"]),
            figures=dict(_figures(said)),
            classes=classes,
            confusion=() if numbers else _table(said["confusion"], len(classes)),
            reliability=() if numbers else tuple(_bins(said["reliability"])),
            points=tuple(_points(said["points"])) if numbers else (),
            unit=str(said["scale"]["unit"]) if numbers else "",
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise InputError(Problem(str(path), "is no report", "make it again: agrikd evaluate RUN")) from None


def _table(said: list[list[int]], classes: int) -> tuple[tuple[int, ...], ...]:
    rows = tuple(tuple(int(n) for n in row) for row in said)
    if classes > _MOST_CLASSES or [len(row) for row in rows] != [classes] * classes or min(map(min, rows)) < 0:
        raise ValueError("no confusion of these classes")
    return rows


def _bins(said: list[tuple[float, float, int]]) -> Iterator[tuple[float, float, int]]:
    for confidence, right, rows in said:
        if not (0 <= confidence <= 1 and 0 <= right <= 1 and rows >= 1):
            raise ValueError("no shares of rows")
        yield float(confidence), float(right), int(rows)


def _figures(said: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for name in _ESTIMATES:
        if name in said:
            yield name, Figure(*(float(said[name][part]) for part in Figure._fields))
    decisions = said.get("decisions") or {}
    for name in (*_NUMBERS, *_DECISIONS):
        value = decisions.get(name) if name in decisions else said.get(name)
        meaningless = name == "risk" and not decisions.get("answered")  # of no answers none is wrong
        if value is not None and not meaningless:
            yield name, Figure(float(value))
    refusals = said.get("refusals") or {}
    for kind in ("plants", "others"):
        if refusals.get(kind):
            yield f"{kind}_refused", Figure(float(refusals[f"{kind}_refused"]) / float(refusals[kind]))


def _points(said: list[dict[str, Any]]) -> Iterator[Point]:
    for one in said:
        yield Point(float(one["truth"]), float(one["said"]), *map(float, one.get("interval") or ()))


def _held_out(run: Run, record: dict[str, Any]) -> Iterator[Judgement]:
    path = run.folder / "held_out.npz"
    if not path.exists():
        return
    try:
        with ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > _MOST_HELD_OUT_BYTES:
                raise InputError(Problem(str(path), "is too large"))
    except (BadZipFile, OSError) as error:
        raise InputError(Problem(str(path), f"is damaged ({error})")) from None
    found, scale = run.held_out(), run.recipe.task.scale
    assert found
    truth, logits = found
    try:
        shares = metrics.softmax(logits)
        if scale:
            said = scale.values(shares)
            figures = {name: Figure(getattr(metrics, name)(truth, said)) for name in ("mae", "rmse", "r2")}
            points = tuple(Point(float(t), float(s)) for t, s in zip(truth, said, strict=True))
            yield Judgement(HELD_OUT, len(truth), figures, points=points, unit=scale.unit)
            return
        classes = tuple(str(name) for name in record.get("classes", ()))
        table = metrics.confusion(truth, shares.argmax(axis=1), len(classes))
        bins = zip(*metrics.reliability(shares, truth), strict=True)
        yield Judgement(
            split=HELD_OUT,
            rows=len(truth),
            figures={
                "accuracy": Figure(metrics.accuracy(truth, shares.argmax(axis=1))),
                "macro_f1": Figure(metrics.macro_f1(table)),
                "ece": Figure(metrics.ece(shares, truth)),
            },
            classes=classes,
            confusion=tuple(tuple(int(n) for n in row) for row in table),
            reliability=tuple((float(c), float(a), int(n)) for c, a, n in bins if n),
        )
    except (TypeError, ValueError, MemoryError) as error:
        raise InputError(Problem(str(path), f"holds no predictions of this Run ({error})")) from None
