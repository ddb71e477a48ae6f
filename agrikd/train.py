"""The one training loop. It knows steps, not methods: what is learned from whom is the distiller's affair.

A step draws its batch, its views and its random numbers from (seed, step) alone, so a run that was killed and
resumed ends with the same weights, bit for bit on a CPU.

Under torchrun each process takes its part of the rows of that batch (see `agrikd.ranks`), and the means of their
losses and gradients are those of the whole batch, as far as the method's losses are means over rows. Batch norm sees
the part alone, and rank 0's running statistics are kept. Dropout draws other numbers on each rank.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from agrikd import console, distill, files, gate, image, pool, ranks
from agrikd.data.loader import Batch, unlabelled_rows
from agrikd.data.manifest import Manifest
from agrikd.distill._base import PARTS, TWO_CLASSES, Distiller
from agrikd.errors import InputError, Problem, TrainingError
from agrikd.jobs import Job, prepare
from agrikd.learned import learned_from, weights_of
from agrikd.nets._base import Net
from agrikd.nets.average import Average
from agrikd.nets.cached import keeps_embedding, replay
from agrikd.nets.ensemble import Ensemble
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import save_net
from agrikd.recipe import NetSpec, OptimSpec, PoolSpec, Recipe
from agrikd.run import Run

_LOG_EVERY = 10
_THUMBNAIL = 96
_KEPT_EXAMPLES = 5000


def fit(
    recipe: Recipe, out: Path, *, resume: bool = False, manifest: Manifest | None = None, check_cache: bool = False
) -> Run:
    """Train the recipe's student into the Run folder `out` and return the finished Run.

    check_cache: compute some of what is stored of the teachers anew, and stop where it differs.

    Raises `GateError` for a teacher not fit to teach, `TrainingError` for a loss that is not finite or a
    checkpoint that cannot be used or a rank that died, `InputError` and `StorageError` as their names say.
    """
    _require_equal_parts(recipe)
    with ranks.joined():
        job = prepare(recipe, manifest)
        ranks.require_same({"recipe": recipe.digest, "photos and labels": job.manifest.digest})
        with Run.held(out) if ranks.leads() else nullcontext():
            run = _start(job, out, resume)
            if not run.done:
                _fit(job, run, check_cache)
    return run


def _require_equal_parts(recipe: Recipe) -> None:
    """A mean over ranks is a mean over rows only where each rank has as many of each kind."""
    count, batch = ranks.world(), recipe.optim.batch
    unlabelled = unlabelled_rows(batch, recipe.data.unlabelled_share)
    labelled = batch - unlabelled
    if count == 1 or (labelled % count == 0 and unlabelled % count == 0 and batch >= 2 * count):
        return
    wrong = f"{labelled} labelled and {unlabelled} unlabelled rows a batch are no equal parts for {count} processes"
    without = max(round(unlabelled / count), 1) if unlabelled else 0
    fitting = count * (max(round(labelled / count), 1 if unlabelled else 2) + without)
    share = f" and data.unlabelled_share={count * without / fitting:.6g}" if unlabelled else ""
    mend = f"each process needs as many of each, and two rows or more: set optim.batch={fitting}{share}"
    raise InputError(Problem("optim.batch", wrong, mend))


def _start(job: Job, out: Path, resume: bool) -> Run:
    recipe, run = job.recipe, Run(out, job.recipe)
    record = {
        "seed": recipe.seed,
        "data_digest": job.manifest.digest,
        "classes": list(job.distiller.task.classes),
        "weights": weights_of(recipe),
    }
    with ranks.first():
        job.loader.cache.fill()
        if ranks.leads():
            run = Run.start(out, recipe, record, resume=resume)
            if not run.done:
                _gate(job, run)
                if (known := learned_from(recipe, job.manifest)) is not None:
                    run.write_learned(known)
    ranks.require_same({"Run folder": [run.done, run.checkpoint.exists()]})
    return run


def _fit(job: Job, run: Run, check_cache: bool) -> None:
    _say_what_differs(job)
    device = ranks.device()
    distiller = _replayed(job, check_cache)
    job = _with_chosen_pool(job, run)
    state = TrainState(distiller.to(device), job.recipe.optim)
    if run.checkpoint.exists():
        state.restore(run)
    if ranks.world() > 1:
        ranks.require_same({"step": state.step, "weights": state.digest()})
    if ranks.leads():
        run.rewind(state.step)
    _fit_steps(job, state, run, device)
    if ranks.leads():
        _finish(job, state, run)


def _say_what_differs(job: Job) -> None:
    for spec in (job.recipe.method, *job.recipe.method.also):
        declared = distill.method(spec.name).exceptions
        if len(job.distiller.task.classes) == 2 and (reason := declared.get(TWO_CLASSES)):
            console.say(f"method {spec.name}, of two classes: {reason}")
        if ranks.world() > 1 and (reason := declared.get(PARTS)):
            rows = job.recipe.optim.batch // ranks.world()
            console.say(f"method {spec.name}: {reason}; each of the {ranks.world()} processes sees {rows} rows alone")


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

    def digest(self) -> str:
        """The same weights and statistics, the same digest."""
        own = self._own(self.distiller.state_dict())
        return files.sha256(b"".join(value.cpu().numpy().tobytes() for value in own.values()))

    def _own(self, values: dict[str, Any]) -> dict[str, Any]:
        learned = self.distiller.teachers_learn
        return {name: value for name, value in values.items() if learned or not name.startswith("teachers.")}


def fit_epoch(state: TrainState, batches: Iterator[Batch], steps: int, seed: int = 0) -> dict[str, float]:
    """Take `steps` optimiser steps; returns the mean of the loss and of each named part.

    Raises `NonFiniteError` at the first loss that is not finite, before the weights change.
    """
    sums: dict[str, Tensor] = {}
    for _ in range(steps):
        batch = next(batches)
        key = (seed, 4, state.step, ranks.rank()) if ranks.rank() else (seed, 4, state.step)
        torch.manual_seed(int(np.random.default_rng(key).integers(2**31)))
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


class NonFiniteError(Exception):
    """A step's loss is not finite. Its one argument, text alone so that it can be pickled, names the loss's parts."""


def _step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    spec, distiller = state.spec, state.distiller
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(spec, state.step)
    half = spec.precision == "auto" and batch.images.is_cuda
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=half):
        step = distiller(batch)
    parts = ranks.mean({"loss": step.loss.detach(), **{name: part.detach() for name, part in step.parts.items()}})
    if not torch.isfinite(parts["loss"]):
        raise NonFiniteError(", ".join(f"{name} {float(part):.4g}" for name, part in parts.items() if name != "loss"))
    state.optimizer.zero_grad(set_to_none=True)
    step.loss.backward()
    ranks.share(distiller)
    if spec.clip:
        nn.utils.clip_grad_norm_(distiller.parameters(), spec.clip)
    state.optimizer.step()
    distiller.after_step()
    state.average.update()
    state.step += 1
    return parts


def _fit_steps(job: Job, state: TrainState, run: Run, device: torch.device) -> None:
    spec, start = job.recipe.optim, state.step
    draws = (ranks.part(job.sampler.draw(step)) for step in range(start, spec.steps))
    batches = (batch.to(device) for batch in job.loader.ahead(draws, job.recipe.data.workers))
    validation = job.manifest.indices("val", labelled=True)
    with console.job(f"train {job.recipe.name}", spec.steps, start) as advance:
        while state.step < spec.steps:
            steps = _until_boundary(state.step, spec)
            try:
                means = fit_epoch(state, batches, steps, job.recipe.seed)
            except NonFiniteError as error:
                raise _stopped(job, run, state.step, error) from None
            saves = state.step % spec.checkpoint_every == 0
            if ranks.leads():
                if saves and validation:
                    means["val_mistake"] = _mistake(state.average.module, job, validation, device)
                run.log({"step": state.step, "lr": learning_rate(spec, state.step - 1), **means})
                if saves:
                    state.save(run)
            advance(state.step)


def _until_boundary(step: int, spec: OptimSpec) -> int:
    """Steps to the next log line or checkpoint: the same places whether or not the run was resumed."""
    ends = [n * (step // n + 1) for n in (_LOG_EVERY, spec.checkpoint_every)]
    return min(*ends, spec.steps) - step


def _stopped(job: Job, run: Run, step: int, error: NonFiniteError) -> TrainingError:
    path = run.folder / f"non_finite_batch_{step}.pt"
    if ranks.leads():
        _save(vars(job.loader.batch(job.sampler.draw(step))), path)
    ranks.wait()
    mend = "lower optim.lr, or look at the photos of that batch"
    return TrainingError(f"step {step}: the loss is not finite ({error}); its batch is in {path}\n    → {mend}")


def _save(values: dict[str, Any], path: Path) -> None:
    """torch's own writer hides why a write failed; its bytes written by us say that the disk is full."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    files.write_bytes(path, buffer.getvalue())


