"""Tuning a teacher on few labels, in stages; each is kept only if held-out predictions get better.

probe: a linear classifier on pooled features, which are computed once. last: the last half of the parameters,
the classifier among them. all: everything. The order and the reason to begin with the probe: Kumar et al. 2022,
"Fine-tuning can distort pretrained features" (arXiv:2202.10054). Held-out predictions are those on the val
split, or out-of-fold where there is none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from agrikd import console, metrics
from agrikd.data.augment import CLEAN
from agrikd.data.loader import Batch, Loader, Sampler, Views
from agrikd.data.manifest import Manifest
from agrikd.data.splits import folds
from agrikd.distill.none import StudentAlone
from agrikd.errors import InputError, Problem
from agrikd.jobs import open_loader, open_manifest
from agrikd.nets.cached import FeatureStore
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net, save_net
from agrikd.recipe import MethodSpec, Recipe, Stage
from agrikd.run import Run
from agrikd.tasks import open_task
from agrikd.train import TrainState, fit_epoch

_L2 = (1e-3, 1e-2, 1e-1)
"""Weight penalties of the probe that held-out predictions choose from."""


@dataclass(frozen=True)
class Verdict:
    """What a stage did on the held-out rows: calibrated log loss and accuracy, and whether it was kept."""

    stage: str
    rows: int
    nll: float
    accuracy: float
    kept: bool


@dataclass(frozen=True)
class _Part:
    """Rows to learn from and rows to be judged on; a val split makes one part, k folds make k."""

    train: tuple[int, ...]
    judged: tuple[int, ...]


@dataclass(frozen=True)
class _Taught:
    """A net for each part, which has never seen the part's judged rows, and the net that learned from all."""

    parts: tuple[TimmNet, ...]
    whole: TimmNet
    logits: NDArray[np.float32]


def teach(recipe: Recipe, out: Path, manifest: Manifest | None = None) -> Run:
    """Tune the recipe's first teacher into the Run folder `out`.

    The Run's recipe has the teacher in the student's place; run.json says each stage's verdict; held_out.npz
    keeps the held-out logits the gate judges by. The temperature that fits them (a calibrated teacher's soft
    targets teach better) is divided into the classifier, so that whoever loads the weights has it.
    """
    if not recipe.teachers or recipe.teachers[0].timm is None:
        mend = "name a timm model with weights under teachers:"
        raise InputError(Problem("teachers", "there is no timm model to teach", mend))
    named = {"student": recipe.teachers[0], "teachers": (), "method": MethodSpec(), "name": f"{recipe.name}-teacher"}
    own = recipe.model_copy(update=named)
    manifest = manifest or open_manifest(recipe)
    torch.manual_seed(recipe.seed)
    net = open_net(own.student, manifest.classes)
    loader = open_loader(own, manifest, [net])
    record = {"seed": own.seed, "data_digest": manifest.digest, "classes": list(manifest.classes)}
    loader.cache.fill()
    run = Run.start(out, own, record, resume=not (out / "weights.safetensors").exists())
    parts = _parts(own, loader)
    taught, verdicts = _stages(own, net, loader, parts)
    truth = _truth(loader, parts)
    temperature = metrics.fit_temperature(taught.logits, truth)
    _divide(taught.whole.classifier, temperature)
    run.write_held_out(truth, taught.logits / np.float32(temperature))
    run.amend(stages=[asdict(v) for v in verdicts], temperature=temperature, origin=net.origin.source)
    save_net(taught.whole, own, run)
    return run


def _stages(recipe: Recipe, net: TimmNet, loader: Loader, parts: Sequence[_Part]) -> tuple[_Taught, list[Verdict]]:
    truth, verdicts = _truth(loader, parts), []
    guess = np.zeros((len(truth), len(loader.manifest.classes)), np.float32)
    best = _Taught((net,) * len(parts), net, guess)
    for stage in recipe.teach.stages:
        tried = (_probe if stage == "probe" else _tune)(recipe, best, loader, parts, stage)
        nll, accuracy = _calibrated_nll(tried.logits, truth), metrics.accuracy(truth, tried.logits.argmax(1))
        kept = nll < _calibrated_nll(best.logits, truth)
        verdicts.append(Verdict(stage, len(truth), nll, accuracy, kept))
        words = f"teach {stage}: accuracy {accuracy:.3f}, log loss {nll:.3f} on {len(truth)} held-out rows"
        console.say(f"{words} — {'kept' if kept else 'dropped'}")
        best = tried if kept else best
    if not any(verdict.kept for verdict in verdicts):
        mend = "look at the photos and labels"
        raise InputError(Problem("teachers.0", "no stage made it better than a guess", mend))
    return best, verdicts


