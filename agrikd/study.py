"""What a comparison found: a table, verdicts in words, learning curves, and accuracy against cost."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agrikd import files, intervals, pages, plots, study_plots
from agrikd.grid import ALONE, POOL, RANDOM_HEAD, TEACHER, Place
from agrikd.intervals import Difference, Pair
from agrikd.types import figure


@dataclass(frozen=True)
class Measure:
    """What runs of a study are compared by: a key of their figures, in words.

    unit: of a mean error, where less is better; None for macro-F1. beside: titles and keys of the other figures.
    """

    key: str
    words: str
    unit: str | None
    beside: tuple[tuple[str, str], ...]

    def better(self, one: float, other: float) -> bool:
        return one > other if self.unit is None else one < other


OF_CLASSES = Measure("macro_f1", "macro-F1", None, (("accuracy",) * 2, ("ECE", "ece"), ("agreement",) * 2))


def of_numbers(unit: str) -> Measure:
    beside = (("RMSE", "rmse"), ("R²", "r2"), ("from teacher", "apart"))
    return Measure("mae", f"MAE, {unit}".rstrip(", "), unit, beside)


@dataclass(frozen=True)
class Judged:
    """One run on the test split: its row of runs.csv, and what it said. truth, said: [N], classes or numbers."""

    place: Place
    arm: str
    seed: int
    figures: Mapping[str, float]
    refused: str
    truth: NDArray[Any]
    said: NDArray[Any]

    @property
    def row(self) -> dict[str, Any]:
        own = {"data": self.place.data, "labels": self.place.labels or "all", "student": self.place.student}
        return {**own, "arm": self.arm, "seed": self.seed, **self.figures, "gate": self.refused or "passed"}


@dataclass(frozen=True)
class Arm:
    """One arm at one place: figures over seeds, and the difference to the student alone."""

    place: Place
    arm: str
    figures: Mapping[str, tuple[float, ...]]
    difference: Difference | None
    refused: int
    measure: Measure = OF_CLASSES

    @property
    def score(self) -> float:
        """The mean of the study's measure over the seeds."""
        return float(np.mean(self.figures[self.measure.key]))

    @property
    def deviation(self) -> float:
        values = self.figures[self.measure.key]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        difference = self.difference and self.difference._asdict()
        own = {**asdict(self.place), "arm": self.arm, **self.figures}
        return {**own, "against_alone": difference, "refused": self.refused}

    @property
    def against(self) -> str:
        """The difference to the student alone, as a table's cell."""
        return intervals.brief(self.difference, self.measure.unit) if self.difference else "–"

    @property
    def spread(self) -> str:
        """The mean ± the standard deviation, which a single seed does not have."""
        one = len(self.figures[self.measure.key]) == 1
        return self._figure(self.score) + ("" if one else f"\u00a0±\u00a0{self._figure(self.deviation)}")

    def _figure(self, value: float) -> str:
        return f"{value:.3f}" if self.measure.unit is None else figure(value)

    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        own = (self.place.data, str(self.place.labels or "all"), self.place.student, self.arm)
        *beside, like_teacher = (self._figure(float(np.mean(self.figures[key]))) for _, key in self.measure.beside)
        return (
            *own,
            self.spread,
            self.against,
            *beside,
            "–" if self.arm == TEACHER else like_teacher,
            f"{np.mean(self.figures['minutes']):.1f}",
        )


@dataclass(frozen=True)
class Cost:
    """Of one net: parameters, bytes of its float32 weights, and median ms a photo on one thread of this machine."""

    parameters: int
    size_bytes: int
    ms_per_image: float


class Tested(NamedTuple):
    """A dataset's test split: how many photos, and the share of its largest class (None: numbers)."""

    photos: int
    largest: float | None


