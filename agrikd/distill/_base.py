"""Who must agree with whom: the base of every method.

A method usually writes `distillation_losses` alone. The base adds the task's own loss, weighs the parts by
name, lets unlabelled rows speak through the teacher only, and keeps frozen teachers frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.nets._base import Net, Outputs
from agrikd.recipe import Spec
from agrikd.tasks._base import Task

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0, le=100)]

PARTS, TWO_CLASSES = "equal parts of a batch", "two classes"


def over_labelled(loss: Tensor, batch: Batch) -> Tensor:
    """The mean of [B] over the rows with a label, a scalar; 0 where there are none."""
    return torch.where(batch.labelled, loss, 0.0).sum() / batch.labelled.sum().clamp(min=1)


@dataclass(frozen=True)
class Step:
    """loss: scalar, what is minimised. parts: each named part before its weight, scalars. outputs: the student's."""

    loss: Tensor
    parts: dict[str, Tensor]
    outputs: Outputs


class Distiller(nn.Module):
    """A student with the teachers it learns from.

    `student_stages` and `teacher_stages`: how many of the last feature maps the method reads; there may be more of
    them than it asked for, so it counts from the end. `teacher_embedding`: it reads that too. `teachers_learn`: the
    method trains its teachers too (online methods); else they stay in eval mode without gradients. `uses_unlabelled`:
    rows without a label teach the student something. `mixes`: each view is a mixture of two photos. `peers`: its
    teachers are nets of the student's own kind. `tasks`: names of those it fits, empty for all. `fewest_classes`: with
    fewer it teaches nothing. `exceptions`: contracts (the tests name them) that it cannot keep, and why. `PARTS`: the
    mean of the losses of equal parts of a batch is the batch's (ranks need it). `TWO_CLASSES`: of two, each teaches.
    """

    class Config(Spec):
        """weight_task: of the task's own loss. weight_unlabelled: of a row without a label, beside 1 for others."""

        weight_task: Weight = 1.0
        weight_unlabelled: Weight = 1.0

    student_stages: int = 0
    teacher_stages: int = 0
    teacher_embedding: bool = False
    teachers_learn: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    uses_unlabelled: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    peers: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ()
    fewest_classes: ClassVar[int] = 2
    exceptions: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__()
        self.task, self.config = task, config
        self.student = student
        self.teachers = nn.ModuleList(teachers)
        if not self.teachers_learn:
            self.teachers.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Distiller:
        """Frozen teachers stay in eval mode: batch statistics and dropout of a teacher would be noise."""
        super().train(mode)
        if not self.teachers_learn:
            self.teachers.eval()
        return self

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        """Named losses: [B] a row, or a scalar for what relates rows. Each wants a `weight_<name>` in Config."""
        return {}

    def forward(self, batch: Batch) -> Step:
        student = self.student.on(batch, self.student_stages)
        with torch.set_grad_enabled(self.teachers_learn and torch.is_grad_enabled()):
            teachers = [cast(Net, net).on(batch, self.teacher_stages) for net in self.teachers]
        parts = {"task": self._task(student, batch)}
        for name, loss in self.distillation_losses(student, teachers, batch).items():
            parts[name] = self._mean(loss, batch) if loss.ndim else loss
        return self._step(parts, student)

    def after_step(self) -> None:
        """Called after each optimiser step; only where one net follows another (a mean teacher)."""

    def _task(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The task's loss, a mean over the labelled rows."""
        return self.task.loss(outputs, batch).sum() / batch.labelled.sum().clamp(min=1)

    def weight(self, name: str) -> float:
        """Of a named part in the loss."""
        value: float = getattr(self.config, f"weight_{name}")
        return value

    def _step(self, parts: dict[str, Tensor], student: Outputs) -> Step:
        return Step(torch.stack([self.weight(name) * part for name, part in parts.items()]).sum(), parts, student)

    def _mean(self, loss: Tensor, batch: Batch) -> Tensor:
        """The mean over rows, an unlabelled row counting `weight_unlabelled`."""
        weight = torch.where(batch.labelled, 1.0, self.config.weight_unlabelled)
        return (loss * weight).sum() / weight.sum().clamp(min=1e-9)
