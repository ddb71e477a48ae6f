"""What a comparison trains: each method and each control, at each number of labels, for each student, over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agrikd import distill
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.gate import CONTROL
from agrikd.jobs import open_manifest
from agrikd.recipe import GateSpec, MethodSpec, NetSpec, Recipe

ALONE, SMOOTHED, WIDER, RANDOM_HEAD, TEACHER = "alone", "label smoothing", "wider labels", "random head", "teacher"
POOL = " + unlabelled"
"""Ends the name of an arm that also learns from the photos without labels."""

_SMOOTHING = 0.1
"""Szegedy et al. 2016, and the usual control against "distillation is label smoothing"."""
_WIDER = 2.0
"""The same for numbers: a label's distribution twice as wide."""
_OVERRIDE = "a study trains from refused teachers too, and says so"


@dataclass(frozen=True)
class Plan:
    """What a grid varies; None keeps the recipe's own.

    methods: names; the recipe's own method keeps its settings, others have their defaults. labels: per class, 0 for
    all. students: timm names, or name=weights (see `NetSpec`).
    """

    seeds: int = 5
    methods: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None
    students: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Place:
    """Arms of one place are comparable: the same photos, labels (a class, or of numbers in all; None: all there are)
    and student."""

    data: str
    labels: int | None
    student: str
    of: str = "labels a class"

    def __str__(self) -> str:
        return f"{self.data}, {self.labels or 'all'} {self.of}, {self.student}"


@dataclass(frozen=True)
class Cell:
    """One run. teacher: the Run taught first for its seed. learns: the arm learns from that Run."""

    place: Place
    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    teacher: Path
    learns: bool


def teachers(recipes: Sequence[Recipe], plan: Plan, out: Path) -> list[Cell]:
    """A teacher for each dataset, number of labels and seed; methods and students share it."""
    return [
        Cell(_place(recipe, labels, str(recipe.teachers[0].timm)), TEACHER, seed, made, folder, folder, False)
        for recipe in recipes
        for labels in _labels(recipe, plan)
        for own in [_with_labels(recipe, labels)]
        for seed in range(plan.seeds)
        for made in [_seeded(own, seed)]
        for folder in [_folder(out, recipe.name, labels, seed) / TEACHER]
    ]


def students(recipes: Sequence[Recipe], plan: Plan, out: Path) -> list[Cell]:
    """Every run of a student, seeds outermost, so that a study that is cut short has whole seeds."""
    return [cell for seed in range(plan.seeds) for recipe in recipes for cell in _of_seed(recipe, plan, out, seed)]


def require(recipes: Sequence[Recipe], plan: Plan) -> None:
    """Raise `InputError` with all that cannot be compared."""
    problems = []
    if plan.seeds < 1:
        problems.append(Problem("seeds", f"is {plan.seeds}, expected at least 1 (3 for a study)"))
    for name, times in Counter(recipe.name for recipe in recipes).items():
        if times > 1:
            mend = "give each a name of its own: it is the folder of its Runs"
            problems.append(Problem(f"name {name}", "two recipes have it", mend))
    for number, name in enumerate(plan.methods or ()):
        problems += distill.problems({"name": name}, f"--methods {number + 1}")
    if len({recipe.task.scale and recipe.task.scale.range for recipe in recipes}) > 1:
        mend = "compare them apart: classes and numbers, or numbers on two scales, have no common measure"
        problems.append(Problem("recipes", "are of different tasks", mend))
    for recipe in recipes:
        problems += _unfit(recipe)
    if problems:
        raise InputError(problems)


def _unfit(recipe: Recipe) -> Iterator[Problem]:
    if recipe.method.name == "none" or not recipe.teachers or recipe.teachers[0].timm is None:
        mend = "method: {name: kd}, and teachers: with a timm model"
        yield Problem(f"{recipe.name}: method", "compare needs a method with a teacher to be taught", mend)
    if recipe.data.views is None:
        mend = "set data.views to 20 or so; the teacher is then computed once for all runs"
        yield Problem(f"{recipe.name}: data.views", "compare needs a fixed set of views", mend)
    if recipe.data.size is None:
        mend = "set data.size to the teacher's input size, so that every arm sees the same pixels"
        yield Problem(f"{recipe.name}: data.size", "compare needs the size of the views", mend)


