"""What models are worth, as one HTML page that opens anywhere: for an agronomist first, then for a researcher.

The page carries all it shows (styles, plots as SVG, thumbnails); it fetches nothing and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from agrikd import files, image, pages, plots
from agrikd.beside import Beside, ratio
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.evaluate import Mistake, Report
from agrikd.evaluate_numbers import NumberReport, Point

if TYPE_CHECKING:
    from typing import Unpack

    from markupsafe import Markup

_TILE = (180, 240)
CHANCE = "One training of each: of the chance of training this says nothing."


class Background(TypedDict, total=False):
    """How the models came to be; every part may be left out.

    gate: what a Run's gate.json says; exports: its artefacts.json. stages: the "stages" of a teacher Run's run.json.
    history: the lines of a Run's metrics.jsonl. facts: versions, digests and the like, by name.
    """

    gate: dict[str, Any] | None
    exports: list[dict[str, Any]] | None
    stages: list[dict[str, Any]] | None
    history: list[dict[str, float]] | None
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Line:
    """A class in a model's table; a share is None where nothing defines it (no such photo, never said)."""

    name: str
    rows: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Tile:
    """A mistake as a picture: a data URI, or "" and why there is none."""

    mistake: Mistake | Point
    picture: str
    why: str


@dataclass(frozen=True)
class _Model:
    """One model's part of the page."""

    label: str
    report: Report
    lines: tuple[_Line, ...]
    tiles: tuple[Tile, ...]
    matrix: Markup
    reliability: Markup


def write_report(
    path: Path,
    reports: Sequence[tuple[str, Report]],
    *,
    title: str,
    manifest: Manifest,
    note: str = "",
    **background: Unpack[Background],
) -> None:
    """Write the page for labelled models judged on the same split; the last one is what the page is about.

    note: what a reader must know before anything else ("a demonstration, not evidence").
    Raises `InputError` where there is no report, two share a label, or they were judged on other rows or classes.
    """
    if strange := set(background) - Background.__annotations__.keys():
        raise TypeError(f"write_report knows {sorted(Background.__annotations__)}, not {sorted(strange)}")
    _check(reports)
    with plots.drawing():
        page = {
            "models": [_model(label, report, manifest) for label, report in reports],
            "mistake": "Share wrong",
            "words": _words(reports),
            "comparison": plots.comparison(reports),
            **around(reports, manifest, background),
        }
    files.write_text(path, pages.render("report.html", FILTERS, title=title, note=note, **page))


def around(
    reports: Sequence[tuple[str, Report | NumberReport]], manifest: Manifest, background: Background
) -> dict[str, Any]:
    """What every report says beside its figures: which photos, how training went, the gate, facts."""
    history = background.get("history") or []
    return {
        "photos": _photos(manifest),
        "synthetic": sum(row.source == "synthetic" for row in manifest.rows),
        "total": len(manifest.rows),
        "curves": plots.curves(history) if history else [],
        "gate": background.get("gate"),
        "exports": background.get("exports") or [],
        "stages": background.get("stages") or [],
        "facts": _facts(reports) | dict(background.get("facts", {})),
    }


def _check(reports: Sequence[tuple[str, Report]]) -> None:
    if not reports:
        raise InputError(Problem("reports", "there is none", "judge a model first"))
    labels = [label for label, _ in reports]
    if len(set(labels)) < len(labels):
        raise InputError(Problem("reports", f"two have the same label: {', '.join(labels)}"))
    # The data's digest is no part of this: it also covers training rows, which models may not share.
    judged = [(r.split, r.rows, r.classes, tuple(c.rows for c in r.per_class)) for _, r in reports]
    other = [label for label, what in zip(labels, judged, strict=True) if what != judged[-1]]
    if other:
        wrong = f"{', '.join(other)} and {labels[-1]} were judged on other rows or classes"
        raise InputError(Problem("reports", wrong, "judge them on the same split"))