@torch.inference_mode()
def _mistake(net: nn.Module, job: Job, indices: tuple[int, ...], device: torch.device) -> float:
    """The mean over the rows: the share of wrong classes, or how far a number is off."""
    net.eval()
    moved = (batch.to(device) for batch in job.loader.clean(indices))
    each = [job.distiller.task.mistake(net(batch.images).logits, batch.target) for batch in moved]
    return float(torch.cat(each).mean())


def _gate(job: Job, run: Run) -> None:
    """Hold every teacher against the gate; its words are kept in the Run, a refusal leaves no trained weights."""
    if not job.distiller.teachers or job.distiller.teachers_learn:
        return
    alone = job.recipe.gate.student_alone
    findings = [
        gate.check(
            net,
            job.loader,
            job.distiller.task,
            held_out=Run.open(spec.run) if spec.run else None,
            alone=Run.open(alone) if alone else None,
        )
        for net, spec in _each_teacher(job)
    ]
    gate.decide(findings, run, job.recipe.gate.override)


def _each_teacher(job: Job) -> Iterator[tuple[TimmNet, NetSpec]]:
    """The teachers, an ensemble's members one by one."""
    for net, spec in zip(job.distiller.teachers, job.recipe.teachers, strict=True):
        nets, specs = (net.members, spec.ensemble) if isinstance(net, Ensemble) else ([net], (spec,))
        for member, own in zip(nets, specs, strict=True):
            assert isinstance(member, TimmNet)
            yield member, own


