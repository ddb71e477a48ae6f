"""What a Run was exported as: a file a precision, what was found of each, and why it was kept or dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

from agrikd import evaluate, files
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest
from agrikd.errors import ParityError
from agrikd.export import fp16, int8, lint, onnx
from agrikd.image import Photos
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.torch import TorchPredictor
from agrikd.run import Run
from agrikd.types import ModelSpec

Precision = Literal["fp32", "fp16", "int8", "int8f16"]
FILES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "int8f16": "model.int8f16.onnx",
}
_CLAIMED: dict[Precision, tuple[str, ...]] = {
    "fp32": lint.RELEASES,
    "fp16": lint.RELEASES,
    "int8": ("8.6", "10.3"),
    "int8f16": ("10.13", "10.16", "11"),
}
"""Releases of TensorRT a precision is for: eight bits come in two files (see `agrikd.export.int8`)."""
_CALIBRATION = 200
"""Photos whose activations give the ranges of eight bits; more hardly move them."""


@dataclass(frozen=True)
class Artefact:
    """One precision of a Run. file: its name in the Run folder; None where it was dropped. releases: of TensorRT
    whose parser takes it, as far as can be told without one. found: of its answers, in words. why: kept or dropped."""

    precision: Precision
    file: str | None
    size_bytes: int
    sha256: str
    releases: tuple[str, ...]
    found: str
    why: str


def export(folder: Path, precision: Precision, count: int, out: Path | None = None) -> Artefact:
    """Write a Run in one precision and record it in artefacts.json, or record why not and raise `ParityError`.

    out: of a file for elsewhere, which is not recorded. count: photos it is compared on, those of test first, then
    val, then train. Eight bits are judged on all labelled photos of test, or of val where there are none, and FP32 is
    written first where it is not there.
    """
    path = out or folder / FILES[precision]
    try:
        found = _write(folder, precision, path, count)
        releases = _readable(path, precision)
    except ParityError as error:
        if out is None:
            path.unlink(missing_ok=True)  # of earlier weights
            _record(folder, Artefact(precision, None, 0, "", (), str(error).partition("\n    →")[0], "dropped"))
        raise
    digest = files.sha256(path.read_bytes())
    made = Artefact(precision, path.name, path.stat().st_size, digest, releases, found, "kept")
    if out is None:
        _record(folder, made)
    return made


def artefacts(folder: Path) -> list[Artefact]:
    """What is recorded of a Run, in the order of `FILES`."""
    path = folder / "artefacts.json"
    found: list[dict[str, Any]] = files.read_json(path) if path.exists() else []
    made = [Artefact(**{**one, "releases": tuple(one["releases"])}) for one in found]
    return sorted(made, key=lambda one: get_args(Precision).index(one.precision))


def _write(folder: Path, precision: Precision, path: Path, count: int) -> str:
    run, source = Run.open(folder), TorchPredictor.from_run(folder)
    manifest = manifests.read(run.recipe.data.manifest, run.recipe.data.root)
    if precision == "fp32":
        return str(onnx.export(source, path, photos(manifest, count)))
    reference = folder / FILES["fp32"]
    if _outdated(reference, run, source.spec):
        export(folder, "fp32", count)
    if precision == "fp16":
        return str(fp16.export(source, reference, path, photos(manifest, count)))
    split = "test" if manifest.indices("test", labelled=True) else "val"
    rows = manifest.indices(split, labelled=True)
    truth = evaluate.truth_of(manifest, rows, source.spec, split)
    judged = int8.Labelled(_read_later(manifest, rows), truth, evaluate.groups_of(manifest, rows))
    return str(int8.export(reference, path, source.spec, _spread(manifest), judged, precision))


def _outdated(reference: Path, run: Run, spec: ModelSpec) -> bool:
    """Whether FP32 is not there, or is of earlier weights or another calibration."""
    if not reference.exists() or reference.stat().st_mtime < run.weights.stat().st_mtime:
        return True
    return OrtPredictor(reference).spec != spec


def photos(manifest: Manifest, count: int) -> Photos:
    """Photos of test, then val, then train, in each the classes in turn: a manifest may be in the order of its classes,
    and what a net finds large or hard in one of them the others do not show."""
    rows = [row for split in ("test", "val", "train") for row in _classes_in_turn(manifest, manifest.indices(split))]
    return Photos.at([manifest.file(row) for row in rows[:count]])


def _classes_in_turn(manifest: Manifest, rows: Sequence[int]) -> list[int]:
    of_class = defaultdict(list)
    for row in rows:
        of_class[manifest.rows[row].target].append(row)
    return [row for turn in zip_longest(*of_class.values()) for row in turn if row is not None]


def _spread(manifest: Manifest) -> Photos:
    """Photos from all over the train split, with or without labels."""
    rows = manifest.indices("train")
    return _read_later(manifest, rows[:: max(1, len(rows) // _CALIBRATION)][:_CALIBRATION])


def _read_later(manifest: Manifest, rows: Sequence[int]) -> Photos:
    return Photos([partial(manifest.photo, row) for row in rows])


def _readable(path: Path, precision: Precision) -> tuple[str, ...]:
    """The releases that can read it, of those it is for; where there is none the file is not kept."""
    claimed = _CLAIMED[precision]
    findings = lint.lint(path, claimed)
    releases = tuple(release for release in claimed if release not in {one.release for one in findings})
    if not releases:
        path.unlink()
        raise ParityError(f"no release of TensorRT would read {path.name}; it was not kept\n{said(findings)}")
    return releases


def said(findings: Sequence[lint.Finding]) -> str:
    """Findings as lines, equal ones of several releases as one."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        lines.setdefault((one.rule, one.where, one.wrong), []).append(one.release)
    return "\n".join(
        f"  {where}: {wrong} ({rule}; {', '.join(own)})" for (rule, where, wrong), own in list(lines.items())[:12]
    )


def _record(folder: Path, made: Artefact) -> None:
    kept = [one for one in artefacts(folder) if one.precision != made.precision]
    files.write_json(folder / "artefacts.json", [asdict(one) for one in (*kept, made)])
