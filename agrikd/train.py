"""The one training loop. It knows steps, not methods: what is learned from whom is the distiller's affair.

A step draws its batch, its views and its random numbers from (seed, step) alone, so a run that was killed and
resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from agrikd import console, distill, files, gate, image, tasks
from agrikd import recipe as recipes
from agrikd.data import manifest as manifests
from agrikd.data.augment import Augment
from agrikd.data.loader import Batch, Loader, PixelCache, Sampler
from agrikd.data.manifest import Manifest
from agrikd.data.splits import subset
from agrikd.distill._base import Distiller
from agrikd.errors import InputError, Problem, TrainingError
from agrikd.nets import from_timm
from agrikd.nets.average import Average
from agrikd.nets.cached import replay
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net, save_net
from agrikd.recipe import OptimSpec, Recipe
from agrikd.run import Run
from agrikd.tasks import open_task

_LOG_EVERY = 10
_THUMBNAIL = 96
_KEPT_EXAMPLES = 5000


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
    manifest = data.get("manifest") if isinstance(data, dict) else None
    if isinstance(manifest, str) and not Path(manifest).is_file():
        mend = "make one with: agrikd init FOLDER"
        found.append(Problem(f"{where}: data.manifest", f"there is no file {manifest}", mend))
    return found


def open_manifest(recipe: Recipe) -> Manifest:
    """The recipe's rows, with the labels beyond `labels_per_class` hidden."""
    manifest = manifests.read(recipe.data.manifest, recipe.data.root)
    manifests.require_files(manifest, str(recipe.data.manifest))
    return subset(manifest, recipe.data.labels_per_class, recipe.data.subset_seed)


def prepare(recipe: Recipe, manifest: Manifest | None = None) -> Job:
    """Open photos and nets. `manifest` overrides the recipe's (a fold, a study's shared one)."""
    manifest = manifest or open_manifest(recipe)
    task = open_task(recipe.task, manifest.classes)
    _require_sense(recipe)
    torch.manual_seed(recipe.seed)
    student = open_net(recipe.student, task.classes)
    if student.origin.classes not in (None, task.classes):
        known = f"its weights know the classes {', '.join(student.origin.classes or ())}"
        raise InputError(Problem("student", known, f"the photos have {', '.join(task.classes)}: name a timm model"))
    needed = recipe.teachers if any(method.needs_teacher for method in _methods(recipe)) else ()
    teachers = [open_net(spec, task.classes) for spec in needed]
    loader = open_loader(recipe, manifest, [student, *teachers])
    sampler = _sampler(recipe, manifest)
    if alone := recipe.gate.student_alone:
        Run.open(alone)
    distiller = distill.open_method(recipe.method, task, student, teachers)
    return Job(recipe, manifest, loader, sampler, distiller)


def _methods(recipe: Recipe) -> list[type[Distiller]]:
    return [distill.method(spec.name) for spec in (recipe.method, *recipe.method.also)]


def _require_sense(recipe: Recipe) -> None:
    """What the methods need of the rest of the recipe."""
    problems = []
    for spec, method in zip((recipe.method, *recipe.method.also), _methods(recipe), strict=True):
        if method.needs_teacher and not recipe.teachers:
            mend = "add one under teachers:, or use method none"
            problems.append(Problem("teachers", f"method {spec.name} needs a teacher", mend))
    if recipe.data.unlabelled_share and not any(method.uses_unlabelled for method in _methods(recipe)):
        mend = "set it to 0, or use --hard-labels"
        wrong = f"method {recipe.method.name} learns nothing from rows without a label"
        problems.append(Problem("data.unlabelled_share", wrong, mend))
    if problems:
        raise InputError(problems)


def open_loader(recipe: Recipe, manifest: Manifest, nets: list[TimmNet]) -> Loader:
    """Batches rendered at the recipe's size, by default the largest of the nets' input sizes."""
    data = recipe.data
    largest = (max(net.input_size[0] for net in nets), max(net.input_size[1] for net in nets))
    size = data.size or largest
    if size[0] < largest[0] or size[1] < largest[1]:
        wrong = f"is {size[0]} × {size[1]}, smaller than a net's input of {largest[0]} × {largest[1]}"
        raise InputError(Problem("data.size", wrong, "leave it out, or make it as large as the largest net's input"))
    cache = PixelCache(manifest, size, data.fit, data.cache_mb)
    target, labelled = open_task(recipe.task, manifest.classes).encode(manifest)
    return Loader(manifest, cache, Augment(data.augment, size), target, labelled)


