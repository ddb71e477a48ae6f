"""Knowledge review: Chen, Liu, Zhao, Jia 2021, "Distilling Knowledge via Knowledge Review" (arXiv:2104.09044).

From the deepest of the last 3 stages to the finest (ABF, attention based fusion; ↑ takes the nearest value):

    x = BN(conv1(student's map))                         a, b = sigmoid(conv1([x, ↑deeper]))
    deeper = ↑(a · x + b · ↑deeper), the teacher's size      review = BN(conv3(deeper))
    loss = weight_task · CE(student, label) + weight_reviewkd · Σ over stages of HCL(review, teacher's map)

HCL, the hierarchical context loss, is the mean squared difference at full size and, at half the weight of the one
before, after averaging to 4 × 4, 2 × 2 and 1 × 1, divided by the sum of the weights. So a stage of the teacher
teaches all stages of the student from its own depth down. Two departures from mdistiller's code: it takes the pooled
embedding as a fourth level, a map of one position on which batch norm cannot learn from small batches; and it raises
the weight over 20 epochs of SGD, where here the learning rate warms up. Over several teachers the losses are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight
from agrikd.distill._maps import widths
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task

STAGES = 3


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss, [B] from maps [B, C, h, w] of one size."""
    weight, total, loss = 1.0, 1.0, _apart(student, teacher)
    for size in (4, 2, 1):
        if size < min(student.shape[-2:]):
            weight /= 2
            total += weight
            pooled = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
            loss = loss + weight * _apart(*pooled)
    return loss / total


def _apart(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.float() - teacher.float()).pow(2).mean((1, 2, 3))


class Fusion(nn.Module):
    """ABF: a stage of the student, fused with what came from deeper stages, in the teacher's width and size."""

    def __init__(self, width: int, middle: int, teacher: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The review to compare with the teacher's map of `size`, and what the next finer stage is fused with."""
        fused: Tensor = self.enter(maps)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[-2:])
            shares = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = shares[:, :1] * fused + shares[:, 1:] * deeper
        fused = F.interpolate(fused, size)
        return self.leave(fused), fused


class Review(Distiller):
    """Each stage of the teacher is matched by the student's stages of its depth and deeper."""

    class Config(Distiller.Config):
        """weight_reviewkd: mdistiller's default 1. The loss itself is large (77 at the start on coffee leaves,
        tf_efficientnet_lite2 to mobilenetv3_small_050), its gradient on the student is not: 3, the labels' 12."""

        weight_reviewkd: Weight = 1.0

    student_stages = STAGES
    teacher_stages = STAGES
    exceptions: ClassVar[dict[str, str]] = {"zero at equality": "only where the learned fusions are the identity"}

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        ours = widths(student, STAGES)[-2 : -2 - STAGES : -1]
        middle = min(512, ours[0])
        self.fusions = nn.ModuleList()
        for teacher in teachers:
            pairs = zip(ours, widths(teacher, STAGES)[-2 : -2 - STAGES : -1], strict=True)
            stages = [Fusion(a, middle, b, deepest=number == 0) for number, (a, b) in enumerate(pairs)]
            self.fusions.append(nn.ModuleList(stages))

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        apart = []
        for fusions, teacher in zip(self.fusions, teachers, strict=True):
            deeper: Tensor | None = None
            pairs = zip(student.features[: -1 - STAGES : -1], teacher.features[: -1 - STAGES : -1], strict=True)
            for fusion, (ours, theirs) in zip(cast(nn.ModuleList, fusions), pairs, strict=True):
                review, deeper = fusion(ours, deeper, theirs.shape[-2:])
                apart.append(hcl_loss(review, theirs))
        return {"reviewkd": torch.stack(apart).sum(dim=0) / len(teachers)}
