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
from agrikd.distill.none import StudentAlone
from agrikd.errors import InputError, Problem, TrainingError
from agrikd.jobs import open_loader, open_manifest, stratum_folds
from agrikd.learned import marks
from agrikd.nets.cached import FeatureStore
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net, save_net
from agrikd.recipe import MethodSpec, Recipe, Stage
from agrikd.run import Run
from agrikd.tasks import open_task
from agrikd.tasks._base import Task
from agrikd.train import NonFiniteError, TrainState, fit_epoch

_L2 = (1e-3, 1e-2, 1e-1)
"""Weight penalties of the probe that held-out predictions choose from."""


@dataclass(frozen=True)
class Verdict:
    """What a stage did on the held-out rows: calibrated log loss (of the class, or of the number's bin), the mean of
    `Task.mistake`, and whether it was kept."""

    stage: str
    rows: int
    nll: float
    mistake: float
    kept: bool


@dataclass(frozen=True)
class _Part:
    """Rows to learn from and rows to be judged on; a val split makes one part, k folds make k."""

    train: tuple[int, ...]
    judged: tuple[int, ...]


@dataclass(frozen=True)
class _Lesson:
    """What is taught, and the rows to teach and judge by.

    truth: the targets of all judged rows in the order of the parts; place: their classes or bins.
    """

    recipe: Recipe
    task: Task
    loader: Loader
    parts: tuple[_Part, ...]

    @property
    def judged(self) -> list[int]:
        return [row for part in self.parts for row in part.judged]

    @property
    def truth(self) -> Tensor:
        return self.loader.target[self.judged]

    @property
    def place(self) -> NDArray[np.int64]:
        place: NDArray[np.int64] = self.task.place(self.truth).numpy()
        return place

    @property
    def train(self) -> tuple[int, ...]:
        return self.loader.manifest.indices("train", labelled=True)


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
    targets teach better) is divided into the classifier, so that whoever loads the weights has it; not for numbers,
    whose mean it would shift. Raises `TrainingError` where a stage's loss is not finite.
    """
    if not recipe.teachers or recipe.teachers[0].timm is None:
        mend = "name a timm model with weights under teachers:"
        raise InputError(Problem("teachers", "there is no timm model to teach", mend))
    named = {
        "student": recipe.teachers[0],
        "teachers": (),
        "method": MethodSpec(),
        "name": recipe.suffixed("teacher"),
    }
    own = recipe.model_copy(update=named)
    manifest = manifest or open_manifest(recipe)
    torch.manual_seed(recipe.seed)
    with Run.held(out):
        return _teach(own, manifest, out)


def _teach(own: Recipe, manifest: Manifest, out: Path) -> Run:
    task = open_task(own.task, manifest)
    net = open_net(own.student, task.classes)
    loader = open_loader(own, manifest, [net])
    record = {"seed": own.seed, "data_digest": manifest.digest, "classes": list(task.classes)}
    loader.cache.fill()
    run = Run.start(out, own, record, resume=not (out / "weights.safetensors").exists())
    run.write_learned(marks(manifest, manifest.indices("train", labelled=True)))
    lesson = _Lesson(own, task, loader, _parts(own, task, manifest))
    taught, verdicts = _stages(lesson, net)
    temperature = 1.0 if task.scale else metrics.fit_temperature(taught.logits, lesson.place)
    _divide(taught.whole.classifier, temperature)
    run.write_held_out(lesson.truth.numpy(), taught.logits / np.float32(temperature))
    run.amend(stages=[asdict(v) for v in verdicts], temperature=temperature, origin=net.origin.source)
    save_net(taught.whole, own, run)
    return run


def _stages(lesson: _Lesson, net: TimmNet) -> tuple[_Taught, list[Verdict]]:
    place, verdicts = lesson.place, []
    guess = np.zeros((len(place), len(lesson.task.classes)), np.float32)
    best = _Taught((net,) * len(lesson.parts), net, guess)
    for stage in lesson.recipe.teach.stages:
        tried = _probe(lesson, best) if stage == "probe" else _tune(lesson, best, stage)
        nll = _calibrated_nll(tried.logits, place)
        mistake = float(lesson.task.mistake(torch.from_numpy(tried.logits), lesson.truth).mean())
        kept = nll < _calibrated_nll(best.logits, place)
        verdicts.append(Verdict(stage, len(place), nll, mistake, kept))
        scale = lesson.task.scale
        said = f"off by {scale.said(mistake)}" if scale else f"accuracy {1 - mistake:.3f}"
        words = f"teach {stage}: {said}, log loss {nll:.3f} on {len(place)} held-out rows"
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


def _parts(recipe: Recipe, task: Task, manifest: Manifest) -> tuple[_Part, ...]:
    train = manifest.indices("train", labelled=True)
    if val := manifest.indices("val", labelled=True):
        return (_Part(train, val),)
    fold = stratum_folds(task, manifest, train, recipe.teach.folds, recipe.seed)
    return tuple(
        _Part(
            tuple(row for row, f in zip(train, fold, strict=True) if f != number),
            tuple(row for row, f in zip(train, fold, strict=True) if f == number),
        )
        for number in range(recipe.teach.folds)
    )


def _probe(lesson: _Lesson, now: _Taught) -> _Taught:
    """Fit the classifier on stored features; the penalty is the one with the least held-out log loss."""
    loader, parts = lesson.loader, lesson.parts
    views = lesson.recipe.data.views or lesson.recipe.teach.probe_views
    store = FeatureStore(now.whole, loader, views)
    store.require(sorted({*lesson.train, *lesson.judged}))

    def fitted(rows: Sequence[int], l2: float) -> nn.Linear:
        features, target = _features(store, loader, rows, views)
        return fit_probe(features, lesson.task.distribution(target), l2)

    clean = [_features(store, loader, part.judged, 0)[0] for part in parts]
    tried: dict[float, tuple[list[nn.Linear], NDArray[np.float32]]] = {}
    for l2 in _L2:
        heads = [fitted(part.train, l2) for part in parts]
        judged = [head(x).detach().numpy() for head, x in zip(heads, clean, strict=True)]
        tried[l2] = heads, np.concatenate(judged)
    best = min(_L2, key=lambda l2: metrics.nll(tried[l2][1], lesson.place))
    heads, logits = tried[best]
    nets = tuple(_with_head(lesson, now.whole, head) for head in heads)
    if len(parts) == 1:
        return _Taught(nets, nets[0], logits)
    return _Taught(nets, _with_head(lesson, now.whole, fitted(lesson.train, best)), logits)


def _tune(lesson: _Lesson, now: _Taught, stage: Stage) -> _Taught:
    """Tune each part's net on its own rows, and the whole one on all."""
    pairs = list(zip(now.parts, lesson.parts, strict=True))
    nets = tuple(_tuned(lesson, net, part.train, stage) for net, part in pairs)
    judged = [_logits(net, lesson.loader, part.judged) for net, part in zip(nets, lesson.parts, strict=True)]
    if len(pairs) == 1:
        return _Taught(nets, nets[0], judged[0])
    return _Taught(nets, _tuned(lesson, now.whole, lesson.train, stage), np.concatenate(judged))


