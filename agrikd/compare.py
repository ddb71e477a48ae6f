"""Did distillation help? Student alone against distilled, equal steps, several seeds, one verdict in words.

A seed draws which labels are known, the student's start and its batches; all arms of a seed share them, and the
teacher learns from the same labels. Each run reads the test split once, when its training is done.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agrikd import console, distill, evaluate, files, grid, image, metrics
from agrikd.data import manifest as manifests
from agrikd.data.loader import PixelCache
from agrikd.device.tether import die_with_parent
from agrikd.errors import InputError, Problem, TrainingError
from agrikd.grid import Cell, Plan
from agrikd.jobs import open_loader, open_manifest, prepare
from agrikd.nets.cached import replay
from agrikd.nets.sources import open_net
from agrikd.predict.torch import TorchPredictor
from agrikd.recipe import NetSpec, Recipe
from agrikd.run import Run
from agrikd.study import OF_CLASSES, Cost, Judged, Split, Study, csv_of, of_numbers, summed_up
from agrikd.tasks import open_task
from agrikd.teach import teach
from agrikd.train import fit


@dataclass(frozen=True)
class Estimate:
    """What a recipe's part of a study would take on this machine, from a few timed steps and teacher views.

    runs: of students. teacher_views: to be computed once and stored. core_minutes: of all of it; processes share them.
    """

    recipe: str
    runs: int
    steps: int
    teacher_views: int
    core_minutes: float


def compare(
    recipes: Sequence[Recipe], plan: Plan, out: Path, processes: int | None = None, check_cache: bool = False
) -> Study:
    """Run the grid, resuming what is there; runs.csv has the row of each finished run at once.

    check_cache: compute some of what is stored of each teacher anew before the students learn from it, and stop where
    it differs.

    One thread a process and, by default, as many processes as cores: torch's threads hinder each other where
    several small nets train at once.
    """
    grid.require(recipes, plan)
    processes = processes or os.cpu_count() or 1
    for recipe in recipes:
        _claim(recipe, out)
    taught, cells = grid.teachers(recipes, plan, out), grid.students(recipes, plan, out)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin) as pool:
        _in_parallel(pool, "photos", _decode, [(recipe,) for recipe in recipes])
        parts = [(recipe, part, processes) for recipe in recipes if _one_backbone(recipe) for part in range(processes)]
        _in_parallel(pool, "teachers' features", _features, parts)
        _in_parallel(pool, "teachers", _teach, [(cell,) for cell in taught])
        if check_cache:
            _in_parallel(pool, "stored answers", _check, [(cell,) for cell in taught])
        _in_parallel(pool, "students", _train, [(cell,) for cell in cells], lambda: _keep(cells, out))
    judged = _keep([*taught, *cells], out)
    splits = {recipe.name: _split(recipe) for recipe in recipes}
    scale = recipes[0].task.scale
    measure = of_numbers(scale.unit) if scale else OF_CLASSES
    steps = tuple(sorted({recipe.optim.steps for recipe in recipes}))
    study = summed_up(judged, steps, _costs([*taught, *cells]), splits, measure)
    study.write(out)
    return study


def estimate(recipe: Recipe, plan: Plan, out: Path) -> Estimate:
    """Time a few steps of each arm and teacher views; nothing is written but the cache of pixels."""
    grid.require([recipe], plan)
    taught, cells = grid.teachers([recipe], plan, out), grid.students([recipe], plan, out)
    seconds = {(cell.place.student, cell.arm): _seconds_a_step(cell) for cell in cells if cell.seed == 0}
    manifest = open_manifest(recipe)
    net = open_net(recipe.teachers[0], open_task(recipe.task, manifest).classes).eval()
    loader = open_loader(recipe, manifest, [net])
    views = [(row, 0) for row in manifest.indices("train")[: recipe.optim.batch]]
    with torch.inference_mode():
        view = _timed(lambda: net(loader.batch(views).images)) / len(views)
    stores = 1 if _one_backbone(recipe) else len(taught)
    teacher_views = len(manifest.indices("train")) * (int(recipe.data.views or 0) + 1) * stores
    training = sum(recipe.optim.steps * seconds[cell.place.student, cell.arm] for cell in cells)
    minutes = (training + teacher_views * view + _tuning_seconds(recipe, len(taught), view)) / 60
    return Estimate(recipe.name, len(cells), recipe.optim.steps, teacher_views, minutes)


def _seconds_a_step(cell: Cell) -> float:
    """Of a step whose frozen teachers are replayed: they cost nothing then."""
    methods = distill.methods(cell.recipe.method)
    live = any(one.teachers_learn or one.teacher_stages for one in methods)
    taught = any(one.needs_teacher for one in methods)
    job = prepare(cell.recipe if live or not taught else cell.recipe.without_teacher())
    draw = job.sampler.draw(0)

    def step() -> None:
        job.distiller(job.loader.batch(draw)).loss.backward()

    return _timed(step)


def _tuning_seconds(recipe: Recipe, teachers: int, seconds_a_view: float) -> float:
    """Stages beyond the probe: each fold and the whole; forward and backward cost some three times the forward."""
    stages = len([stage for stage in recipe.teach.stages if stage != "probe"])
    steps = stages * (recipe.teach.folds + 1) * recipe.teach.steps
    return teachers * steps * recipe.optim.batch * 3 * seconds_a_view


def _keep(cells: Sequence[Cell], out: Path) -> list[Judged]:
    """Read what is judged so far, and write runs.csv."""
    judged = [_judged(cell) for cell in cells if (cell.folder / "test.json").exists()]
    files.write_text(out / "runs.csv", csv_of(judged))
    return judged


def _judged(cell: Cell) -> Judged:
    record = files.read_json(cell.folder / "test.json")
    with np.load(cell.folder / "test.npz", allow_pickle=False) as stored:
        said, truth = stored["said"], stored["truth"]
    return Judged(cell.place, cell.arm, cell.seed, record["figures"], record["refused"], truth, said)


def _claim(recipe: Recipe, out: Path) -> None:
    """A study goes on in its folder only with the recipe and the labels it was begun with."""
    path = out / recipe.name / "study-of.json"
    every_label = manifests.read(recipe.data.manifest, recipe.data.root)
    own = {"recipe": recipe.digest, "data": every_label.digest}
    if not path.exists():
        files.write_json(path, own)
    elif files.read_json(path) != own:
        mend = "choose another --out, or put the recipe and its manifest back as they were"
        raise InputError(Problem(str(path.parent), "holds a study of another recipe, or of other labels", mend))


def _split(recipe: Recipe) -> Split:
    manifest = open_manifest(recipe)
    rows = [manifest.rows[index] for index in manifest.indices("test", labelled=True)]
    groups = [row.group or row.path for row in rows] if any(row.group for row in rows) else None
    return Split(None if recipe.task.scale else len(manifest.classes), groups)


def _costs(cells: Sequence[Cell]) -> dict[str, Cost]:
    """Of each student and teacher, one Run of each timed on one thread when all training is over."""
    found: dict[str, Cost] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for cell in cells:
        if cell.place.student not in found:
            manifest = open_manifest(cell.recipe)
            predictor = TorchPredictor.from_run(cell.folder)
            photos = [manifest.photo(row) for row in manifest.indices("test")[:1]]
            seconds = _timed(functools.partial(predictor, photos), 15)
            found[cell.place.student] = Cost(predictor.parameters, predictor.size_bytes, 1000 * seconds)
    torch.set_num_threads(threads)
    return found


def _one_backbone(recipe: Recipe) -> bool:
    """Whether the teachers of all seeds share theirs: a probe leaves it as it came."""
    return recipe.teach.stages == ("probe",)


def _decode(recipe: Recipe) -> None:
    """Fill the cache of pixels that all runs of the recipe share, which else each process would decode by itself."""
    data = recipe.data
    assert data.size is not None, "`grid.require` saw to it"
    PixelCache(open_manifest(recipe), data.size, data.fit, data.cache_mb).fill()


def _features(recipe: Recipe, part: int, parts: int) -> None:
    """Fill a part of the store of the backbone that all seeds share: the pool's processes divide the rows."""
    _fill(recipe, recipe.teachers[0], part, parts)