def use_cores(recipe: Recipe) -> None:
    """Leave the loader's threads a core each: torch's threads and theirs hinder each other on a small machine."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - recipe.data.workers))
    image.opencv().setNumThreads(1)


def fit(
    recipe: Recipe, out: Path, *, resume: bool = False, manifest: Manifest | None = None, check_cache: bool = False
) -> Run:
    """Train the recipe's student into the Run folder `out` and return the finished Run.

    check_cache: compute some of what is stored of the teachers anew, and stop where it differs.

    Raises `GateError` for a teacher not fit to teach, `TrainingError` for a loss that is not finite or a
    checkpoint that cannot be used, `InputError` and `StorageError` as their names say.
    """
    job = prepare(recipe, manifest)
    record = {"seed": recipe.seed, "data_digest": job.manifest.digest, "classes": list(job.manifest.classes)}
    job.loader.cache.fill()
    run = Run.start(out, recipe, record, resume=resume)
    if run.done:
        return run
    _gate(job, run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = TrainState(_replayed(job, check_cache).to(device), recipe.optim)
    if run.checkpoint.exists():
        state.restore(run)
    run.rewind(state.step)
    _fit_steps(job, state, run, device)
    _finish(job, state, run)
    return run


class TrainState:
    """All that training changes: nets, averaged weights, optimiser, step."""

    def __init__(self, distiller: Distiller, spec: OptimSpec) -> None:
        self.distiller, self.spec, self.step = distiller, spec, 0
        groups = param_groups_weight_decay(distiller, spec.weight_decay)
        self.optimizer: torch.optim.Optimizer
        if spec.name == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=spec.lr)
        self.average = Average(distiller.student, spec.ema)

    def save(self, run: Run) -> None:
        """Write the checkpoint whole; frozen teachers are not in it."""
        values = {
            "step": self.step,
            "recipe": run.recipe.digest,
            "distiller": self._own(self.distiller.state_dict()),
            "average": self.average.module.state_dict(),
            "updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
        }
        _save(values, run.checkpoint)

    def restore(self, run: Run) -> None:
        try:
            values = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
            if values["recipe"] != run.recipe.digest:
                raise TrainingError(f"{run.checkpoint}: is a checkpoint of another recipe")
            own = self._own(self.distiller.state_dict())
            if own.keys() != values["distiller"].keys():
                raise KeyError("the nets have other parameters")
            self.distiller.load_state_dict(values["distiller"], strict=False)
            self.average.module.load_state_dict(values["average"])
            self.average.updates = int(values["updates"])
            self.optimizer.load_state_dict(values["optimizer"])
            self.step = int(values["step"])
        except (RuntimeError, KeyError, ValueError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
            mend = "delete it to train again from step 0"
            said = str(error).partition("\n")[0] or type(error).__name__
            raise TrainingError(f"{run.checkpoint}: is damaged ({said})\n    → {mend}") from None

    def _own(self, values: dict[str, Any]) -> dict[str, Any]:
        learned = self.distiller.teachers_learn
        return {name: value for name, value in values.items() if learned or not name.startswith("teachers.")}


def fit_epoch(state: TrainState, batches: Iterator[Batch], steps: int, seed: int = 0) -> dict[str, float]:
    """Take `steps` optimiser steps; returns the mean of the loss and of each named part.

    Raises `_NonFiniteError` (with the batch) at the first loss that is not finite, before the weights change.
    """
    sums: dict[str, Tensor] = {}
    for _ in range(steps):
        batch = next(batches)
        torch.manual_seed(int(np.random.default_rng((seed, 4, state.step)).integers(2**31)))
        parts = _step(state, batch)
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach().cpu()
    return {name: float(value) / steps for name, value in sums.items()}


def learning_rate(spec: OptimSpec, step: int) -> float:
    """Linear warm-up over `warmup` of the steps, then half a cosine down to zero (Loshchilov & Hutter 2017)."""
    warm = spec.warmup * spec.steps
    if step < warm:
        return spec.lr * (step + 1) / (warm + 1)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(spec.steps - warm, 1)))


class _NonFiniteError(Exception):
    def __init__(self, batch: Batch, parts: dict[str, Tensor]) -> None:
        super().__init__(", ".join(f"{name} {float(value.detach()):.4g}" for name, value in parts.items()))
        self.batch = batch


def _step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    spec, distiller = state.spec, state.distiller
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(spec, state.step)
    half = spec.precision == "auto" and batch.images.is_cuda
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=half):
        step = distiller(batch)
    if not torch.isfinite(step.loss):
        raise _NonFiniteError(batch, step.parts)
    state.optimizer.zero_grad(set_to_none=True)
    step.loss.backward()
    if spec.clip:
        nn.utils.clip_grad_norm_(distiller.parameters(), spec.clip)
    state.optimizer.step()
    distiller.after_step()
    state.average.update()
    state.step += 1
    return {"loss": step.loss, **step.parts}


def _fit_steps(job: Job, state: TrainState, run: Run, device: torch.device) -> None:
    spec, start = job.recipe.optim, state.step
    draws = (job.sampler.draw(step) for step in range(start, spec.steps))
    batches = (batch.to(device) for batch in job.loader.ahead(draws, job.recipe.data.workers))
    validation = job.manifest.indices("val", labelled=True)
    with console.job(f"train {job.recipe.name}", spec.steps, start) as advance:
        while state.step < spec.steps:
            steps = _until_boundary(state.step, spec)
            try:
                means = fit_epoch(state, batches, steps, job.recipe.seed)
            except _NonFiniteError as error:
                raise _stopped(run, state.step, error) from None
            saves = state.step % spec.checkpoint_every == 0
            if saves and validation:
                means["val_accuracy"] = _accuracy(state.average.module, job.loader, validation, device)
            run.log({"step": state.step, "lr": learning_rate(spec, state.step - 1), **means})
            if saves:
                state.save(run)
            advance(state.step)


def _until_boundary(step: int, spec: OptimSpec) -> int:
    """Steps to the next log line or checkpoint: the same places whether or not the run was resumed."""
    ends = [n * (step // n + 1) for n in (_LOG_EVERY, spec.checkpoint_every)]
    return min(*ends, spec.steps) - step


def _stopped(run: Run, step: int, error: _NonFiniteError) -> TrainingError:
    path = run.folder / f"non_finite_batch_{step}.pt"
    _save(vars(error.batch.to(torch.device("cpu"))), path)
    mend = "lower optim.lr, or look at the photos of that batch"
    return TrainingError(f"step {step}: the loss is not finite ({error}); its batch is in {path}\n    → {mend}")


def _save(values: dict[str, Any], path: Path) -> None:
    """torch's own writer hides why a write failed; its bytes written by us say that the disk is full."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    files.write_bytes(path, buffer.getvalue())