def _replayed(job: Job, check: bool = False) -> Distiller:
    """Where each photo has a fixed set of views, the frozen teachers' features are computed once and replayed."""
    method, views = job.distiller, job.recipe.data.views
    if views is None or not method.teachers or method.teachers_learn:
        if check:
            console.say("nothing is stored of a teacher here, so there is nothing to check")
        return method
    if method.teacher_stages:
        console.say(f"method {job.recipe.method.name} reads the teacher's feature maps: the teacher runs live")
        return method
    members = [one for net in method.teachers for one in (net.members if isinstance(net, Ensemble) else (net,))]
    if method.teacher_embedding and not all(map(keeps_embedding, members)):
        why = "reads the embedding of a teacher whose classifier is not linear, which no store keeps"
        console.say(f"method {job.recipe.method.name} {why}: the teacher runs live")
        return method
    rows = sorted({*job.sampler.labelled, *job.sampler.unlabelled})
    seed = job.recipe.seed if check and ranks.leads() else None

    def replayed(net: nn.Module) -> Net:
        if isinstance(net, Ensemble):  # its members' stores serve other ensembles too
            return Ensemble([replayed(member) for member in net.members], net.combine, net.best)
        if ranks.world() > 1:  # each rank computes its part
            replay(net, job.loader, views, ranks.part(rows))
            ranks.wait()
        return replay(net, job.loader, views, rows, seed)

    method.teachers = nn.ModuleList(replayed(net) for net in method.teachers).requires_grad_(False)
    method.train()
    return method


def _with_chosen_pool(job: Job, run: Run) -> Job:
    """The job, drawing from those rows without a label that pass the recipe's filter."""
    spec, sampler = job.recipe.data.pool, job.sampler
    if spec == PoolSpec():
        return job
    found = pool.chosen(list(job.distiller.teachers), job.loader, sampler.labelled, sampler.unlabelled, spec)
    counts = {"photos": len(sampler.unlabelled), "kept": len(found.rows)}
    if ranks.leads():
        run.amend(pool={**counts, "unsure": found.unsure, "unknown": found.unknown})
    console.say(f"pool: {counts['kept']} of {counts['photos']} photos without a label pass the filter")
    return replace(job, sampler=replace(sampler, unlabelled=found.rows))


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