def _model(label: str, report: Report, manifest: Manifest) -> _Model:
    known = {row.path for row in manifest.rows}
    tiles = tuple(Tile(mistake, *picture_of(mistake.path, manifest.root, known)) for mistake in report.worst)
    return _Model(label, report, _lines(report), tiles, plots.matrix(label, report), plots.reliability(label, report))


def _lines(report: Report) -> tuple[_Line, ...]:
    said = [sum(column) for column in zip(*report.confusion, strict=True)]
    return tuple(
        _Line(
            plots.readable(one.name),
            one.rows,
            one.precision if times else None,
            one.recall if one.rows else None,
            one.f1 if one.rows or times else None,
        )
        for one, times in zip(report.per_class, said, strict=True)
    )


def picture_of(path: str, root: Path, known: set[str]) -> tuple[str, str]:
    """A photo as a data URI, or "" and why there is none."""
    if path not in known:
        return "", "it is not in the manifest"
    try:
        pixels = image.read(root / path)
    except InputError as error:
        return "", error.problems[0].wrong
    return pages.picture(pixels, _TILE), ""


def _photos(manifest: Manifest) -> list[tuple[str, int, int]]:
    """(split, labelled, unlabelled) of each split that holds photos of the task."""
    counts = [(s, len(manifest.indices(s, True)), len(manifest.indices(s, False))) for s in ("train", "val", "test")]
    return [(split, labelled, rest) for split, labelled, rest in counts if labelled or rest]


def _facts(reports: Sequence[tuple[str, Report | NumberReport]]) -> dict[str, str]:
    made = {f"{label}: model and backend": f"{report.model}, {report.backend}" for label, report in reports}
    digests = {report.data_digest: None for _, report in reports}
    return {**made, "data digest": ", ".join(digests)}


def _words(reports: Sequence[tuple[str, Report]]) -> list[tuple[str, str]]:
    """(what it is about, sentences) on the last model, for a reader who knows plants and no statistics."""
    report = reports[-1][1]
    said = [("Right and wrong", _finds(report)), *_confusions(report), ("Its percentages", _trust(report))]
    return [*said, *_decisions(report), *stranger(report), *beside(reports, "macro-F1")]


def _finds(report: Report) -> str:
    right = sum(report.confusion[i][i] for i in range(len(report.classes)))
    accuracy = report.accuracy
    span = f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"
    said = [f"It names {right} of {report.rows} photos rightly. On other photos of this kind expect {span}."]
    there = [(one, report.confusion[i][i]) for i, one in enumerate(report.per_class) if one.rows]
    (best, hits), (worst, few) = (pick(there, key=lambda pair: pair[0].recall) for pick in (max, min))
    if best.recall > worst.recall:
        said.append(
            f"It finds {_quoted(best.name)} best ({hits} of {best.rows} photos) and "
            f"{_quoted(worst.name)} worst ({few} of {worst.rows})."
        )
    if absent := [_quoted(one.name) for one in report.per_class if not one.rows]:
        names = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        said.append(f"No photo here shows {names}: how well it does there is not known.")
    return " ".join(said)


def _confusions(report: Report) -> list[tuple[str, str]]:
    """The two most frequent confusions, the larger share of the class first among equals."""
    found = [
        (times, times / report.per_class[i].rows, i, j)
        for i, row in enumerate(report.confusion)
        for j, times in enumerate(row)
        if i != j and times
    ]
    if not found:
        return [("Confusions", "None on these photos.")]
    named = report.classes
    said = [
        f"{_quoted(named[i])} is called {_quoted(named[j])} in {times} of {report.per_class[i].rows} photos"
        for times, _, i, j in sorted(found, reverse=True)[:2]
    ]
    return [("Confusions", f"Most often, {'; next, '.join(said)}.")]


