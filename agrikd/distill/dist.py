"""Relations instead of values: Huang, You, Wang, Qian, Xu 2022, "Knowledge Distillation from A Stronger Teacher"
(arXiv:2205.10536).

A strong teacher's probabilities are hard to match; their order is enough. With d(a, b) = 1 − Pearson(a, b) over
softened probabilities (eq. 7 to 10 there):

    weight_dist_inter · T² · mean over photos of d(student row, teacher row)
    + weight_dist_intra · T² · mean over classes of d(student column, teacher column)

Of two classes the first part is 0 or 2 whatever the probabilities, and the second alone teaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import PARTS, TWO_CLASSES, Distiller, Temperature, Weight
from agrikd.nets._base import Outputs


def dist_losses(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(inter-class [B], intra-class scalar) from logits [B, C]; the second relates rows, so one row has none: 0."""
    q, p = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    inter = _apart(q, p) * temperature**2
    intra = _apart(q.T, p.T).mean() * temperature**2 if len(q) > 1 else q.new_zeros(())
    return inter, intra


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """1 − Pearson's correlation of each row."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)


class Correlations(Distiller):
    exceptions: ClassVar[dict[str, str]] = {
        PARTS: "dist_intra correlates the rows of a class",
        TWO_CLASSES: "any two probabilities correlate by 1 or −1, so dist_intra alone teaches",
    }

    class Config(Distiller.Config):
        """Temperature and weights: the defaults of the authors' code, which they use for ImageNet."""

        temperature: Temperature = 1.0
        weight_dist_inter: Weight = 1.0
        weight_dist_intra: Weight = 1.0

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        each = [dist_losses(student.logits, teacher.logits, self.config.temperature) for teacher in teachers]
        inter, intra = (torch.stack(part).mean(dim=0) for part in zip(*each, strict=True))
        return {"dist_inter": inter, "dist_intra": intra}