@dataclass(frozen=True)
class Study:
    """All arms, each arm's difference averaged over the places where it was tried, what the nets cost, and what each
    dataset was tested on."""

    seeds: int
    steps: tuple[int, ...]
    arms: tuple[Arm, ...]
    overall: Mapping[str, Difference]
    costs: Mapping[str, Cost]
    tested: Mapping[str, Tested]
    measure: Measure = OF_CLASSES

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table whose rows are the arms' cells."""
        own = ("data", self.arms[0].place.of, "student", "arm", f"{self.measure.words} (mean ± sd)")
        return (*own, self._against, *(title for title, _ in self.measure.beside), "minutes a run")

    @property
    def _against(self) -> str:
        return f"against alone, {'points' if self.measure.unit is None else self.measure.unit}".rstrip(", ")

    def brief(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows for a terminal: of the places only what tells them apart."""
        own = [(arm.place.data, f"{arm.place.labels or 'all'} {arm.place.of}", arm.place.student) for arm in self.arms]
        students = [place for place, arm in zip(own, self.arms, strict=True) if arm.arm != TEACHER]
        apart = [part for part, values in enumerate(zip(*students, strict=True)) if len(set(values)) > 1]
        where = [", ".join(place[part] for part in apart) for place in own]
        rows = [(place, arm.arm, arm.spread, arm.against) for place, arm in zip(where, self.arms, strict=True)]
        columns = ("place", "arm", f"{self.measure.words} ± sd", self._against)
        first = 0 if apart else 1
        return columns[first:], [row[first:] for row in rows]

    def to_json(self) -> dict[str, Any]:
        overall = {arm: found._asdict() for arm, found in self.overall.items()}
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        arms = [arm.to_json() for arm in self.arms]
        own: dict[str, Any] = {"seeds": self.seeds, "steps": self.steps, "measure": self.measure.words}
        own["test_photos"] = {data: tested.photos for data, tested in self.tested.items()}
        return {**own, "arms": arms, "overall": overall, "costs": costs}

    def words(self) -> list[str]:
        """What the study comes to, in sentences."""
        unit, places = self.measure.unit, {arm.place for arm in self.arms if arm.arm == ALONE}
        said = {arm: [f"{arm} {intervals.verdict(found, unit=unit)}"] for arm, found in self.overall.items()}
        for arm, share in self._from_the_pool().items():
            said[arm].append(f"{arm}: {share}")
        verdicts = []
        for arm, sentences in said.items():
            tried = len(self._gains_of(arm))
            every = f"all {tried} places" if tried == len(places) else f"{tried} of {len(places)} places"
            verdicts += [f"over {every}: {one}" if len(places) > 1 else one for one in sentences]
        photos = ", ".join(f"{tested.photos} of {data}" for data, tested in self.tested.items())
        return [*verdicts, f"judged on the test photos: {photos}", *self.cautions()]

    def _gains_of(self, arm: str) -> dict[Place, float]:
        return {one.place: one.difference.mean for one in self.arms if one.arm == arm and one.difference}

    def _from_the_pool(self) -> dict[str, str]:
        """For each method that helps with the pool: how much of the gain the photos without labels brought, over the
        places that have such photos."""
        said = {}
        for arm, found in self.overall.items():
            own, without = self._gains_of(arm), self._gains_of(arm.removesuffix(POOL))
            if arm.endswith(POOL) and own.keys() <= without.keys() and found.low > 0:
                unit = self.measure.unit
                pool = float(np.mean([gain - without[place] for place, gain in own.items()]))
                share = f"{100 * pool:.1f} of {100 * found.mean:.1f} points".replace("-", "−")
                if unit is not None:
                    share = f"{figure(pool)} of {figure(found.mean)} {unit} of error"
                said[arm] = f"the photos without labels brought {share}"
        return said

    def summary(self) -> str:
        """How many of the arms help, in one sentence."""
        better = sum(found.low > 0 for found in self.overall.values())
        worse = sum(found.high < 0 for found in self.overall.values())
        said = f"{better} of {len(self.overall)} ways of training are better than the student alone, {worse} worse"
        rest = len(self.overall) - better - worse
        return f"{said}; of {rest} the {self.seeds} seeds cannot tell." if rest else f"{said}."

    def cautions(self) -> list[str]:
        """Where nothing was learned, the teacher knew no more than the student or the gate refused it; few seeds."""
        alone = {arm.place: arm.score for arm in self.arms if arm.arm == ALONE}
        teacher = {(arm.place.data, arm.place.labels): arm for arm in self.arms if arm.arm == TEACHER}
        weak = [
            f"{place}: the teacher ({found.score:.3f}) is no better than the student alone ({value:.3f});"
            " find a better one first"
            for place, value in alone.items()
            if (found := teacher.get((place.data, place.labels))) and not self.measure.better(found.score, value)
        ]
        refused = [
            f"{arm.place}: the gate refused the teacher of {arm.refused} of {len(arm.figures[self.measure.key])} seeds"
            f" for {arm.arm}"
            for arm in self.arms
            if arm.refused and arm.arm != RANDOM_HEAD
        ]
        few = [f"{self.seeds} seeds say little of the chance of training: take at least 3"] if self.seeds < 3 else []
        return [*self._by_chance(), *weak, *refused, *few]

    def _by_chance(self) -> Iterator[str]:
        """Where the student alone is right no more often than one answer for all would be."""
        blind: dict[Place, dict[str, bool]] = defaultdict(dict)
        for arm in self.arms:
            photos, largest = self.tested[arm.place.data]
            if largest is not None and arm.arm not in (TEACHER, RANDOM_HEAD):
                right = float(np.mean(arm.figures["accuracy"]))
                blind[arm.place][arm.arm] = intervals.wilson(round(right * photos), photos).low <= largest
        for place, arms in blind.items():
            who = "no arm beats" if all(arms.values()) else "the student alone does not beat"
            if arms.get(ALONE):
                largest = self.tested[place.data].largest
                yield f"{who} chance at {place} (one answer for all is right in {largest:.0%}): train longer"

    def markdown(self) -> str:
        """The table for models/LOG.md."""
        lines = ["| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        lines += ["| " + " | ".join(arm.cells()) + " |" for arm in self.arms]
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.words())])

    def write(self, out: Path) -> None:
        """study.json, study.md, study.html, and each plot as a file."""
        pictures = self.pictures()
        files.write_json(out / "study.json", self.to_json())
        files.write_text(out / "study.md", self.markdown() + "\n")
        files.write_text(out / "study.html", self.html(pictures.values()))
        for name, picture in pictures.items():
            files.write_text(out / f"{name}.svg", plots.standalone(picture))

    def pictures(self) -> dict[str, Any]:
        """Name and SVG of each plot."""
        with plots.drawing():
            return dict([*self._gains(), *self._curves(), *self._trades()])

    def html(self, pictures: Iterable[Any]) -> str:
        taught = {(arm.place.data, arm.place.labels): arm for arm in self.arms if arm.arm == TEACHER}
        places: dict[Place, list[Arm]] = defaultdict(list)
        for arm in self.arms:
            if arm.arm != TEACHER:
                places[arm.place].append(arm)
        tables = [
            (str(place), [arm.cells()[3:] for arm in (taught[place.data, place.labels], *arms)])
            for place, arms in places.items()
        ]
        values = {"study": self, "places": tables, "columns": self.columns[3:], "plots": list(pictures)}
        return pages.render("study.html", {}, title=f"Comparison over {self.seeds} seeds", **values)

    def _gains(self) -> Iterator[tuple[str, Any]]:
        """What each way of training gains over the student alone; a random teacher is a control, and off the scale."""
        arms: dict[str, dict[str, Difference]] = defaultdict(dict)
        for arm in self.arms:
            if arm.difference and arm.arm != RANDOM_HEAD:
                arms[arm.arm][str(arm.place)] = arm.difference
        if arms:
            unit = self.measure.unit
            words = f"points of {self.measure.words} more" if unit is None else f"{unit} of error less"
            yield (
                "gains",
                study_plots.gains(
                    arms, self.overall, f"{words} than the student alone", 100.0 if unit is None else 1.0
                ),
            )

    def _curves(self) -> Iterator[tuple[str, Any]]:
        """The measure over the labels, one picture a dataset and student with at least two numbers of them."""
        lines: dict[tuple[str, str], dict[str, list[Arm]]] = defaultdict(lambda: defaultdict(list))
        for arm in self.arms:
            if arm.arm != TEACHER:
                lines[arm.place.data, arm.place.student][arm.arm].append(arm)
        for (data, student), arms in lines.items():
            ticks = sorted({arm.place.labels or 0 for found in arms.values() for arm in found}, key=lambda n: n or 1e9)
            if len(ticks) > 1:
                points = {
                    name: {str(arm.place.labels or "all"): (arm.score, arm.deviation) for arm in found}
                    for name, found in arms.items()
                }
                axes = (self.arms[0].place.of, self.measure.words)
                values = [str(n or "all") for n in ticks]
                picture = study_plots.learning_curves(f"{data}, {student}", values, points, axes)
                yield f"curves_{data}_{student.replace('/', '-')}", picture

    def _trades(self) -> Iterator[tuple[str, Any]]:
        """The mean of each arm's measure against what its net costs, where there are several nets; over the places
        where every arm was tried, as the pool is not where all labels are known."""
        if len(self.costs) < 2:
            return
        tried: dict[str, set[tuple[str, int | None]]] = defaultdict(set)
        for arm in self.arms:
            tried[arm.arm].add((arm.place.data, arm.place.labels))
        if not (shared := set.intersection(*tried.values())):
            return
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for arm in self.arms:
            if (arm.place.data, arm.place.labels) in shared:
                found[arm.arm][arm.place.student].append(arm.score)
        for unit, key, scale in (("ms per photo", "ms_per_image", 1.0), ("MB", "size_bytes", 1e-6)):
            points = {
                arm: [
                    (scale * getattr(self.costs[net], key), float(np.mean(values)))
                    for net, values in nets.items()
                    if net in self.costs
                ]
                for arm, nets in found.items()
            }
            yield f"cost_{key}", study_plots.trades(unit, points, self.measure.words)


class Split(NamedTuple):
    """A dataset's test split: how many classes (None: numbers), and the names of what is resampled together (None: each
    row alone)."""

    classes: int | None
    groups: list[str] | None


def summed_up(
    judged: Sequence[Judged],
    steps: tuple[int, ...],
    costs: Mapping[str, Cost],
    splits: Mapping[str, Split],
    measure: Measure = OF_CLASSES,
) -> Study:
    """The study of all runs; every arm has the same seeds."""
    by_arm: dict[tuple[Place, str], list[Judged]] = defaultdict(list)
    for one in judged:
        by_arm[one.place, one.arm].append(one)
    arms: list[Arm] = []
    pairs: dict[str, list[Pair]] = defaultdict(list)
    datasets: dict[str, list[str]] = defaultdict(list)
    for (place, name), runs in by_arm.items():
        difference = None
        if name not in (ALONE, TEACHER):
            pair = _pair(by_arm[place, ALONE], runs, splits[place.data])
            pairs[name].append(pair)
            datasets[name].append(place.data)
            difference = intervals.paired_bootstrap(pair, np.random.default_rng(0))
        figures = {key: tuple(run.figures[key] for run in runs) for key in runs[0].figures}
        arms.append(Arm(place, name, figures, difference, sum(bool(run.refused) for run in runs), measure))
    overall = {
        name: intervals.paired_bootstrap_mean(found, np.random.default_rng(0), datasets=datasets[name])
        for name, found in pairs.items()
    }
    tested = {one.place.data: _tested(one.truth, splits[one.place.data].classes) for one in judged}
    return Study(len({one.seed for one in judged}), steps, tuple(arms), overall, costs, tested, measure)


def _tested(truth: NDArray[Any], classes: int | None) -> Tested:
    largest = None if classes is None else float(np.bincount(truth).max()) / len(truth)
    return Tested(len(truth), largest)


def _pair(alone: Sequence[Judged], runs: Sequence[Judged], split: Split) -> Pair:
    a, b = (np.stack([run.said for run in sorted(found, key=lambda run: run.seed)]) for found in (alone, runs))
    return Pair(runs[0].truth, a, b, *split)


def csv_of(judged: Iterable[Judged]) -> str:
    """runs.csv: a row a run."""
    rows = [one.row for one in judged]
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
