"""Attention transfer: Zagoruyko, Komodakis 2017, "Paying More Attention to Attention" (arXiv:1612.03928).

    Q(A) = the mean over channels of A², as a vector over positions
    loss = weight_task · CE(student, label)
         + weight_attention · Σ over the last 3 stages of mean (Q(S) / ‖Q(S)‖₂ − Q(T) / ‖Q(T)‖₂)²

The mean over positions is RepDistiller's and mdistiller's; the paper's eq. 2 has the norm of the difference. Nothing
is learned beside the student, and channels need not fit. A stage of a single position says nothing. Over several
teachers the losses are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight
from agrikd.distill._maps import one_size
from agrikd.nets._base import Outputs

STAGES = 3


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of where two maps [B, C, h, w] are strong, [B]; the larger one is averaged down."""
    ours, theirs = (F.normalize(maps.float().pow(2).mean(1).flatten(1)) for maps in one_size(student, teacher))
    return (ours - theirs).pow(2).mean(1)


class AttentionTransfer(Distiller):
    """The student's feature maps are strong where the teacher's are, at three scales."""

    class Config(Distiller.Config):
        """weight_attention: RepDistiller's and mdistiller's 1000; the squared differences are small (0.017 at the start
        on coffee leaves, tf_efficientnet_lite2 to mobilenetv3_small_050)."""

        weight_attention: Weight = 1000.0

    student_stages = STAGES
    teacher_stages = STAGES

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        apart = [
            attention_loss(ours, theirs)
            for teacher in teachers
            for ours, theirs in zip(student.features[-STAGES:], teacher.features[-STAGES:], strict=True)
        ]
        return {"attention": torch.stack(apart).sum(dim=0) / len(teachers)}
