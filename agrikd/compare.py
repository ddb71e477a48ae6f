"""Did distillation help? Student alone against distilled, equal steps, several seeds, one verdict in words.

A seed draws which labels are known, the student's start and its batches; all arms of a seed share them, and the
teacher learns from the same labels. The test split is read once, when all training is done.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agrikd import console, evaluate, files, image, metrics
from agrikd.data.loader import Batch
from agrikd.errors import InputError, Problem, TrainingError
from agrikd.metrics import Difference, Pair
from agrikd.nets.cached import replay
from agrikd.nets.sources import open_net
from agrikd.predict.torch import TorchPredictor
from agrikd.recipe import DataSpec, NetSpec, Recipe
from agrikd.run import Run
from agrikd.teach import teach
from agrikd.train import Job, fit, open_loader, open_manifest, prepare

ALONE, DISTILLED, WITH_POOL = "alone", "distilled", "distilled + unlabelled"
TEACHER = "teacher"
COLUMNS = ("data", "arm", "macro-F1 (mean ± sd)", "accuracy", "ECE", "against alone", "minutes a run")


@dataclass(frozen=True)
class Arm:
    """One arm on one recipe's data: figures over seeds, and the difference to the student alone."""

    recipe: str
    arm: str
    macro_f1: tuple[float, ...]
    accuracy: tuple[float, ...]
    ece: tuple[float, ...]
    minutes: float
    difference: Difference | None

    @property
    def mean(self) -> float:
        return float(np.mean(self.macro_f1))

    @property
    def deviation(self) -> float:
        return float(np.std(self.macro_f1, ddof=1)) if len(self.macro_f1) > 1 else 0.0


@dataclass(frozen=True)
class Study:
    """All arms, and each distilled arm's difference averaged over the recipes' datasets."""

    seeds: int
    steps: int
    arms: tuple[Arm, ...]
    overall: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "overall": {arm: found._asdict() for arm, found in self.overall.items()}}

    def verdicts(self) -> list[str]:
        """One sentence an arm, over all datasets."""
        return [f"{arm} {metrics.verdict(found)}" for arm, found in self.overall.items()]

    def cautions(self) -> list[str]:
        """Where the teacher knew no more than the student: such a study says nothing about distillation."""
        mean = {(arm.recipe, arm.arm): arm.mean for arm in self.arms}
        return [
            f"{recipe}: the teacher ({value:.3f}) is no better than the student alone ({mean[recipe, ALONE]:.3f});"
            " find a better one first"
            for (recipe, arm), value in mean.items()
            if arm == TEACHER and value <= mean[recipe, ALONE]
        ]

    def markdown(self) -> str:
        """The table for models/LOG.md."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(cells(arm)) + " |" for arm in self.arms]
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.words())])

    def words(self) -> list[str]:
        """What the study comes to, in sentences."""
        return [*(f"over all data: {verdict}" for verdict in self.verdicts()), *self.cautions()]


@dataclass(frozen=True)
class Cost:
    """What a recipe's part of a study would take on this machine, from a few timed steps and teacher views."""

    recipe: str
    runs: int
    steps: int
    seconds_per_step: float
    teacher_views: int
    seconds_per_view: float

    @property
    def minutes(self) -> float:
        """On one core; processes share it."""
        training = self.runs * self.steps * self.seconds_per_step
        return (training + self.teacher_views * self.seconds_per_view) / 60


def arms_of(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe's arms: hard labels only; its method on the labelled rows; its method with the unlabelled pool."""
    if recipe.method.name == "none" or not recipe.teachers:
        raise InputError(
            Problem(f"{recipe.name}: method", "compare needs a method with a teacher", "method: {name: kd}")
        )
    problems = []
    if recipe.data.views is None:
        mend = "set data.views to 20 or so; the teacher is then computed once for all runs"
        problems.append(Problem(f"{recipe.name}: data.views", "compare needs a fixed set of views", mend))
    if recipe.data.size is None:
        mend = "set data.size to the teacher's input size, so that every arm sees the same pixels"
        problems.append(Problem(f"{recipe.name}: data.size", "compare needs the size of the views", mend))
    if problems:
        raise InputError(problems)
    labelled = recipe.data.model_copy(update={"unlabelled_share": 0.0})
    arms = {
        ALONE: recipe.without_teacher(),
        DISTILLED: recipe.model_copy(update={"data": labelled}),
    }
    if recipe.data.unlabelled_share:
        arms[WITH_POOL] = recipe
    return arms


def compare(recipes: Sequence[Recipe], seeds: int, out: Path, processes: int | None = None) -> Study:
    """Run the grid (resuming what is there), then judge every run once on the test split.

    One thread a process and, by default, as many processes as cores: torch's threads hinder each other where
    several small nets train at once.
    """
    if seeds < 1:
        raise InputError(Problem("seeds", f"is {seeds}, expected at least 1 (3 for a study)"))
    processes = processes or os.cpu_count() or 1
    grid = list(itertools.product(recipes, range(seeds)))
    for recipe in recipes:
        arms_of(recipe)
    if twice := sorted(name for name, n in Counter(recipe.name for recipe in recipes).items() if n > 1):
        mend = "give each a name of its own: it is the folder of its Runs"
        raise InputError(Problem(f"name {twice[0]}", "two recipes have it", mend))
    for recipe in recipes:
        _claim(recipe, out)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _one_thread) as pool:
        shared = [recipe for recipe in recipes if _one_backbone(recipe)]
        parts = [(recipe, part, processes) for recipe in shared for part in range(processes)]
        _in_parallel(pool, "teachers' features", _features, parts)
        _in_parallel(pool, "teachers", _teach, [(recipe, seed, out) for recipe, seed in grid])
        own = [(recipe, seed, out) for recipe, seed in grid if recipe not in shared]
        _in_parallel(pool, "tuned teachers' features", _own_features, own)
        tasks = [(recipe, seed, arm, out) for recipe, seed in grid for arm in arms_of(recipe)]
        _in_parallel(pool, "students", _train, tasks)
        judged = [(recipe, seed, arm, out) for recipe, seed in grid for arm in (TEACHER, *arms_of(recipe))]
        _in_parallel(pool, "judge on test", _judge, judged)
    study = _study(recipes, seeds, out)
    files.write_json(out / "study.json", study.to_json())
    files.write_text(out / "study.md", study.markdown() + "\n")
    return study


