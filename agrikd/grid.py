"""What a comparison trains: each method and each control, at each number of labels, for each student, over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agrikd import distill
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.gate import CONTROL
from agrikd.jobs import open_loader, open_manifest
from agrikd.nets import from_timm
from agrikd.nets.sources import open_net
from agrikd.recipe import MOST_SIGMA, GateSpec, MethodSpec, NetSpec, PoolSpec, Recipe, problems_of
from agrikd.tasks import open_task

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
    for number, name in enumerate(plan.students or ()):
        problems += from_timm.problems({"timm": name.partition("=")[0]}, f"--students {number + 1}")
    if len({recipe.task.scale and recipe.task.scale.range for recipe in recipes}) > 1:
        mend = "compare them apart: classes and numbers, or numbers on two scales, have no common measure"
        problems.append(Problem("recipes", "are of different tasks", mend))
    for recipe in recipes:
        problems += _unfit(recipe)
    if not problems:
        problems = [problem for recipe in recipes for problem in _unfit_for(recipe, plan)]
    if problems:
        raise InputError(problems)


def _unfit(recipe: Recipe) -> Iterator[Problem]:
    if not _taught(recipe.method) or not recipe.teachers or recipe.teachers[0].timm is None:
        mend = "method: {name: kd}, and teachers: with a timm model"
        yield Problem(f"{recipe.name}: method", "compare needs a method with a teacher to be taught", mend)
    if recipe.student.timm is None:
        yield Problem(f"{recipe.name}: student", "compare trains it anew, and it is a Run", "name a timm model")
    if len(recipe.teachers) > 1:
        mend = "leave one; several that were taught can be compared with: agrikd distill"
        yield Problem(f"{recipe.name}: teachers", f"are {len(recipe.teachers)}; compare teaches one", mend)
    if recipe.data.views is None:
        mend = "set data.views to 20 or so; the teacher is then computed once for all runs"
        yield Problem(f"{recipe.name}: data.views", "compare needs a fixed set of views", mend)
    if recipe.data.size is None:
        mend = "set data.size to the teacher's input size, so that every arm sees the same pixels"
        yield Problem(f"{recipe.name}: data.size", "compare needs the size of the views", mend)


def _unfit_for(recipe: Recipe, plan: Plan) -> Iterator[Problem]:
    """What this recipe cannot do of the plan, which a study would otherwise find after hours of teaching."""
    manifest, numbers = open_manifest(recipe), recipe.task.scale is not None
    own = [one.name for one in (recipe.method, *recipe.method.also)]
    for name in plan.methods or own:
        method, wrong = distill.method(name), ""
        if method.tasks and recipe.task.name not in method.tasks:
            wrong = f"{name} is for {' and '.join(method.tasks)}, the task of {recipe.name} is {recipe.task.name}"
        elif not numbers and len(manifest.classes) < method.fewest_classes:
            wrong = f"{name} teaches nothing of the {len(manifest.classes)} classes of {recipe.name}"
        if wrong:
            yield Problem(
                "--methods" if plan.methods else f"{recipe.name}: method",
                wrong,
                f"choose others of {', '.join(distill.names())}",
            )
    for name in _nets(recipe, plan):
        yield from _unfit_student(recipe, manifest, name)
    folds = recipe.teach.folds
    few = [n for n in _labels(recipe, plan) if n is not None and n < folds and not numbers]
    if few and not manifest.indices("val", labelled=True):
        wrong = f"{recipe.name}: {min(few)} labels a class are too few to teach with {folds} folds and no val split"
        yield Problem("--labels", wrong, f"ask for {folds} or more, or set teach.folds={max(2, min(few))}")


def _unfit_student(recipe: Recipe, manifest: Manifest, name: str) -> Iterator[Problem]:
    try:
        open_loader(recipe, manifest, [open_net(_student(recipe, name), open_task(recipe.task, manifest).classes)])
    except ValidationError as error:
        yield from problems_of(error, NetSpec, f"--students {name}")
    except InputError as error:
        yield from error.problems


def _of_seed(recipe: Recipe, plan: Plan, out: Path, seed: int) -> Iterator[Cell]:
    for labels in _labels(recipe, plan):
        own = _with_labels(recipe, labels)
        manifest = open_manifest(_seeded(own, seed))
        for name in _nets(recipe, plan):
            place = _place(recipe, labels, name)
            folder = _folder(out, recipe.name, labels, seed)
            for arm, made in _arms(own.model_copy(update={"student": _student(recipe, name)}), plan, manifest):
                own_folder, learns = folder / _plain(name) / _plain(arm), arm != RANDOM_HEAD and _taught(made.method)
                yield Cell(place, arm, seed, _seeded(made, seed), own_folder, folder / TEACHER, learns)


def _arms(recipe: Recipe, plan: Plan, manifest: Manifest) -> Iterator[tuple[str, Recipe]]:
    """Name and recipe of each arm: the controls, then the methods without and with the pool."""
    unfiltered = recipe.data.model_copy(update={"pool": PoolSpec()})
    labelled = unfiltered.model_copy(update={"unlabelled_share": 0.0})
    pooled = bool(recipe.data.unlabelled_share and manifest.indices("train", labelled=False))
    alone = recipe.without_teacher()
    numbers, task = recipe.task.scale is not None, recipe.task
    wider = {"sigma": min(_WIDER * task.sigma, MOST_SIGMA)} if numbers else {"label_smoothing": _SMOOTHING}
    smoothed = task.model_copy(update=wider)
    yield ALONE, alone
    yield (
        WIDER if numbers else SMOOTHED,
        alone.model_copy(update={"task": smoothed, "name": recipe.suffixed("smoothed")}),
    )
    studied = recipe.model_copy(update={"gate": GateSpec(override=_OVERRIDE)})
    yield RANDOM_HEAD, recipe.model_copy(update={"data": labelled, "gate": GateSpec(override=CONTROL)})
    for name in plan.methods or (recipe.method.name,):
        settings = recipe.method if name == recipe.method.name else MethodSpec(name=name)
        methods, names = distill.methods(settings), [settings.name, *(one.name for one in settings.also)]
        peers, needs = any(one.peers for one in methods), any(one.needs_teacher for one in methods)
        nets = (recipe.student,) if peers else recipe.teachers if needs else ()
        own_name = recipe.suffixed("-".join(names))
        made = studied.model_copy(update={"method": settings, "teachers": nets, "name": own_name})
        yield "+".join(names), made.model_copy(update={"data": labelled})
        if pooled and any(one.uses_unlabelled for one in methods):
            yield "+".join(names) + POOL, made if _taught(settings) else made.model_copy(update={"data": unfiltered})


def _taught(spec: MethodSpec) -> bool:
    """Whether some of it learns from a teacher that was taught before and stays as it is."""
    return any(one.needs_teacher and not one.teachers_learn for one in distill.methods(spec))


def _nets(recipe: Recipe, plan: Plan) -> tuple[str, ...]:
    return plan.students or (str(recipe.student.timm),)


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
