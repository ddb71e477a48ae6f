"""Several models on one split: a table, and one HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrikd import files, jobs, learned
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.evaluate import Report, evaluate_all
from agrikd.evaluate_numbers import NumberReport, evaluate_all_numbers
from agrikd.predict import open_predictor
from agrikd.report import CHANCE, write_report
from agrikd.report_numbers import write_number_report
from agrikd.run import Run

COLUMNS = ("model", "macro-F1", "95 % interval", "ECE", "params", "MB", "ms")


@dataclass(frozen=True)
class Judged:
    """Models judged on the same rows; `path` is the HTML report, `note` what must be said beside the figures.

    teacher: the label of the one whose agreement was asked for.
    """

    title: str
    reports: tuple[tuple[str, Report | NumberReport], ...]
    path: Path
    note: str = ""
    teacher: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        first = self.reports[0][1]
        if isinstance(first, NumberReport):
            return ("model", f"MAE, {first.scale.unit}".rstrip(", "), "95 % interval", "R²", *COLUMNS[4:])
        return COLUMNS

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [_cells(label, report) for label, report in self.reports]

    @property
    def verdicts(self) -> list[str]:
        """Each model against the first that is not the teacher, and what must be known of the figures, in words."""
        first, *others = [label for label, _ in self.reports if label != self.teacher] or [""]
        known, what = dict(self.reports), "mean error" if self.columns[3] == "R²" else "macro-F1"
        found = [(label, one) for label in others for one in known[label].beside if one.other == first]
        said = [f"{label} beside {first}, {what} on the same photos: {one.words}" for label, one in found]
        raw = [label for label, report in self.reports if isinstance(report, Report) and not report.calibrated]
        mend = f"* not calibrated ({', '.join(raw)}): that ECE is of raw percentages; calibrate all, then compare"
        return [*said, *([CHANCE] if said else []), *([mend] if raw else [])]

    def to_json(self) -> dict[str, Any]:
        models = {label: report.to_json() for label, report in self.reports}
        return {"report": str(self.path), "models": models, "verdicts": self.verdicts}


def judge(
    models: Sequence[Path], data: Path | None, split: str, teacher: Path | None, out: Path | None, note: str = ""
) -> Judged:
    """Evaluate Run folders and .onnx files on `split` of a manifest (by default the first Run's).

    A teacher is judged too, the first of them where it was not named among the models. A Run keeps the report on a
    split of its own, and counts how often its test split was read: one that is read again and again chooses models.
    Raises `InputError` where one of them has learned from photos of val or test.
    """
    if twice := [path for number, path in enumerate(models) if path in models[:number]]:
        raise InputError(Problem(str(twice[0]), "is given twice", "name each model once"))
    paths = [*models] if teacher is None or teacher in models else [teacher, *models]
    predictors = {_label(path, paths): open_predictor(path) for path in paths}
    manifest_of = [Run.open(path) for path in models if path.is_dir()]
    if out is None and not manifest_of:
        raise InputError(Problem("--report", "there is no Run to keep the report in", "say where with --report"))
    manifest = _manifest(manifest_of, data)
    runs = [Run.open(path) for path in paths if path.is_dir()]
    _require_strangers([*runs, *_exported(paths)], manifest, split)
    if len({predictor.spec.scale and predictor.spec.scale.range for predictor in predictors.values()}) > 1:
        mend = "judge them apart"
        raise InputError(Problem("models", "answer with different scales, or some with a class", mend))
    numbers = next(iter(predictors.values())).spec.scale is not None
    told = _label(teacher, paths) if teacher else None
    made: dict[str, Any] = (evaluate_all_numbers if numbers else evaluate_all)(predictors, manifest, split, told)
    reports, owners = tuple(made.items()), [run for run in runs if _is_own(run, manifest, split)]
    said = {path: report for path, (_, report) in zip(paths, reports, strict=True)}
    for run in owners:
        files.write_json(run.folder / f"report_{split}.json", said[run.folder].to_json())
    notes = [_count_reading(run) for run in owners] if split == "test" else []
    notes += [_foreign(run, split) for run in runs if run not in owners and run.folder != teacher]
    note = " ".join([note, *notes]).strip()
    path = out or runs[-1].folder / "report.html"
    _write(path, reports, manifest, runs, f"{reports[-1][0]} on {split}", note)
    return Judged(f"{split}: {reports[0][1].rows} photos", reports, path, note, told)


def _write(
    path: Path,
    reports: Sequence[tuple[str, Report | NumberReport]],
    manifest: Manifest,
    runs: list[Run],
    title: str,
    note: str,
) -> None:
    main = runs[-1] if runs else None
    record = main.record() if main else {}
    said = {
        name: files.read_json(found) if main and (found := main.folder / f"{name}.json").exists() else None
        for name in ("gate", "artefacts")
    }
    stages = next((run.record()["stages"] for run in runs if "stages" in run.record()), None)
    write: Any = write_number_report if isinstance(reports[0][1], NumberReport) else write_report
    write(
        path,
        reports,
        title=title,
        manifest=manifest,
        note=note,
        gate=said["gate"],
        exports=said["artefacts"],
        stages=stages,
        history=main.history() if main else None,
        facts={
            "recipe digest": str(record.get("recipe_digest", "–")),
            "data digest": manifest.digest,
            **{name: str(text) for name, text in record.get("versions", {}).items()},
        },
    )


def _manifest(runs: list[Run], data: Path | None) -> Manifest:
    if data:
        manifest = manifests.read(data)
        manifests.require_files(manifest, str(data))
        return manifest
    if not runs:
        raise InputError(Problem("--data", "an .onnx file does not know its photos", "name a manifest with --data"))
    return jobs.open_manifest(runs[0].recipe)


def _require_strangers(runs: Sequence[Run], manifest: Manifest, split: str) -> None:
    """Whoever has learned from a photo knows its label."""
    rows = manifest.indices(split, labelled=True) if split != "train" else ()
    counts = {run.folder: count for run in runs if (count := learned.seen(run, manifest, rows))}
    mend = "train it again on this manifest, or judge it on photos that it has never seen"
    wrong = [
        Problem(str(folder), f"has learned from {count} of the {len(rows)} photos of {split}", mend)
        for folder, count in counts.items()
    ]
    if wrong:
        raise InputError(wrong)


def _exported(paths: Sequence[Path]) -> list[Run]:
    """The Runs in whose folders exported files lie still."""
    folders = {path.parent: None for path in paths if path.is_file() and path.parent not in paths}
    return [Run.open(folder) for folder in folders if (folder / "run.json").exists()]


def _is_own(run: Run, manifest: Manifest, split: str) -> bool:
    """Whether the Run's own manifest, if it is here, has the same photos in this split, under the same labels."""
    if learned.is_as_it_was(run, manifest):
        return True
    try:
        own = learned.own_manifest(run)
    except InputError:
        return False
    return _split(own, split) == _split(manifest, split)


def _split(manifest: Manifest, split: str) -> set[tuple[str, str | None]]:
    rows = manifest.indices(split, labelled=True)
    return {(manifest.rows[row].sha256 or str(manifest.file(row)), manifest.rows[row].target) for row in rows}


def _foreign(run: Run, split: str) -> str:
    return f"{run.folder.name} keeps no report: these are not known to be the {split} photos of its own data."


def _label(path: Path, models: Sequence[Path]) -> str:
    """The shortest name that tells a model from the others."""
    name = path.name if path.is_dir() else f"{path.parent.name}/{path.name}"
    return str(path) if sum(other.name == path.name for other in models) > 1 else name


def _count_reading(run: Run) -> str:
    count = int(run.record().get("test_readings", 0)) + 1
    run.amend(test_readings=count)
    return f"{run.folder.name}: the test split has been read {count} times." if count > 1 else ""


def _cells(label: str, report: Report | NumberReport) -> tuple[str, ...]:
    if isinstance(report, NumberReport):
        score, second = report.mae, f"{report.r2.value:.3f}"
    else:
        score, second = report.macro_f1, f"{report.ece:.3f}" + "*" * (not report.calibrated)
    return (
        label,
        f"{score.value:.3f}",
        f"{score.low:.3f}–{score.high:.3f}",
        second,
        f"{report.parameters / 1e6:.2f} M",
        f"{report.size_bytes / 1e6:.1f}",
        f"{report.ms_per_image:.1f}",
    )
