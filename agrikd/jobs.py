"""A recipe made ready to be trained from: checked against what is there, its photos and nets opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agrikd import distill, image, ranks, tasks
from agrikd import recipe as recipes
from agrikd.data import manifest as manifests
from agrikd.data.augment import Augment
from agrikd.data.loader import Loader, PixelCache, Sampler
from agrikd.data.manifest import Manifest
from agrikd.data.splits import folds, kept_together, strata
from agrikd.distill._base import TWO_CLASSES, Distiller
from agrikd.errors import InputError, Problem, listed
from agrikd.learned import labelled_as
from agrikd.nets import from_timm
from agrikd.nets._base import Net
from agrikd.nets.ensemble import open_teacher
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.recipe import PoolSpec, Recipe
from agrikd.run import Run
from agrikd.tasks import open_task
from agrikd.tasks._base import Task


@dataclass(frozen=True)
class Job:
    """A recipe made ready: its photos, its batches, and the distiller over its nets."""

    recipe: Recipe
    manifest: Manifest
    loader: Loader
    sampler: Sampler
    distiller: Distiller

    @property
    def student(self) -> TimmNet:
        student = self.distiller.student
        assert isinstance(student, TimmNet)
        return student


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file and check it against timm, the task and the method: every mistake in one report."""
    raw = recipes.read_mapping(path, overrides)
    problems = _absent(raw, str(path))
    try:
        recipe = recipes.parse(raw, str(path))
    except InputError as error:
        raise InputError((*error.problems, *problems)) from None
    if problems:
        raise InputError(problems)
    return recipe


def _absent(raw: dict[str, Any], where: str) -> list[Problem]:
    """What a raw recipe names that is not there: a task, a method or one of its keys, a timm model, the manifest."""
    found = [*tasks.problems(raw.get("task"), where), *distill.problems(raw.get("method"), where)]
    found += from_timm.problems(raw.get("student"), f"{where}: student")
    teachers, data = raw.get("teachers"), raw.get("data")
    for number, teacher in enumerate(teachers if isinstance(teachers, list) else ()):
        found += from_timm.problems(teacher, f"{where}: teachers.{number}")
        members = teacher.get("ensemble") if isinstance(teacher, dict) else None
        for place, member in enumerate(members if isinstance(members, list) else ()):
            found += from_timm.problems(member, f"{where}: teachers.{number}.ensemble.{place}")
    manifest = data.get("manifest") if isinstance(data, dict) else None
    if isinstance(manifest, str) and not Path(manifest).is_file():
        mend = "make one with: agrikd init FOLDER"
        found.append(Problem(f"{where}: data.manifest", f"there is no file {manifest}", mend))
    return found


def open_manifest(recipe: Recipe) -> Manifest:
    """The recipe's rows, with the labels beyond `labels_per_class`, or `labels`, hidden."""
    manifest = manifests.read(recipe.data.manifest, recipe.data.root)
    manifests.require_files(manifest, str(recipe.data.manifest))
    return labelled_as(recipe, manifest)


def stratum_folds(task: Task, manifest: Manifest, rows: Sequence[int], count: int, seed: int) -> NDArray[np.int64]:
    """The fold, 0 to `count` − 1, of each labelled row; rows of a group and copies stay together.

    Of each class, or of each stretch of the scale, every fold has an equal part.
    """
    target = task.encode(manifest)[0][list(rows)]
    groups = [str(unit) for unit in kept_together(manifest.rows)[list(rows)]]
    if task.scale is None:
        return folds([task.classes[place] for place in target.tolist()], count, seed, groups)
    return folds(strata(target.tolist(), groups, count), count, seed, groups)


def prepare(recipe: Recipe, manifest: Manifest | None = None) -> Job:
    """Open photos and nets. `manifest` overrides the recipe's (a fold, a study's shared one)."""
    manifest = manifest or open_manifest(recipe)
    task = open_task(recipe.task, manifest)
    _require_sense(recipe, len(task.classes))
    torch.manual_seed(recipe.seed)
    student = open_net(recipe.student, task.classes)
    if student.origin.classes not in (None, task.classes):
        known = f"its weights know the classes {listed(student.origin.classes or ())}"
        raise InputError(Problem("student", known, f"the photos have {listed(task.classes)}: name a timm model"))
    needed = recipe.teachers if any(method.needs_teacher for method in distill.methods(recipe.method)) else ()
    teachers = [open_teacher(spec, task.classes) for spec in needed]
    loader = open_loader(recipe, manifest, [student, *teachers])
    sampler = _sampler(recipe, manifest)
    if alone := recipe.gate.student_alone:
        Run.open(alone)
    distiller = distill.open_method(recipe.method, task, student, teachers)
    return Job(recipe, manifest, loader, sampler, distiller)


