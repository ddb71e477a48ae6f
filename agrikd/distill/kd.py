"""Soft targets: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).

    loss = weight_task · CE(student, label) + weight_kd · T² · KL(softmax(teacher / T) ‖ softmax(student / T))

T² (sec. 2 there) keeps the gradient's size when T changes. With several teachers the divergences are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Temperature, Weight
from agrikd.nets._base import Outputs
from agrikd.tasks.classification import softened_kl


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) at temperature T, [B] from logits [B, C]."""
    return softened_kl(student, teacher, temperature) * temperature**2


class SoftTargets(Distiller):
    """Agreement is the task's own divergence, so the same file serves every task that has one."""

    class Config(Distiller.Config):
        """temperature: 2 suits the 3 to 40 classes of a plant set; Hinton used 2 to 20 with more classes.
        weight_kd: as much as the labels."""

        temperature: Temperature = 2.0
        weight_kd: Weight = 1.0

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        t = self.config.temperature
        apart = [self.task.divergence(student, teacher, t) * t**2 for teacher in teachers]
        return {"kd": torch.stack(apart).mean(dim=0)}