@torch.inference_mode()
def _accuracy(net: nn.Module, loader: Loader, indices: tuple[int, ...], device: torch.device) -> float:
    net.eval()
    right = 0
    for batch in loader.clean(indices):
        moved = batch.to(device)
        right += int((net(moved.images).logits.argmax(1) == moved.target).sum())
    return right / len(indices)


def _sampler(recipe: Recipe, manifest: Manifest) -> Sampler:
    data = recipe.data
    return Sampler(
        labelled=manifest.indices("train", labelled=True),
        unlabelled=manifest.indices("train", labelled=False),
        batch=recipe.optim.batch,
        unlabelled_share=data.unlabelled_share,
        views=data.views,
        seed=recipe.seed,
    )


def _gate(job: Job, run: Run) -> None:
    """Hold every teacher against the gate; its words are kept in the Run, a refusal leaves no trained weights."""
    if not job.distiller.teachers or job.distiller.teachers_learn:
        return
    alone = job.recipe.gate.student_alone
    findings = [
        gate.check(
            net,
            job.loader,
            held_out=Run.open(spec.run) if spec.run else None,
            alone=Run.open(alone) if alone else None,
        )
        for net, spec in zip(job.distiller.teachers, job.recipe.teachers, strict=True)
        if isinstance(net, TimmNet)
    ]
    gate.decide(findings, run, job.recipe.gate.override)


def _replayed(job: Job, check: bool = False) -> Distiller:
    """Where each photo has a fixed set of views, the frozen teachers' features are computed once and replayed."""
    method, data = job.distiller, job.recipe.data
    if data.views is None or not method.teachers or method.teachers_learn:
        if check:
            console.say("nothing is stored of a teacher here, so there is nothing to check")
        return method
    if method.teacher_stages:
        console.say(f"method {job.recipe.method.name} reads the teacher's feature maps: the teacher runs live")
        return method
    rows = sorted({*job.sampler.labelled, *job.sampler.unlabelled})
    seed = job.recipe.seed if check else None
    nets = [replay(net, job.loader, data.views, rows, seed) for net in method.teachers]
    method.teachers = nn.ModuleList(nets).requires_grad_(False)
    method.train()
    return method


def _finish(job: Job, state: TrainState, run: Run) -> None:
    """Keep the averaged weights and, for "nearest examples", what the net says of the photos it learned from."""
    average = state.average.module if job.recipe.optim.ema else state.distiller.student
    assert isinstance(average, TimmNet)
    average.cpu().eval()
    files_written = _examples(average, job)
    with files.replacing(run.folder / "embeddings.npz") as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **files_written)
    save_net(average, job.recipe, run)
    run.checkpoint.unlink(missing_ok=True)


def _examples(net: TimmNet, job: Job) -> dict[str, NDArray[Any]]:
    rows = job.manifest.indices("train", labelled=True)[:_KEPT_EXAMPLES]
    with torch.inference_mode():
        embeddings = [net(batch.images).embedding.numpy().astype(np.float16) for batch in job.loader.clean(rows)]
    thumbnails = [image.resize(job.loader.cache[row], (_THUMBNAIL, _THUMBNAIL)) for row in rows]
    target = job.loader.target[list(rows)].numpy()
    paths = np.array([job.manifest.rows[row].path for row in rows])
    return {"embedding": np.concatenate(embeddings), "thumbnail": np.stack(thumbnails), "target": target, "path": paths}
