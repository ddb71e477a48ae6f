"""Decoupled soft targets: Zhao, Cui, Song, Qiu, Liang 2022, "Decoupled Knowledge Distillation" (arXiv:2203.08679).

Hinton's divergence is the sum of two parts of which the second is muted where the teacher is sure. DKD weighs
them apart (eq. 7 there), with p_t the softened probability of the target class and q the softmax over the others:

    weight_dkd_target · T² · KL([p_t, 1 − p_t]) + weight_dkd_others · T² · KL(q)

The target is the label; a row without one takes the teacher's first class. Of two classes there is one other, so the
second part is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import TWO_CLASSES, Distiller, Temperature, Weight
from agrikd.nets._base import Outputs
from agrikd.tasks.classification import softened_kl


def dkd_losses(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(target part, part of the others), each T² · KL(teacher ‖ student), [B] from logits [B, C] and int64 [B]."""
    own = F.one_hot(target, student.shape[1]).bool()
    of_target = softened_kl(_target_or_not(student / temperature, own), _target_or_not(teacher / temperature, own), 1.0)
    of_others = softened_kl(_others(student, own), _others(teacher, own), temperature)
    return of_target * temperature**2, of_others * temperature**2


def _target_or_not(logits: Tensor, own: Tensor) -> Tensor:
    """Logits of "the target" against "any other", [B, 2]."""
    return torch.stack([logits[own], logits.masked_fill(own, -torch.inf).logsumexp(dim=1)], dim=1)


def _others(logits: Tensor, own: Tensor) -> Tensor:
    rows, classes = logits.shape
    return logits[~own].view(rows, classes - 1)


class DecoupledSoftTargets(Distiller):
    exceptions: ClassVar[dict[str, str]] = {TWO_CLASSES: "dkd_others is 0, as there is one other, and it is kd"}

    class Config(Distiller.Config):
        """temperature: as for kd. weight_dkd_target: the paper's α = 1. weight_dkd_others: the paper's β is 8 with
        CIFAR-100 and 0.5 with ImageNet; 2 lies between."""

        temperature: Temperature = 2.0
        weight_dkd_target: Weight = 1.0
        weight_dkd_others: Weight = 2.0

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        each, own = [], self.task.place(batch.target)
        for teacher in teachers:
            target = torch.where(batch.labelled, own, teacher.logits.argmax(1))
            each.append(dkd_losses(student.logits, teacher.logits, target, self.config.temperature))
        of_target, of_others = (torch.stack(part).mean(dim=0) for part in zip(*each, strict=True))
        return {"dkd_target": of_target, "dkd_others": of_others}
