"""Contrast: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation" (arXiv:1910.10699).

    s, t = the embeddings, projected and of length 1         e_ij = exp(s_i · t_j / τ), ē their mean over the batch
    h_ij = (e_ij / ē) / (e_ij / ē + N), N = B − 1 negatives of each row
    loss = weight_task · CE(student, label)
         + weight_crd · mean over rows of −[log h_ii + Σ_{j≠i} log(1 − h_ij)] − [log h_ii + Σ_{j≠i} log(1 − h_ji)]

The first bracket has the student's row as its anchor, the second the teacher's. ē gets no gradient; it is
RepDistiller's constant Z = mean · M, whose size M of the dataset cancels against its N / M, measured on each batch
instead of once. Both projections are learned. Two departures: the negatives are the other rows of the batch, not
16,384 of a memory, since a plant set has fewer photos than that and a memory of views from earlier steps is stale
by then; and rows of the same class are negatives too (RepDistiller leaves them out), since unlabelled rows have none.
Over several teachers the losses are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import PARTS, Distiller, Weight
from agrikd.distill._maps import widths
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task


def crd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """−log of h at a row's own pair and of 1 − h at the others, as student's and as teacher's anchor, [B] from rows
    [B, D] of length 1; 0 for a single row, which has no negatives."""
    rows = len(student)
    scores = (student[:, None] * teacher[None]).sum(2) / temperature
    if rows == 1:
        return 0 * scores[0]
    mean = torch.logsumexp(scores.detach().flatten(), dim=0) - 2 * math.log(rows)
    odds = scores - mean - math.log(rows - 1)  # log(h / (1 − h))
    own = torch.eye(rows, dtype=torch.bool, device=odds.device)
    others = F.softplus(odds).masked_fill(own, 0)
    return 2 * F.softplus(-odds.diagonal()) + others.sum(0) + others.sum(1)


class Contrast(Distiller):
    """A photo's embedding in the student points to the same photo's in the teacher, and away from the others'."""

    teacher_embedding = True

    class Config(Distiller.Config):
        """temperature: 0.07, dimensions: 128, weight_crd: 0.8: RepDistiller's nce_t, feat_dim and β."""

        temperature: Annotated[float, Field(gt=0, le=1)] = 0.07
        dimensions: Annotated[int, Field(ge=1, le=4096)] = 128
        weight_crd: Weight = 0.8

    config: Config
    exceptions: ClassVar[dict[str, str]] = {
        "zero at equality": "telling a pair from the others is never free",
        PARTS: "a row's negatives are the other rows",
    }

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        width, size = widths(student, 0)[-1], config.dimensions
        self.ours = nn.ModuleList(nn.Linear(width, size) for _ in teachers)
        self.theirs = nn.ModuleList(nn.Linear(widths(teacher, 0)[-1], size) for teacher in teachers)

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        apart = [
            crd_loss(_unit(ours(student.embedding)), _unit(theirs(teacher.embedding)), self.config.temperature)
            for ours, theirs, teacher in zip(self.ours, self.theirs, teachers, strict=True)
        ]
        return {"crd": torch.stack(apart).mean(dim=0)}


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1)
