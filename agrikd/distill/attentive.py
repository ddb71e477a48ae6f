"""Imitation where the teacher is right: Saputra, de Gusmao, Almalioglu, Markham, Trigoni 2019, "Distilling Knowledge
From a Deep Pose Regressor Network" (arXiv:1908.00858).

The student imitates the teacher's number, the more the less the teacher errs there (eq. 8 and 9 there):

    weight_attentive · Φ · (s − t)²,   Φ = 1 − (t − y)² / η

η is the range of the teacher's squared errors: the largest less the smallest. In the paper that of the whole training
set; here of the rows seen so far, which a set of views that are drawn anew at each step needs, so Φ is never below 0.
Numbers are counted in bins of the scale. A photo without a label has no y, and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import PARTS, Distiller, Weight, over_labelled
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task
from agrikd.tasks.regression import Regression


def attentive_loss(student: Tensor, teacher: Tensor, truth: Tensor, spread: Tensor) -> Tensor:
    """[B] from numbers [B]; spread: η."""
    attention = (1 - (teacher - truth).square() / spread.clamp(min=1e-9)).clamp(min=0)
    return attention * (student - teacher).square()


class AttentiveImitation(Distiller):
    """smallest, largest: squared error of each teacher so far."""

    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    uses_unlabelled: ClassVar[bool] = False
    exceptions: ClassVar[dict[str, str]] = {PARTS: "the range of the teacher's errors is that of the rows seen"}
    task: Regression
    smallest: Tensor
    largest: Tensor

    class Config(Distiller.Config):
        """weight_attentive: as much as the labels."""

        weight_attentive: Weight = 1.0

    config: Config

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        self.register_buffer("smallest", torch.full((len(teachers),), torch.inf))
        self.register_buffer("largest", torch.zeros(len(teachers)))

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        own, truth, each = self.task.value(student), self.task.truth(batch), []
        for number, teacher in enumerate(teachers):
            its = self.task.value(teacher)
            self._see((its - truth).square()[batch.labelled], number)
            each.append(attentive_loss(own, its, truth, self.largest[number] - self.smallest[number]))
        return {"attentive": over_labelled(torch.stack(each).mean(dim=0), batch)}

    @torch.no_grad()
    def _see(self, errors: Tensor, number: int) -> None:
        if len(errors):
            self.smallest[number] = torch.minimum(self.smallest[number], errors.min())
            self.largest[number] = torch.maximum(self.largest[number], errors.max())