def _with_head(lesson: _Lesson, net: TimmNet, head: nn.Linear) -> TimmNet:
    taught = copy.deepcopy(net)
    taught.classifier.load_state_dict(head.state_dict())
    return _trained(taught, lesson.task)


@torch.no_grad()
def _divide(classifier: nn.Module, temperature: float) -> None:
    for value in classifier.parameters():
        value.div_(temperature)


def fit_probe(features: Tensor, target: Tensor, l2: float) -> nn.Linear:
    """Multinomial logistic regression by L-BFGS on standardised features, [N, D], and target probabilities, [N, C].

    The penalty is l2 · ‖W‖² on the standardised weights. The returned layer takes the raw features.
    """
    mean, std = features.mean(0), features.std(0) + 1e-3
    scaled = (features - mean) / std
    head = nn.Linear(features.shape[1], target.shape[1])
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


def _tuned(lesson: _Lesson, net: TimmNet, rows: tuple[int, ...], stage: Stage) -> TimmNet:
    recipe, student = lesson.recipe, copy.deepcopy(net)
    student.requires_grad_(True)
    if stage == "last":
        parameters = list(student.model.parameters())
        trained = {id(p) for p in student.classifier.parameters()}
        for p in parameters[: len(parameters) // 2]:
            p.requires_grad_(id(p) in trained)
    optim = recipe.optim.model_copy(update={"steps": recipe.teach.steps, "lr": recipe.teach.lr})
    method = StudentAlone if recipe.student.weights == "none" else _StillNorms
    state = TrainState(method(lesson.task, student, (), StudentAlone.Config()), optim)
    sampler = Sampler(rows, (), optim.batch, 0.0, recipe.data.views, recipe.seed)
    batches = lesson.loader.ahead(_draws(sampler, optim.steps), recipe.data.workers)
    for step in console.track(range(optim.steps), f"teach {stage}"):
        try:
            fit_epoch(state, batches, 1, recipe.seed)
        except NonFiniteError as error:
            wrong = f"teach {stage}: the loss is not finite at step {step} ({error})"
            raise TrainingError(f"{wrong}\n    → lower teach.lr, or leave {stage} out of teach.stages") from None
    tuned = state.average.module
    assert isinstance(tuned, TimmNet)
    return _trained(tuned, lesson.task)


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


def _trained(net: TimmNet, task: Task) -> TimmNet:
    net.origin = replace(net.origin, head_trained=True, classes=task.classes)
    return net.eval().requires_grad_(False)
