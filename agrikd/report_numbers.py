"""What models that answer with a number are worth, as one HTML page: the page of `agrikd.report` for regression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agrikd import files, pages, plots
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.evaluate_numbers import NumberReport
from agrikd.report import FILTERS, Background, Tile, around, beside, picture_of, stranger

if TYPE_CHECKING:
    from typing import Unpack


def write_number_report(
    path: Path,
    reports: Sequence[tuple[str, NumberReport]],
    *,
    title: str,
    manifest: Manifest,
    note: str = "",
    **background: Unpack[Background],
) -> None:
    """Write the page for labelled models judged on the same split; the last one is what the page is about.

    Raises `InputError` where they were judged on other rows or scales.
    """
    judged = {(report.split, report.rows, report.scale.range) for _, report in reports}
    if len(judged) != 1:
        raise InputError(Problem("reports", "were judged on other rows or scales", "judge them on the same split"))
    main, known = reports[-1][1], {row.path for row in manifest.rows}
    unit = main.scale.unit
    with plots.drawing():
        page = {
            "models": [(label, report, plots.scatter(label, report)) for label, report in reversed(reports)],
            "tiles": [Tile(point, *picture_of(point.path, manifest.root, known)) for point in main.worst],
            "unit": unit,
            "mistake": f"Off by, {unit}".rstrip(", "),
            "words": _words(reports),
            **around(reports, manifest, background),
        }
    filters = {**FILTERS, "amount": main.scale.said}
    files.write_text(path, pages.render("report_numbers.html", filters, title=title, note=note, **page))


def _words(reports: Sequence[tuple[str, NumberReport]]) -> list[tuple[str, str]]:
    """(what it is about, sentences) on the last model, for a reader who knows plants and no statistics."""
    report = reports[-1][1]
    return [
        ("How far off", _off(report)),
        ("Its lean", _lean(report)),
        ("Its intervals", _trust(report)),
        *stranger(report),
        *beside(reports, "mean error"),
    ]


def _off(report: NumberReport) -> str:
    mae = report.mae
    ends = " to ".join(report.scale.said(value) for value in (mae.low, mae.high))
    said = f"On average it is off by {report.scale.said(mae.value)}; on other photos of this kind expect {ends}."
    if report.at_median is None:
        return said
    return f"{said} Always saying the median of the training photos is off by {report.scale.said(report.at_median)}."


def _lean(report: NumberReport) -> str:
    if abs(report.bias) <= 0.1 * report.mae.value:
        return "None: what it says too much and too little is about the same."
    lean = "much" if report.bias > 0 else "little"
    return f"On average it says {report.scale.said(abs(report.bias))} too {lean}."


def _trust(report: NumberReport) -> str:
    if report.covered is None or report.width is None:
        return "It was not calibrated: it gives a number alone, and does not say how far to trust it."
    held, promised = f"{100 * report.covered:.0f}\u00a0%", f"{100 * float(report.promised or 0):.0f}\u00a0%"
    width = report.scale.said(report.width)
    return f"They hold the truth in {held} of the photos ({promised} was promised) and are {width} wide on average."