def cost(recipe: Recipe, seeds: int) -> Cost:
    """Time a few steps and teacher views; nothing is written but the cache of pixels."""
    arms = arms_of(recipe)
    job = prepare(arms[ALONE])
    net = open_net(recipe.teachers[0], job.manifest.classes).eval()
    loader = open_loader(recipe, job.manifest, [job.student, net])
    draw = job.sampler.draw(0)
    images = loader.batch(draw).images
    render = _timed(lambda: loader.batch(draw))
    with torch.inference_mode():
        view = (_timed(lambda: net(images)) + render) / len(draw)
    step = _timed(lambda: _one_step(job, loader.batch(draw)))
    views = len(job.manifest.indices("train")) * (int(recipe.data.views or 0) + 1)
    return Cost(recipe.name, len(arms) * seeds, recipe.optim.steps, step, views, view)


def _study(recipes: Sequence[Recipe], seeds: int, out: Path) -> Study:
    arms: list[Arm] = []
    pairs: dict[str, list[Pair]] = {}
    for recipe in recipes:
        truth, said = _said(recipe, seeds, out)
        classes = len(open_manifest(recipe).classes)
        groups = _groups(recipe)
        for arm, predicted in said.items():
            difference = None
            if arm not in (ALONE, TEACHER):
                pair = Pair(truth, said[ALONE], predicted, classes, groups)
                pairs.setdefault(arm, []).append(pair)
                difference = metrics.paired_bootstrap(pair, np.random.default_rng(0))
            records = [files.read_json(_folder(recipe, seed, arm, out) / "test.json") for seed in range(seeds)]
            figures = {name: tuple(record[name] for record in records) for name in ("macro_f1", "accuracy", "ece")}
            minutes = float(np.mean([record["minutes"] for record in records]))
            arms.append(Arm(recipe.name, arm, **figures, minutes=minutes, difference=difference))
    overall = {
        arm: metrics.paired_bootstrap_mean(found, np.random.default_rng(0))
        for arm, found in pairs.items()
        if len(found) == len(recipes)
    }
    return Study(seeds, recipes[0].optim.steps, tuple(arms), overall)


def _said(recipe: Recipe, seeds: int, out: Path) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    said = {}
    for arm in (TEACHER, *arms_of(recipe)):
        stored = [np.load(_folder(recipe, seed, arm, out) / "test.npz") for seed in range(seeds)]
        said[arm] = np.stack([one["logits"].argmax(1) for one in stored])
        truth = stored[0]["truth"]
    return truth, said


def _claim(recipe: Recipe, out: Path) -> None:
    """A study goes on in its folder only with the recipe and the labels it was begun with."""
    path = out / recipe.name / "study-of.json"
    own = {"recipe": recipe.digest, "data": open_manifest(recipe).digest}
    if not path.exists():
        files.write_json(path, own)
    elif files.read_json(path) != own:
        mend = "choose another --out, or put the recipe and its manifest back as they were"
        raise InputError(Problem(str(path.parent), "holds a study of another recipe, or of other labels", mend))


def _groups(recipe: Recipe) -> list[str] | None:
    manifest = open_manifest(recipe)
    rows = [manifest.rows[index] for index in manifest.indices("test", labelled=True)]
    return [row.group or row.path for row in rows] if any(row.group for row in rows) else None


def _folder(recipe: Recipe, seed: int, arm: str, out: Path) -> Path:
    return out / recipe.name / f"seed-{seed}" / arm.replace(" ", "")


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    data: DataSpec = recipe.data.model_copy(update={"subset_seed": seed})
    return recipe.model_copy(update={"data": data, "seed": seed})