def _require_sense(recipe: Recipe, classes: int) -> None:
    """What the methods need of the rest of the recipe, and of the number of classes."""
    problems = []
    for spec, method in zip((recipe.method, *recipe.method.also), distill.methods(recipe.method), strict=True):
        if method.needs_teacher and not recipe.teachers:
            mend = "add one under teachers:, or use method none"
            problems.append(Problem("teachers", f"method {spec.name} needs a teacher", mend))
        if method.tasks and recipe.task.name not in method.tasks:
            mend = f"choose another of {', '.join(distill.names())}"
            wrong = f"method {spec.name} is for {' and '.join(method.tasks)}, the task is {recipe.task.name}"
            problems.append(Problem("method.name", wrong, mend))
        if classes < method.fewest_classes:
            wrong = f"method {spec.name} teaches nothing of {classes} classes: {method.exceptions[TWO_CLASSES]}"
            problems.append(Problem("method.name", wrong, "take kd, which is for any number of classes"))
    if recipe.data.unlabelled_share and not any(method.uses_unlabelled for method in distill.methods(recipe.method)):
        mend = "set it to 0, or use --hard-labels"
        wrong = f"method {recipe.method.name} learns nothing from rows without a label"
        problems.append(Problem("data.unlabelled_share", wrong, mend))
    taught = any(method.needs_teacher and not method.teachers_learn for method in distill.methods(recipe.method))
    if recipe.data.pool != PoolSpec() and not (recipe.data.unlabelled_share and taught):
        wrong = "filters photos without a label by what a taught teacher says, and there is no teacher or no such photo"
        problems.append(Problem("data.pool", wrong, "leave it out, or set data.unlabelled_share and a teacher"))
    if recipe.data.pool.confidence and recipe.task.scale:
        mend = "leave it out; pool.known filters numbers too"
        problems.append(Problem("data.pool.confidence", "asks for a sure class, and numbers have none", mend))
    if problems:
        raise InputError(problems)


def open_loader(recipe: Recipe, manifest: Manifest, nets: Sequence[Net]) -> Loader:
    """Batches rendered at the recipe's size, by default the largest of the nets' input sizes.

    A method that mixes photos takes partners from those it may learn from: without a label only where there is a share.
    """
    data = recipe.data
    largest = (max(net.input_size[0] for net in nets), max(net.input_size[1] for net in nets))
    size = data.size or largest
    if size[0] < largest[0] or size[1] < largest[1]:
        wrong = f"is {size[0]} × {size[1]}, smaller than a net's input of {largest[0]} × {largest[1]}"
        raise InputError(Problem("data.size", wrong, "leave it out, or make it as large as the largest net's input"))
    cache = PixelCache(manifest, size, data.fit, data.cache_mb)
    target, labelled = open_task(recipe.task, manifest).encode(manifest)
    mixed = manifest.indices("train", labelled=None if data.unlabelled_share else True)
    partners = mixed if any(method.mixes for method in distill.methods(recipe.method)) else ()
    return Loader(manifest, cache, Augment(data.augment, size), target, labelled, partners)


def _sampler(recipe: Recipe, manifest: Manifest) -> Sampler:
    """Without an unlabelled share its pool is empty, so that nobody asks the teacher about photos never drawn."""
    data = recipe.data
    return Sampler(
        labelled=manifest.indices("train", labelled=True),
        unlabelled=manifest.indices("train", labelled=False) if data.unlabelled_share else (),
        batch=recipe.optim.batch,
        unlabelled_share=data.unlabelled_share,
        views=data.views,
        seed=recipe.seed,
    )


def use_cores(recipe: Recipe) -> None:
    """Leave the loader's threads a core each: torch's threads and theirs hinder each other on a small machine."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.local_world() - recipe.data.workers))
    image.opencv().setNumThreads(1)