def _trust(report: Report) -> str:
    """What the calibration error comes to.

    On few photos honest percentages, too, are off: in a bin of n that claims c by E|N(0, c(1 − c)/n)|.
    """
    off, rows = report.ece, report.rows
    chance = sum(math.sqrt(2 * n * c * (1 - c) / math.pi) for c, _, n in report.reliability) / rows
    bias = sum(n * (c - a) for c, a, n in report.reliability) / rows
    said = f"they are off by {_points(off)} on average"
    if off <= max(1.5 * chance, 0.02):
        if chance > 0.05:
            return (
                f"Too few photos to tell: {said}, and on {rows} photos honest ones would be off by {_points(chance)}."
            )
        return f"They can be taken at their word: {said}, no more than chance explains on {rows} photos."
    claims = f"it claims {_percent(report.accuracy.value + bias)} and is right in {_percent(report.accuracy.value)}"
    lean = "" if abs(bias) < 0.02 else f" It is {'too sure' if bias > 0 else 'not sure enough'} of itself: {claims}."
    return f"{'Roughly right' if off <= 0.1 else 'Do not take them at their word'}: {said}.{lean}"


def _decisions(report: Report) -> list[tuple[str, str]]:
    d = report.decisions
    if d is None:
        return [("Unsure", "It was not calibrated: it always answers, with one name, whatever it is shown.")]
    if d.answered == 0:
        unsure = "It says “unsure” to every photo, so it is of no use as it stands."
    elif d.answered == 1:
        unsure = f"It answers every photo; {_percent(d.risk)} of the answers are wrong."
    else:
        unsure = (
            f"It answers {_percent(d.answered)} of the photos and says “unsure” to the rest. Of its answers "
            f"{_percent(d.risk)} are wrong; if it always answered, {_percent(1 - report.accuracy.value)} would be."
        )
    listed = (
        f"Its list of candidates holds the right name in {_percent(d.covered)} of the photos; "
        f"it is {d.set_size:.1f} names long on average, of {len(report.classes)}."
    )
    return [("Unsure", unsure), ("Short list", listed)]


def stranger(report: Report | NumberReport) -> list[tuple[str, str]]:
    """How it fared with "not a plant I know"."""
    found = report.refusals
    if found is None:
        return [
            ("Something else", "It does not notice it: shown something else than its plants, it answers all the same.")
        ]
    unseen = "" if found.others else " There was no picture of anything else: whether it notices one is not known."
    return [("Something else", f"As not a plant it knows it refuses {found}.{unseen}")]


def beside(reports: Sequence[tuple[str, Report | NumberReport]], what: str) -> list[tuple[str, str]]:
    """How the last model stands to each before it, in `what` they are judged by, in size and in time."""
    last, others = reports[-1][1], dict(reports)
    return [(f"Beside “{one.other}”", _beside(last, others[one.other], one, what)) for one in last.beside]


def _beside(report: Report | NumberReport, its: Report | NumberReport, found: Beside, what: str) -> str:
    ratios = [ratio(report.size_bytes, its.size_bytes, "smaller", "larger"), found.times]
    words = " and ".join(filter(None, ratios))
    than = f" It is {words} than “{found.other}”." if words else ""
    return f"In {what}, on the same photos: {found.words}. {CHANCE}{than}"


def _quoted(name: str) -> str:
    return f"“{plots.readable(name)}”"


def _percent(share: float) -> str:
    """Whole per cent; what is not all or nothing is not rounded to it."""
    if 0 < share < 0.005 or 0.995 <= share < 1:
        return "under 1\u00a0%" if share < 0.5 else "over 99\u00a0%"
    return f"{100 * share:.0f}\u00a0%"


def _points(share: float) -> str:
    return f"{100 * share:.0f}\u00a0points" if share >= 0.015 else "1\u00a0point"


def _three_figures(value: float) -> str:
    text = f"{value:.3g}" if value < 1000 else f"{value:,.0f}".replace(",", "\u00a0")
    return text.replace("-", "−")


def _count(number: int) -> str:
    """A number of parameters: 1.52 M, or each one below a hundred thousand."""
    return f"{_three_figures(number / 1e6)}\u00a0M" if number >= 100_000 else f"{number:,}".replace(",", "\u00a0")


FILTERS: dict[str, Callable[..., str]] = {
    "percent": _percent,
    "count": _count,
    "figure": _three_figures,
    "readable": plots.readable,
}