def _of_seed(recipe: Recipe, plan: Plan, out: Path, seed: int) -> Iterator[Cell]:
    for labels in _labels(recipe, plan):
        own = _with_labels(recipe, labels)
        manifest = open_manifest(_seeded(own, seed))
        for name in plan.students or (str(recipe.student.timm),):
            place = _place(recipe, labels, name)
            folder = _folder(out, recipe.name, labels, seed)
            for arm, made in _arms(own.model_copy(update={"student": _student(recipe, name)}), plan, manifest):
                own_folder, learns = folder / _plain(name) / _plain(arm), _learns_from_taught(arm, made)
                yield Cell(place, arm, seed, _seeded(made, seed), own_folder, folder / TEACHER, learns)


def _arms(recipe: Recipe, plan: Plan, manifest: Manifest) -> Iterator[tuple[str, Recipe]]:
    """Name and recipe of each arm: the controls, then the methods without and with the pool."""
    labelled = recipe.data.model_copy(update={"unlabelled_share": 0.0})
    pooled = bool(recipe.data.unlabelled_share and manifest.indices("train", labelled=False))
    alone = recipe.without_teacher()
    numbers, task = recipe.task.scale is not None, recipe.task
    wider = {"sigma": _WIDER * task.sigma} if numbers else {"label_smoothing": _SMOOTHING}
    smoothed = task.model_copy(update=wider)
    yield ALONE, alone
    yield WIDER if numbers else SMOOTHED, alone.model_copy(update={"task": smoothed, "name": f"{recipe.name}-smoothed"})
    studied = recipe.model_copy(update={"gate": GateSpec(override=_OVERRIDE)})
    yield RANDOM_HEAD, recipe.model_copy(update={"data": labelled, "gate": GateSpec(override=CONTROL)})
    for name in plan.methods or (recipe.method.name,):
        method = distill.method(name)
        settings = recipe.method if name == recipe.method.name else MethodSpec(name=name)
        nets = (recipe.student,) if method.peers else recipe.teachers if method.needs_teacher else ()
        made = studied.model_copy(update={"method": settings, "teachers": nets, "name": f"{recipe.name}-{name}"})
        yield name, made.model_copy(update={"data": labelled})
        if pooled and method.uses_unlabelled:
            yield name + POOL, made


def _learns_from_taught(arm: str, recipe: Recipe) -> bool:
    method = distill.method(recipe.method.name)
    return arm != RANDOM_HEAD and method.needs_teacher and not method.teachers_learn


def _student(recipe: Recipe, name: str) -> NetSpec:
    timm, _, weights = name.partition("=")
    if timm == recipe.student.timm and not weights:
        return recipe.student
    return NetSpec(timm=timm, weights=weights or "none", input_size=recipe.student.input_size)


def _labels(recipe: Recipe, plan: Plan) -> tuple[int | None, ...]:
    own = recipe.data.labels_per_class or recipe.data.labels
    return tuple(n or None for n in plan.labels) if plan.labels else (own,)


def _with_labels(recipe: Recipe, labels: int | None) -> Recipe:
    key = "labels" if recipe.task.scale else "labels_per_class"
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={key: labels})})


def _place(recipe: Recipe, labels: int | None, net: str) -> Place:
    return Place(recipe.name, labels, net, "labels" if recipe.task.scale else "labels a class")


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    data = recipe.data.model_copy(update={"subset_seed": seed})
    return recipe.model_copy(update={"data": data, "seed": seed})


def _folder(out: Path, data: str, labels: int | None, seed: int) -> Path:
    return out / data / f"labels-{labels or 'all'}" / f"seed-{seed}"


def _plain(name: str) -> str:
    """As a folder's name."""
    return name.replace(" + ", "-with-").replace(" ", "-").replace("/", "-").replace("=", "-")
