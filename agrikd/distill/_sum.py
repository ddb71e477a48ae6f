"""Several methods in one recipe: their losses are added, each with the weights its own Config names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller
from agrikd.nets._base import Net, Outputs


class Sum(Distiller):
    """The first method with the losses of others beside its own; a part is weighed by the Config that names it."""

    def __init__(self, first: Distiller, others: Sequence[Distiller]) -> None:
        super().__init__(first.task, first.student, cast(Sequence[Net], first.teachers), first.config)
        self.methods = (first, *others)
        self.own = nn.ModuleList(self.methods)
        for method in self.methods:
            method.teachers = nn.ModuleList()  # they are asked once, for all
        self.student_stages = max(method.student_stages for method in self.methods)
        self.teacher_stages = max(method.teacher_stages for method in self.methods)
        self.teacher_embedding = any(method.teacher_embedding for method in self.methods)

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        each = [method.distillation_losses(student, teachers, batch) for method in self.methods]
        return {name: loss for losses in each for name, loss in losses.items()}

    def weight(self, name: str) -> float:
        owner = next(method for method in self.methods if hasattr(method.config, f"weight_{name}"))
        return owner.weight(name)

    def after_step(self) -> None:
        for method in self.methods:
            method.after_step()
