"""Squared error of logits: Kim, Oh, Kim, Cho, Yun 2021, "Comparing Kullback-Leibler Divergence and Mean Squared Error
Loss in Knowledge Distillation" (arXiv:2105.08919).

    weight_mse · mean over classes of (student − teacher)²

What KL becomes at a high temperature, without the freedom to shift all logits together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight
from agrikd.nets._base import Outputs


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """[B] from logits [B, C]."""
    return (student - teacher).square().mean(dim=1)


class LogitError(Distiller):
    class Config(Distiller.Config):
        """weight_mse: as much as the labels; the paper leaves the labels out, weight_task: 0 does so."""

        weight_mse: Weight = 1.0

    config: Config

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        return {"mse": torch.stack([mse_loss(student.logits, teacher.logits) for teacher in teachers]).mean(dim=0)}
