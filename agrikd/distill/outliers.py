"""Labels that the teacher does not believe: Takamoto, Morishita, Imaoka 2020, "An Efficient Method of Training Small
Models for Regression Problems with Knowledge Distillation" (arXiv:2002.12597).

A label far from the teacher's number is taken for wrong, and its row learns from the teacher alone. The teacher has a
head of its own on the student's embedding, thrown away after training, so that its errors do not spoil the answer:

    weight_task · the label's loss, where |t − y| ≤ reject_above, else 0
    weight_outliers · divergence of the second head from the teacher (of the answer too, where the label is rejected)

The paper rejects by a threshold on the teacher's error and imitates with a squared error; here what is imitated is the
whole distribution, as the task's labels are. Rows without a label teach the second head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import PARTS, Distiller, Step, Weight
from agrikd.distill._maps import widths
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task
from agrikd.tasks.regression import Regression


def believed(teacher: Tensor, truth: Tensor, reject_above: float) -> Tensor:
    """bool [B]: the label lies within `reject_above` of the teacher's number; both [B]."""
    return (teacher - truth).abs() <= reject_above


class RejectedOutliers(Distiller):
    """imitating: the head that learns from the teacher, beside the student's own, which learns from the labels."""

    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    exceptions: ClassVar[dict[str, str]] = {
        "zero at equality": "the teacher's head begins with random weights",
        PARTS: "the mean is over the labels that were believed",
    }
    task: Regression

    class Config(Distiller.Config):
        """reject_above: in bins, to be chosen by how wrong labels are; 3 is a tenth of the usual scale.
        weight_outliers: as much as the labels."""

        reject_above: Annotated[float, Field(gt=0)] = 3.0
        weight_outliers: Weight = 1.0

    config: Config

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        self.imitating = nn.Linear(widths(student, 0)[-1], len(task.classes))

    def forward(self, batch: Batch) -> Step:
        student = self.student.on(batch)
        with torch.no_grad():
            teachers = [cast(Net, net).on(batch) for net in self.teachers]
            its = torch.stack([self.task.value(teacher) for teacher in teachers]).mean(dim=0)
        trusted = batch.labelled & believed(its, self.task.truth(batch), self.config.reject_above)
        task = (self.task.loss(student, batch) * trusted).sum() / trusted.sum().clamp(min=1)
        second = Outputs(self.imitating(student.embedding), student.embedding)
        apart = torch.stack([self._apart(student, second, one, batch.labelled & ~trusted) for one in teachers])
        return self._step({"task": task, "outliers": self._mean(apart.mean(dim=0), batch)}, student)

    def _apart(self, student: Outputs, second: Outputs, teacher: Outputs, rejected: Tensor) -> Tensor:
        answer = self.task.divergence(student, teacher, 1.0) * rejected
        return self.task.divergence(second, teacher, 1.0) + answer
