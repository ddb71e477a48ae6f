"""The teacher as a bound: Chen, Choi, Yu, Han, Chandraker 2017, "Learning Efficient Object Detection Models with
Knowledge Distillation" (NIPS, sec. 3.3).

A teacher's number may point away from the truth, so the student is not asked to match it. It pays, beside the label's
own loss, for its squared error where that is not smaller than the teacher's by a margin (eq. 5 there):

    weight_bounded · (s − y)² where (s − y)² + margin > (t − y)², else 0

Numbers are counted in bins of the scale. A photo without a label has no y, and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight, over_labelled
from agrikd.nets._base import Outputs
from agrikd.tasks.regression import Regression


def bounded_loss(student: Tensor, teacher: Tensor, truth: Tensor, margin: float) -> Tensor:
    """[B] from numbers [B]."""
    own, its = (student - truth).square(), (teacher - truth).square()
    return torch.where(own + margin > its, own, torch.zeros_like(own))


class BoundedByTeacher(Distiller):
    """The student need not imitate the teacher, only err no more than it does."""

    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    uses_unlabelled: ClassVar[bool] = False
    exceptions: ClassVar[Mapping[str, str]] = {"zero at equality": "who errs as the teacher does has not beaten it"}
    task: Regression

    class Config(Distiller.Config):
        """margin: in square bins; the paper leaves it open, 0 asks for no more than the teacher's own error.
        weight_bounded: the paper's 0.5."""

        margin: Annotated[float, Field(ge=0)] = 0.0
        weight_bounded: Weight = 0.5

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        own, truth = self.task.value(student), self.task.truth(batch)
        each = [bounded_loss(own, self.task.value(teacher), truth, self.config.margin) for teacher in teachers]
        return {"bounded": over_labelled(torch.stack(each).mean(dim=0), batch)}
