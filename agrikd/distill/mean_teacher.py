"""A student that follows its own average: Tarvainen & Valpola 2017, "Mean teachers are better role models"
(arXiv:1703.01780).

The teacher is the moving average of the student's weights and sees another view of the same photo, here its mirror
image. Where the two differ the student gives way, on rows without a label too:

    weight_mean_teacher · ramp · Σ over classes of (softmax(student) − softmax(average))²

The ramp is exp(−5 (1 − step / ramp_steps)²), then 1 (sec. 3 there): a young average knows nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task


def consistency(student: Tensor, average: Tensor) -> Tensor:
    """Squared distance of the class probabilities, [B] from logits [B, C]."""
    return (F.softmax(student, dim=1) - F.softmax(average, dim=1)).square().sum(dim=1)


class MeanTeacher(Distiller):
    """average: follows the student after each step, in eval mode and without gradients."""

    needs_teacher: ClassVar[bool] = False

    class Config(Distiller.Config):
        """decay: of the average, min(decay, 1 − 1 / (step + 1)); the paper's value for the ramp, and 0.999 for its long
        runs after it. ramp_steps: the weight grows so long. weight_mean_teacher: 100 a class in the paper, with ten."""

        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
        ramp_steps: Annotated[int, Field(ge=1)] = 200
        weight_mean_teacher: Weight = 10.0

    config: Config
    steps: Tensor

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        self.average = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.train()

    def train(self, mode: bool = True) -> MeanTeacher:
        super().train(mode)
        if hasattr(self, "average"):
            self.average.eval()
        return self

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            said = self.average.on(replace(batch, images=batch.images.flip(-1)))
        return {"mean_teacher": consistency(student.logits, said.logits) * self._ramp()}

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        keep = min(self.config.decay, 1 - 1 / (int(self.steps) + 1))
        for followed, live in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
            followed.lerp_(live, 1 - keep) if followed.is_floating_point() else followed.copy_(live)

    def _ramp(self) -> float:
        done = min(1.0, int(self.steps) / self.config.ramp_steps)
        return math.exp(-5 * (1 - done) ** 2)
