"""Hints: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550).

    loss = weight_task · CE(student, label) + weight_fitnet · mean (r(student's last map) − teacher's last map)²

r is a convolution of 1 × 1 and a batch norm, learned with the student, one for each teacher; over several teachers
the losses are averaged. The paper gives the hint first and the labels afterwards; here both count from the start, as
in RepDistiller. No ReLU follows r, as it does there: the last map of many timm nets has negative values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight
from agrikd.distill._maps import one_size, widths
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over channels and positions, [B] from maps [B, C, h, w], the larger one averaged down."""
    student, teacher = one_size(student, teacher)
    return (student.float() - teacher.float()).pow(2).mean((1, 2, 3))


class FitNet(Distiller):
    """The student's last feature map, seen through a learned projection, is the teacher's."""

    class Config(Distiller.Config):
        """weight_fitnet: 10 makes the hint's gradient on the student as long as the labels' (1.1 and 12 before the
        weights; measured on 32 coffee leaves, tf_efficientnet_lite2 to mobilenetv3_small_050, at the first step). The
        100 of RepDistiller and mdistiller, made for CIFAR, would have it 9 times as long."""

        weight_fitnet: Weight = 10.0

    student_stages = 1
    teacher_stages = 1
    exceptions: ClassVar[dict[str, str]] = {"zero at equality": "only where the learned projector is the identity"}

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        width = widths(student, 1)[-2]
        self.projectors = nn.ModuleList(_projector(width, widths(teacher, 1)[-2]) for teacher in teachers)

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        pairs = zip(self.projectors, teachers, strict=True)
        apart = [hint_loss(projector(student.features[-1]), teacher.features[-1]) for projector, teacher in pairs]
        return {"fitnet": torch.stack(apart).mean(dim=0)}


def _projector(width: int, teacher: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, teacher, 1, bias=False), nn.BatchNorm2d(teacher))
