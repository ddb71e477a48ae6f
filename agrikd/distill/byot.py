"""A net that teaches its own shallow stages: Zhang, Song, Gao, Chen, Bao, Ma 2019, "Be Your Own Teacher"
(arXiv:1905.08094).

Behind each earlier stage stands a branch, a bottleneck and a classifier, which is thrown away after training. Branch i
learns from the labels, from the net's own answer q and from its embedding F (eq. 5 there, summed over the branches):

    weight_byot_task · CE(q_i) + weight_byot · T² · KL(q ‖ q_i) + weight_byot_hint · mean (F_i − F)²

q and F are held fixed. Rows without a label teach through the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Temperature, Weight
from agrikd.distill._maps import widths
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task


class _Branch(nn.Module):
    """Pools a map [B, c, h, w] through a bottleneck to an embedding [B, D] and logits [B, C]."""

    def __init__(self, channels: int, dimensions: int, outputs: int) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False),
            nn.Conv2d(channels, dimensions, 1, bias=False),
            nn.BatchNorm2d(dimensions),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(dimensions, outputs)

    def forward(self, maps: Tensor) -> Outputs:
        embedding = F.adaptive_avg_pool2d(self.bottleneck(maps), 1).flatten(1)
        return Outputs(self.classifier(embedding), embedding)


class BeYourOwnTeacher(Distiller):
    needs_teacher: ClassVar[bool] = False
    student_stages = 3

    class Config(Distiller.Config):
        """temperature: as for kd. The weights follow the paper's α = 0.3 between the labels and the net's own answer;
        its weight of the hint is small, as hints of another shape can drown the rest."""

        temperature: Temperature = 2.0
        weight_byot_task: Weight = 0.7
        weight_byot: Weight = 0.3
        weight_byot_hint: Weight = 0.03

    config: Config

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        *channels, _, dimensions = widths(student, self.student_stages)
        self.branches = nn.ModuleList(_Branch(c, dimensions, len(task.classes)) for c in channels)

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        maps = student.features[-self.student_stages : -1]
        said = [branch(one) for branch, one in zip(self.branches, maps, strict=True)]
        own, t = student.detach(), self.config.temperature
        return {
            "byot_task": torch.stack([self._task(one, batch) for one in said]).sum(),
            "byot": torch.stack([self.task.divergence(one, own, t) * t**2 for one in said]).sum(dim=0),
            "byot_hint": torch.stack([(one.embedding - own.embedding).square().mean(1) for one in said]).sum(dim=0),
        }
