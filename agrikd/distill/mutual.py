"""Peers that teach each other: Zhang, Xiang, Hospedales, Lu 2018, "Deep Mutual Learning" (arXiv:1706.00384).

The student and its peers (the recipe's `teachers`, which may have random weights) learn together. Each net k of K has
the labels' loss and, to every other, a divergence (eq. 8 there, with equal weight for each peer):

    weight_task · CE_k + weight_mutual · 1 / (K − 1) · Σ_{l ≠ k} KL(p_l ‖ p_k)

p_l is held fixed in net k's loss. The sum over the nets is minimised at once; only the student is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Step, Weight
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task


def mutual_loss(task: Task, own: Outputs, peers: Sequence[Outputs]) -> Tensor:
    """[B]: mean over the peers of KL(peer ‖ own) at temperature 1; no gradient reaches the peers."""
    return torch.stack([task.divergence(own, peer.detach(), 1.0) for peer in peers]).mean(dim=0)


class MutualLearning(Distiller):
    """teachers: the peers. Parts: task and mutual are the student's own, peers is all that the others learn."""

    teachers_learn: ClassVar[bool] = True
    peers: ClassVar[bool] = True
    exceptions: ClassVar[Mapping[str, str]] = {"zero at equality": "its peers learn from the labels too"}

    class Config(Distiller.Config):
        """weight_mutual: the paper's 1. weight_peers: of what the peers learn, beside what the student learns."""

        weight_mutual: Weight = 1.0
        weight_peers: Weight = 1.0

    config: Config

    def forward(self, batch: Batch) -> Step:
        nets = [self.student, *(cast(Net, net) for net in self.teachers)]
        said = [net.on(batch) for net in nets]
        each = [self._losses(said[k], [*said[:k], *said[k + 1 :]], batch) for k in range(len(nets))]
        task, mutual = each[0]
        weight_task, weight_mutual = self.config.weight_task, self.config.weight_mutual
        peers = torch.stack([weight_task * t + weight_mutual * m for t, m in each[1:]]).sum()
        return self._step({"task": task, "mutual": mutual, "peers": peers}, said[0])

    def _losses(self, own: Outputs, peers: Sequence[Outputs], batch: Batch) -> tuple[Tensor, Tensor]:
        return self._task(own, batch), self._mean(mutual_loss(self.task, own, peers), batch)
