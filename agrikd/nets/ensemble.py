"""Several teachers as one net: their class probabilities combined, whatever their sizes and normalisations.

mean: the average of the probabilities (Hinton et al. 2015, sec. 3). confidence: an average weighted for each photo by
1 − H(p) / log C, so that a member in doubt counts less (after Kwon et al. 2020, "Adaptive knowledge distillation based
on entropy"). best: each class from the member with the best held-out F1 for it, then divided by their sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agrikd import metrics
from agrikd.data.loader import Batch
from agrikd.errors import InputError, Problem
from agrikd.nets._base import Net, Origin, Outputs
from agrikd.nets.sources import open_net
from agrikd.recipe import Combine, NetSpec
from agrikd.run import Run

_LEAST = 1e-12
"""Probabilities below it have the same logarithm."""


class Ensemble(Net):
    """logits: the logarithm of the combined probabilities, so that softmax gives them back. embedding: those of the
    members side by side. Each member resizes and normalises at its own door.

    best: int64 [C], the member that speaks for each class; for `combine` "best" alone.
    """

    def __init__(self, members: Sequence[Net], combine: Combine, best: Tensor | None = None) -> None:
        size = tuple(max(net.input_size[side] for net in members) for side in (0, 1))
        classes = {net.origin.classes for net in members}
        trained = all(net.origin.head_trained for net in members)
        source = " and ".join(net.origin.source for net in members)
        origin = Origin(source, trained, classes.pop() if len(classes) == 1 else None)
        super().__init__((size[0], size[1]), (0.0,) * 3, (1.0,) * 3, origin)
        self.members, self.combine = nn.ModuleList(members), combine
        self.register_buffer("best", best if best is not None else torch.zeros(0, dtype=torch.int64))

    best: Tensor

    def forward(self, images: Tensor, stages: int = 0) -> Outputs:
        """images: float [B, 3, H, W], RGB in [0, 1]."""
        return self._combined([net(images, stages) for net in self.members])

    def on(self, batch: Batch, stages: int = 0) -> Outputs:
        return self._combined([cast(Net, net).on(batch, stages) for net in self.members])

    def _combined(self, said: Sequence[Outputs]) -> Outputs:
        if any(one.features for one in said):
            raise InputError(Problem("teachers", "an ensemble has no feature maps", "choose a method on logits"))
        p = torch.stack([one.logits.softmax(dim=1) for one in said])
        embedding = torch.cat([one.embedding for one in said], dim=1)
        return Outputs(combined(p, self.combine, self.best).clamp(min=_LEAST).log(), embedding)


def combined(p: Tensor, combine: Combine, best: Tensor) -> Tensor:
    """[B, C] probabilities from those of K members, [K, B, C]; `best` as in `Ensemble`."""
    if combine == "mean":
        return p.mean(dim=0)
    if combine == "confidence":
        entropy = -(p * p.clamp(min=_LEAST).log()).sum(dim=2, keepdim=True)
        weight = (1 - entropy / math.log(p.shape[2])).clamp(min=_LEAST)
        return (weight * p).sum(dim=0) / weight.sum(dim=0)
    spoken = p[best, :, torch.arange(p.shape[2])].T
    return spoken / spoken.sum(dim=1, keepdim=True).clamp(min=_LEAST)


def open_teacher(spec: NetSpec, classes: tuple[str, ...]) -> Net:
    """A net, or the ensemble that `spec` names."""
    if not spec.ensemble:
        return open_net(spec, classes)
    members = [open_net(member, classes) for member in spec.ensemble]
    if spec.combine != "best":
        return Ensemble(members, spec.combine)
    f1 = np.stack([_held_out_f1(member, number) for number, member in enumerate(spec.ensemble)])
    return Ensemble(members, "best", torch.from_numpy(f1.argmax(axis=0)))


def _held_out_f1(member: NetSpec, number: int) -> NDArray[np.float64]:
    found = Run.open(member.run).held_out() if member.run else None
    if found is None:
        mend = "teach it first (agrikd teach) and name its Run, or combine by mean"
        said = "has no held-out predictions to tell for which classes it is best"
        raise InputError(Problem(f"teachers: ensemble.{number}", said, mend))
    truth, logits = found
    if truth.dtype.kind == "f":
        raise InputError(
            Problem("teachers: combine", "best is a matter of classes, and these are numbers", "take mean")
        )
    return metrics.precision_recall_f1(metrics.confusion(truth, logits.argmax(1), logits.shape[1]))[2]