def _check(cell: Cell) -> None:
    _fill(cell.recipe, NetSpec(run=cell.folder.resolve()), check_seed=cell.seed)


def _fill(recipe: Recipe, spec: NetSpec, part: int = 0, parts: int = 1, check_seed: int | None = None) -> None:
    manifest = open_manifest(recipe)
    net = open_net(spec, open_task(recipe.task, manifest).classes).eval()
    loader = open_loader(recipe, manifest, [net])
    # a Run serves its own seed, whose labels are known; a backbone the seeds to come, with any of the rows
    labelled = True if spec.run and not recipe.data.unlabelled_share else None
    rows = manifest.indices("train", labelled=labelled)
    replay(net, loader, int(recipe.data.views or 0), rows[part::parts], check_seed)


def _teach(cell: Cell) -> None:
    """Teach, fill the store before several students ask for it at the same time, and judge."""
    if (cell.folder / "test.json").exists():
        return
    start = time.perf_counter()
    run = Run.open(cell.folder) if (cell.folder / "weights.safetensors").exists() else teach(cell.recipe, cell.folder)
    _fill(cell.recipe, NetSpec(run=cell.folder.resolve()))
    run.amend(minutes=(time.perf_counter() - start) / 60)
    _judge(cell)


def _train(cell: Cell) -> None:
    if (cell.folder / "test.json").exists():
        return
    chosen = cell.recipe
    if cell.learns:
        chosen = chosen.model_copy(update={"teachers": (NetSpec(run=cell.teacher.resolve()),)})
    start = time.perf_counter()
    if not (cell.folder / "weights.safetensors").exists():
        run = fit(chosen, cell.folder, resume=True)
        run.amend(minutes=(time.perf_counter() - start) / 60)
    _judge(cell)


