"""Teacher and student trained together: the one-way form of codistillation, Anil, Pereyra, Passos, Ormandi, Dahl,
Hinton 2018, "Large scale distributed neural network training through online distillation" (arXiv:1804.03235).

The teacher learns from the labels while the student learns from the labels and from what the teacher says at that
step, soft while the teacher is young. No teacher has to be finished first:

    student: weight_task · CE + weight_together · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
    teacher: weight_teacher · CE

The student's loss does not reach the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Step, Temperature, Weight
from agrikd.nets._base import Net


class TrainedTogether(Distiller):
    teachers_learn: ClassVar[bool] = True
    exceptions: ClassVar[Mapping[str, str]] = {"zero at equality": "its teacher learns from the labels too"}

    class Config(Distiller.Config):
        """temperature: as for kd. weight_together: as much as the labels. weight_teacher: of the teacher's own loss."""

        temperature: Temperature = 2.0
        weight_together: Weight = 1.0
        weight_teacher: Weight = 1.0

    config: Config

    def forward(self, batch: Batch) -> Step:
        student = self.student.on(batch)
        teachers = [cast(Net, net).on(batch) for net in self.teachers]
        t = self.config.temperature
        apart = [self.task.divergence(student, teacher.detach(), t) * t**2 for teacher in teachers]
        parts = {
            "task": self._task(student, batch),
            "together": self._mean(torch.stack(apart).mean(dim=0), batch),
            "teacher": torch.stack([self._task(teacher, batch) for teacher in teachers]).sum(),
        }
        return self._step(parts, student)
