"""What a net says of photos that it has not learned from, when its last stages are tuned on all the others, in folds.

The stages before stay ImageNet's, so what they make of a photo and of its mirror images is computed once for all
folds. A fold that is done is kept: a killed run goes on with the next one, to the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from agrikd import console, files
from agrikd.data.augment import CLEAN
from agrikd.data.loader import Loader
from agrikd.errors import InputError, TrainingError
from agrikd.nets._base import Net, Outputs
from agrikd.nets.cached import FeatureStore
from agrikd.nets.from_timm import TimmNet

_STILL = 7
"""Layers of timm's sequence that stay as they are: the stem, its norm and five of EfficientNet's seven stages."""
_EPOCHS, _BATCH = 8, 16
_LR, _HEAD_LR, _WEIGHT_DECAY, _WARM_UP, _DROPOUT = 2e-4, 3e-3, 0.02, 0.15, 0.2
_MIXUP = 0.3
"""λ is drawn from Beta(0.3, 0.3) (Zhang et al. 2018, arXiv:1710.09412): it hinders learning wrong labels by heart."""
_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))

Probabilities = NDArray[np.float64]


def out_of_fold(
    net: TimmNet,
    loader: Loader,
    target: NDArray[np.int64],
    fold: NDArray[np.int64],
    what: str = "tune on the other folds",
) -> Probabilities:
    """[N, C] class probabilities of the loader's N rows, each by a net that was tuned on the other folds.

    net: an EfficientNet of timm, which stays as it is. target: classes [N]. fold: [N], whose numbers are the seeds.
    what: as the progress is called. Raises `TrainingError` where a fold's loss is not finite.
    """
    maps = _Maps(net, loader)
    kept = files.cache_folder() / "tuned" / _key(maps, target, fold)
    said = np.zeros((len(target), int(target.max()) + 1))
    left = []
    for number in np.unique(fold).tolist():
        known = _known(kept / f"{number}.json", (int((fold == number).sum()), said.shape[1]))
        if known is None:
            left.append(number)
        else:
            said[fold == number] = known
    steps = {number: _steps(int((fold != number).sum())) for number in left}
    with console.job(what, sum(steps.values())) as advance:
        done = 0
        for number in left:
            top = _top(net, said.shape[1], number)
            for _ in _tune(top, maps, target, np.flatnonzero(fold != number), number):
                advance(done := done + 1)
            said[fold == number] = _answers(top, maps, np.flatnonzero(fold == number))
            files.write_json(kept / f"{number}.json", said[fold == number].tolist())
    return said


class _Still(Net):
    """The layers that stay as they are: of a picture and its mirror images, [B, 4 · C · h · w] for the logits."""

    def __init__(self, net: TimmNet) -> None:
        mean, std = (tuple(values.flatten().tolist()) for values in (net.mean, net.std))
        super().__init__(net.input_size, mean, std, net.origin)
        self.layers = nn.Sequential(*net.model.as_sequential()[:_STILL])

    def answer(self, images: Tensor, stages: int) -> Outputs:
        maps = torch.stack([self.layers(images.flip(axes)) for axes in _MIRRORS], dim=1).flatten(1)
        return Outputs(maps, maps[:, :0])


class _Maps:
    """[B, C, h, w] of rows, each in one of its mirror images."""

    def __init__(self, net: TimmNet, loader: Loader) -> None:
        still = _Still(net).eval()
        with torch.inference_mode():
            self.shape = still.layers(torch.zeros(1, 3, *net.input_size)).shape[1:]
        self.loader, self.rows = loader, len(loader.manifest.rows)
        self.store = FeatureStore(still, loader, 0, kind="logits", what="mirror images")
        self.store.require(range(self.rows))

    def __call__(self, rows: NDArray[np.int64], mirrors: NDArray[np.int64]) -> Tensor:
        stored = self.store(torch.from_numpy(rows), torch.full((len(rows),), CLEAN))
        chosen = stored.view(len(rows), len(_MIRRORS), *self.shape)[torch.arange(len(rows)), torch.from_numpy(mirrors)]
        return chosen.contiguous(memory_format=torch.channels_last)


def _key(maps: _Maps, target: NDArray[np.int64], fold: NDArray[np.int64]) -> str:
    photos = [maps.loader.manifest.identity(row) for row in range(maps.rows)]
    how = [_EPOCHS, _BATCH, _LR, _HEAD_LR, _WEIGHT_DECAY, _WARM_UP, _DROPOUT, _MIXUP]
    return files.digest([maps.store.disk.path.parent.name, photos, target.tolist(), fold.tolist(), how])[:32]


def _known(path: Path, shape: tuple[int, int]) -> Probabilities | None:
    with suppress(InputError, ValueError):
        known = np.array(files.read_json(path), np.float64)
        if known.shape == shape:
            return known
    return None


def _top(net: TimmNet, classes: int, seed: int) -> nn.Sequential:
    """The layers that are tuned, with a head that knows nothing; norms keep ImageNet's statistics."""
    torch.manual_seed(seed)
    *layers, _, classifier = copy.deepcopy(net.model.as_sequential()[_STILL:])
    head = nn.Linear(classifier.in_features, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    top = nn.Sequential(*layers, nn.Dropout(_DROPOUT), head)
    return top.eval().requires_grad_(True)


def _steps(rows: int) -> int:
    return _EPOCHS * max(1, rows // _BATCH)


def _tune(
    top: nn.Sequential, maps: _Maps, target: NDArray[np.int64], rows: NDArray[np.int64], seed: int
) -> Iterator[None]:
    """One step at a time."""
    *layers, dropout, head = top
    groups = [
        {"params": [value for layer in layers for value in layer.parameters()]},
        {"params": list(head.parameters())},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [_LR, _HEAD_LR], total_steps=_steps(len(rows)), pct_start=_WARM_UP
    )
    rng = np.random.default_rng(seed)
    dropout.train()
    for _ in range(_EPOCHS):
        order = rng.permutation(rows)
        for start in range(0, max(1, len(order) - _BATCH + 1), _BATCH):
            batch = order[start : start + _BATCH]
            images = maps(batch, rng.integers(len(_MIRRORS), size=len(batch)))
            truth = F.one_hot(torch.from_numpy(target[batch]), int(target.max()) + 1).float()
            share, partner = float(rng.beta(_MIXUP, _MIXUP)), torch.from_numpy(rng.permutation(len(batch)))
            mixed = images.lerp(images[partner], 1 - share)
            loss = F.cross_entropy(top(mixed), truth.lerp(truth[partner], 1 - share))
            if not loss.isfinite():
                said = "the net that looks for wrong labels diverged: the loss is not finite"
                raise TrainingError(f"{said}\n    → --no-labels leaves them out")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            yield
    dropout.eval()


@torch.inference_mode()
def _answers(top: nn.Sequential, maps: _Maps, rows: NDArray[np.int64]) -> Probabilities:
    """[rows, C]: the mean over a photo's mirror images."""
    said = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        answers = [top(maps(batch, np.full(len(batch), mirror))).softmax(1) for mirror in range(len(_MIRRORS))]
        said.append(torch.stack(answers).mean(0).double().numpy())
    return np.concatenate(said)
