"""Function matching: Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov 2022, "Knowledge distillation: A good teacher is
patient and consistent" (arXiv:2106.05237).

Teacher and student see the same view, which is a mixture of two photos (mixup with λ uniform on [0, 1], sec. 3.1
there), and the student learns from the teacher alone:

    weight_funmatch · T² · KL(softmax(teacher / T) ‖ softmax(student / T))

A view's partner and λ are drawn from its view seed, so mixtures can be replayed like any view. A mixture has no label:
every row counts as unlabelled. Photos without a label are partners only where `data.unlabelled_share` is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Temperature, Weight
from agrikd.nets._base import Outputs


class FunctionMatching(Distiller):
    mixes: ClassVar[bool] = True

    class Config(Distiller.Config):
        """temperature: the paper's choice for its small sets is 1 to 10 by set and length; 2 as for kd."""

        temperature: Temperature = 2.0
        weight_funmatch: Weight = 1.0

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        t = self.config.temperature
        apart = [self.task.divergence(student, teacher, t) * t**2 for teacher in teachers]
        return {"funmatch": torch.stack(apart).mean(dim=0)}
