"""Soft targets on standardised logits: Sun, Ren, Li, Wang, Cao 2024, "Logit Standardization in Knowledge
Distillation" (arXiv:2403.01427).

One temperature for both nets asks the student to match the teacher's range of logits too. Here each row of logits is
first brought to mean 0 and standard deviation 1 (eq. 6 and algorithm 1 there):

    weight_logit_std · T² · KL(softmax(z(teacher) / T) ‖ softmax(z(student) / T))

Of two classes nothing is left: any two logits become −0.71 and 0.71, and the gradient is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import TWO_CLASSES, Distiller, Temperature, Weight
from agrikd.distill.kd import kd_loss
from agrikd.nets._base import Outputs

_EPSILON = 1e-7


def logit_std_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) of standardised logits, [B] from [B, C]."""
    return kd_loss(standardised(student), standardised(teacher), temperature)


def standardised(logits: Tensor) -> Tensor:
    """Each row with mean 0 and standard deviation 1 (with C − 1, as in the authors' code)."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + _EPSILON)


class StandardisedSoftTargets(Distiller):
    fewest_classes: ClassVar[int] = 3
    exceptions: ClassVar[dict[str, str]] = {TWO_CLASSES: "any two logits, standardised, are −0.71 and 0.71"}

    class Config(Distiller.Config):
        """The authors' code: temperature 2, weight 9. With three classes the standard deviation is noisy."""

        temperature: Temperature = 2.0
        weight_logit_std: Weight = 9.0

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        t = self.config.temperature
        return {"logit_std": torch.stack([logit_std_loss(student.logits, one.logits, t) for one in teachers]).mean(0)}