def _judge(cell: Cell) -> None:
    """Read the test split once; what was said of each photo is kept."""
    manifest, predictor = open_manifest(cell.recipe), TorchPredictor.from_run(cell.folder)
    rows = manifest.indices("test", labelled=True)
    truth = evaluate.truth_of(manifest, rows, predictor.spec, "test")
    made = [predictor([manifest.photo(row)])[0] for row in rows]
    numbers = predictor.spec.scale is not None
    said = np.array([one.value if numbers else one.top for one in made])
    logits = np.stack([one.logits for one in made])
    with files.replacing(cell.folder / "test.npz") as temporary, temporary.open("wb") as out:
        np.savez(out, allow_pickle=False, said=said, truth=truth, logits=logits)
    figures = {
        **(_of_numbers(cell, truth, said) if numbers else _of_classes(cell, truth, said, logits)),
        "minutes": Run.open(cell.folder).record().get("minutes", 0.0),
    }
    files.write_json(cell.folder / "test.json", {"figures": figures, "refused": _refusal(cell.folder)})


def _of_classes(cell: Cell, truth: NDArray[Any], said: NDArray[Any], logits: NDArray[np.float32]) -> dict[str, float]:
    return {
        "macro_f1": metrics.macro_f1(metrics.confusion(truth, said, logits.shape[1])),
        "accuracy": metrics.accuracy(truth, said),
        "ece": metrics.ece(metrics.softmax(logits), truth),
        "agreement": metrics.agreement(_taught(cell), said),
    }


def _of_numbers(cell: Cell, truth: NDArray[Any], said: NDArray[Any]) -> dict[str, float]:
    return {
        "mae": metrics.mae(truth, said),
        "rmse": metrics.rmse(truth, said),
        "r2": metrics.r2(truth, said),
        "apart": metrics.mae(_taught(cell), said),
    }


def _taught(cell: Cell) -> NDArray[Any]:
    """What the teacher of the same seed said of these photos, whether or not the arm learned from it."""
    with np.load(cell.teacher / "test.npz", allow_pickle=False) as stored:
        said: NDArray[Any] = stored["said"]
    return said


def _refusal(folder: Path) -> str:
    """Why the gate refused the run's teacher; empty where it did not."""
    path = folder / "gate.json"
    found = files.read_json(path) if path.exists() else {"teachers": []}
    return "; ".join(check["why"] for checks in found["teachers"] for check in checks if check["answer"] == "refused")


def _begin() -> None:
    """In a worker: one thread, and an end where the study that waits for it has ended."""
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # it ended while Python imported
        sys.exit(1)
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
    pool: ProcessPoolExecutor,
    what: str,
    work: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Run the tasks; the first failure stops those that have not begun, and is raised; Ctrl-C stops all."""
    with _deaf_to_ctrl_c():
        waiting = [pool.submit(_run, work, task) for task in tasks]
    try:
        for done in console.track(as_completed(waiting), what, len(waiting)):
            done.result()
            after_each()
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


def _timed(work: Callable[[], Any], times: int = 3) -> float:
    """Median seconds of a call, after one to warm up."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