def _one_backbone(recipe: Recipe) -> bool:
    """Whether the teachers of all seeds share theirs: a probe leaves it as it came."""
    return recipe.teach.stages == ("probe",)


def _features(recipe: Recipe, part: int, parts: int) -> None:
    """Fill a part of the store of the backbone that all seeds share: the pool's processes divide the rows."""
    _fill(recipe, recipe.teachers[0], part, parts)


def _own_features(recipe: Recipe, seed: int, out: Path) -> None:
    """Fill the store of a seed's own teacher before its students ask for it at the same time."""
    _fill(recipe, NetSpec(run=_folder(recipe, seed, TEACHER, out).resolve()))


def _fill(recipe: Recipe, spec: NetSpec, part: int = 0, parts: int = 1) -> None:
    manifest = open_manifest(recipe)
    net = open_net(spec, manifest.classes).eval()
    loader = open_loader(recipe, manifest, [net])
    replay(net, loader, int(recipe.data.views or 0), manifest.indices("train")[part::parts])


def _teach(recipe: Recipe, seed: int, out: Path) -> None:
    folder = _folder(recipe, seed, TEACHER, out)
    start = time.perf_counter()
    if not (folder / "weights.safetensors").exists():
        run = teach(_seeded(recipe, seed), folder)
        run.amend(minutes=(time.perf_counter() - start) / 60)


def _train(recipe: Recipe, seed: int, arm: str, out: Path) -> None:
    chosen = _seeded(arms_of(recipe)[arm], seed)
    if arm != ALONE:
        taught = NetSpec(run=_folder(recipe, seed, TEACHER, out).resolve())
        chosen = chosen.model_copy(update={"teachers": (taught,)})
    folder = _folder(recipe, seed, arm, out)
    start = time.perf_counter()
    if not (folder / "weights.safetensors").exists():
        run = fit(chosen, folder, resume=True)
        run.amend(minutes=(time.perf_counter() - start) / 60)


def _judge(recipe: Recipe, seed: int, arm: str, out: Path) -> None:
    folder = _folder(recipe, seed, arm, out)
    if (folder / "test.json").exists():
        return
    manifest, predictor = open_manifest(recipe), TorchPredictor.from_run(folder)
    rows = manifest.indices("test", labelled=True)
    truth = evaluate.truth_of(manifest, rows, predictor.spec.classes, "test")
    made = [predictor([manifest.photo(row)])[0] for row in rows]
    logits = np.stack([one.logits for one in made])
    table = metrics.confusion(truth, logits.argmax(1), len(predictor.spec.classes))
    with files.replacing(folder / "test.npz") as temporary, temporary.open("wb") as out_file:
        np.savez(out_file, allow_pickle=False, logits=logits, truth=truth)
    figures = {
        "macro_f1": metrics.macro_f1(table),
        "accuracy": metrics.accuracy(truth, logits.argmax(1)),
        "ece": metrics.ece(metrics.softmax(logits), truth),
        "minutes": Run.open(folder).record().get("minutes", 0.0),
    }
    files.write_json(folder / "test.json", figures)


def _one_thread() -> None:
    torch.set_num_threads(1)
    image.opencv().setNumThreads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started in here never hear Ctrl-C: the parent does, and stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(work: Callable[..., None], task: tuple[Any, ...]) -> None:
    """In a worker. Told to stop, it tidies up and ends at once, before the next task."""
    try:
        work(*task)
    except SystemExit:
        os._exit(1)


def _in_parallel(
    pool: ProcessPoolExecutor, what: str, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]]
) -> None:
    """Run the tasks; the first failure stops those that have not begun, and is raised; Ctrl-C stops all."""
    with _deaf_to_ctrl_c():
        waiting = [pool.submit(_run, work, task) for task in tasks]
    try:
        for done in console.track(as_completed(waiting), what, len(waiting)):
            done.result()
    except BrokenProcessPool:
        mend = "the same command goes on with what is finished; --processes 1 needs less memory"
        raise TrainingError(f"{what}: a process died, perhaps for lack of memory\n    → {mend}") from None
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        for future in waiting:
            future.cancel()


def _one_step(job: Job, batch: Batch) -> None:
    job.distiller(batch).loss.backward()


def _timed(work: Callable[[], Any]) -> float:
    """Median seconds of three calls, after one to warm up."""
    work()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def cells(arm: Arm) -> tuple[str, ...]:
    """An arm as a row of the study's table."""
    return (
        arm.recipe,
        arm.arm,
        f"{arm.mean:.3f} ± {arm.deviation:.3f}",
        f"{np.mean(arm.accuracy):.3f}",
        f"{np.mean(arm.ece):.3f}",
        metrics.verdict(arm.difference) if arm.difference else "–",
        f"{arm.minutes:.1f}",
    )