def _calibrated_nll(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Log loss at the temperature that fits best: over-confidence is mended later and is no reason to drop a stage."""
    if not logits.any():
        return metrics.nll(logits, truth)  # the guess before the first stage: every temperature is the same
    return metrics.nll(logits / metrics.fit_temperature(logits, truth), truth)


def _parts(recipe: Recipe, loader: Loader) -> tuple[_Part, ...]:
    train = loader.manifest.indices("train", labelled=True)
    if val := loader.manifest.indices("val", labelled=True):
        return (_Part(train, val),)
    rows = loader.manifest.rows
    groups = [rows[row].group or f"row {row}" for row in train]
    fold = folds(loader.target[list(train)].tolist(), recipe.teach.folds, recipe.seed, groups)
    return tuple(
        _Part(
            tuple(row for row, f in zip(train, fold, strict=True) if f != number),
            tuple(row for row, f in zip(train, fold, strict=True) if f == number),
        )
        for number in range(recipe.teach.folds)
    )


def _truth(loader: Loader, parts: Sequence[_Part]) -> NDArray[np.int64]:
    truth: NDArray[np.int64] = loader.target[[row for part in parts for row in part.judged]].numpy()
    return truth


def _probe(recipe: Recipe, now: _Taught, loader: Loader, parts: Sequence[_Part], _: Stage) -> _Taught:
    """Fit the classifier on stored features; the penalty is the one with the least held-out log loss."""
    classes, train = len(loader.manifest.classes), loader.manifest.indices("train", labelled=True)
    views = recipe.data.views or recipe.teach.probe_views
    store = FeatureStore(now.whole, loader, views)
    store.require(sorted({row for part in parts for row in (*part.train, *part.judged)}))
    tried: dict[float, tuple[list[nn.Linear], NDArray[np.float32]]] = {}
    for l2 in _L2:
        heads = [fit_probe(*_features(store, loader, part.train, views), classes, l2) for part in parts]
        clean = [_features(store, loader, part.judged, 0)[0] for part in parts]
        judged = [head(x).detach().numpy() for head, x in zip(heads, clean, strict=True)]
        tried[l2] = heads, np.concatenate(judged)
    best = min(_L2, key=lambda l2: metrics.nll(tried[l2][1], _truth(loader, parts)))
    heads, logits = tried[best]
    nets = tuple(_with_head(now.whole, head, loader) for head in heads)
    if len(parts) == 1:
        return _Taught(nets, nets[0], logits)
    head = fit_probe(*_features(store, loader, train, views), classes, best)
    return _Taught(nets, _with_head(now.whole, head, loader), logits)


def _tune(recipe: Recipe, now: _Taught, loader: Loader, parts: Sequence[_Part], stage: Stage) -> _Taught:
    """Tune each part's net on its own rows, and the whole one on all."""
    pairs = zip(now.parts, parts, strict=True)
    nets = tuple(_tuned(recipe, net, loader, part.train, stage) for net, part in pairs)
    logits = np.concatenate([_logits(net, loader, part.judged) for net, part in zip(nets, parts, strict=True)])
    if len(parts) == 1:
        return _Taught(nets, nets[0], logits)
    rows = loader.manifest.indices("train", labelled=True)
    return _Taught(nets, _tuned(recipe, now.whole, loader, rows, stage), logits)


def _with_head(net: TimmNet, head: nn.Linear, loader: Loader) -> TimmNet:
    taught = copy.deepcopy(net)
    taught.classifier.load_state_dict(head.state_dict())
    return _trained(taught, loader)


@torch.no_grad()
def _divide(classifier: nn.Module, temperature: float) -> None:
    for value in classifier.parameters():
        value.div_(temperature)


def fit_probe(features: Tensor, target: Tensor, classes: int, l2: float) -> nn.Linear:
    """Multinomial logistic regression, [N, D] features and int64 [N] targets, by L-BFGS on standardised features.

    The penalty is l2 · ‖W‖² on the standardised weights. The returned layer takes the raw features.
    """
    mean, std = features.mean(0), features.std(0) + 1e-3
    scaled = (features - mean) / std
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(scaled), target) + l2 * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(head.weight @ mean)
    return head


def _features(store: FeatureStore, loader: Loader, rows: Sequence[int], views: int) -> tuple[Tensor, Tensor]:
    """([rows · (views + 1), D], targets): the clean view and the first `views` augmented ones of each row."""
    seeds = [CLEAN, *range(views)]
    index = torch.tensor(rows).repeat_interleave(len(seeds))
    return store(index, torch.tensor(seeds).repeat(len(rows))), loader.target[index]


def _tuned(recipe: Recipe, net: TimmNet, loader: Loader, rows: tuple[int, ...], stage: Stage) -> TimmNet:
    student = copy.deepcopy(net)
    student.requires_grad_(True)
    if stage == "last":
        parameters = list(student.model.parameters())
        trained = {id(p) for p in student.classifier.parameters()}
        for p in parameters[: len(parameters) // 2]:
            p.requires_grad_(id(p) in trained)
    task = open_task(recipe.task, loader.manifest.classes)
    optim = recipe.optim.model_copy(update={"steps": recipe.teach.steps, "lr": recipe.teach.lr})
    method = StudentAlone if recipe.student.weights == "none" else _StillNorms
    state = TrainState(method(task, student, (), StudentAlone.Config()), optim)
    sampler = Sampler(rows, (), optim.batch, 0.0, recipe.data.views, recipe.seed)
    batches = loader.ahead(_draws(sampler, optim.steps), recipe.data.workers)
    for _ in console.track(range(optim.steps), f"teach {stage}"):
        fit_epoch(state, batches, 1, recipe.seed)
    tuned = state.average.module
    assert isinstance(tuned, TimmNet)
    return _trained(tuned, loader)


class _StillNorms(StudentAlone):
    """A pretrained backbone stays in eval mode: the statistics of a few dozen photos are worse than ImageNet's."""

    def train(self, mode: bool = True) -> _StillNorms:
        super().train(False)
        return self


def _draws(sampler: Sampler, steps: int) -> Iterator[Views]:
    return (sampler.draw(step) for step in range(steps))


@torch.inference_mode()
def _logits(net: TimmNet, loader: Loader, rows: Sequence[int]) -> NDArray[np.float32]:
    batches: Iterator[Batch] = loader.clean(rows)
    return np.concatenate([net(batch.images).logits.numpy() for batch in batches])


def _trained(net: TimmNet, loader: Loader) -> TimmNet:
    net.origin = replace(net.origin, head_trained=True, classes=loader.manifest.classes)
    return net.eval().requires_grad_(False)
