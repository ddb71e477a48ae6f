"""Patches: after Liu, Cao, Li, Hu, Ding, Li 2022, "Cross-Architecture Knowledge Distillation" (arXiv:2207.05273).

For a transformer as the teacher of a convolutional student. S and T are their last maps at one grid of P positions,
the larger averaged down; LN standardises each position over its D channels; W and V are learned 1 × 1 convolutions.

    A(X) = softmax over j of LN(X)_i · LN(X)_j / √D, [P, P]: how much each position attends to each other
    loss = weight_task · CE(student, label)
         + weight_patches_attention · mean over i of KL(A(T)_i ‖ A(W S)_i) + weight_patches_features · mean (V S − T)²

where T is LN(teacher's map) throughout. The first part stands for the paper's partially cross attention projector,
the second for its group-wise linear projector. What is not the paper's:

* its attention is the teacher's own, of queries, keys and values; timm does not give these, so attention is
  recomputed from the patch features, without values, and compared by KL, not by squared difference;
* it swaps some of the student's queries, keys and values for the teacher's; here nothing is swapped;
* it has 16 linear layers, one for each place in a 4 × 4 neighbourhood; here all positions share one;
* its robust training (a generator of views against a discriminator) is left out.

Over several teachers the losses are averaged. A grid of P positions holds B · P² floats, 49² a row at 7 × 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrikd.data.loader import Batch
from agrikd.distill._base import Distiller, Weight
from agrikd.distill._maps import one_size, widths
from agrikd.nets._base import Net, Outputs
from agrikd.tasks._base import Task


def standardised(maps: Tensor) -> Tensor:
    """Each position of [B, D, h, w] with mean 0 and variance 1 over its channels: a layer norm without weights."""
    return F.layer_norm(maps.float().movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over positions of KL(teacher ‖ student) of whom a position attends to, [B] from maps [B, D, h, w]."""
    log_q, log_p = (_log_attention(maps) for maps in one_size(student, teacher))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(2).mean(1)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over channels and positions, [B] from maps [B, D, h, w]."""
    student, teacher = one_size(student, teacher)
    return (student.float() - teacher).pow(2).mean((1, 2, 3))


def _log_attention(maps: Tensor) -> Tensor:
    rows = standardised(maps).flatten(2).mT
    with torch.autocast(rows.device.type, enabled=False):  # bfloat16 would round the scores at the third digit
        return F.log_softmax(rows @ rows.mT / math.sqrt(rows.shape[2]), dim=2)


class Patches(Distiller):
    """A convolutional student's positions hold what a transformer's patches hold, and attend as they do."""

    class Config(Distiller.Config):
        """weight_patches_attention, weight_patches_features: 1 and 10 make the gradients on the student of the size of
        the labels' after some steps (2.2 and 0.9 before the weights, the labels' 5.6; measured on 32 coffee leaves,
        with tf_efficientnet_lite2 to mobilenetv3_small_050 for want of a transformer)."""

        weight_patches_attention: Weight = 1.0
        weight_patches_features: Weight = 10.0

    student_stages = 1
    teacher_stages = 1
    exceptions: ClassVar[dict[str, str]] = {"zero at equality": "only where the learned projectors are the identity"}

    def __init__(self, task: Task, student: Net, teachers: Sequence[Net], config: Config) -> None:
        super().__init__(task, student, teachers, config)
        width, targets = widths(student, 1)[-2], [widths(teacher, 1)[-2] for teacher in teachers]
        self.attending = nn.ModuleList(nn.Conv2d(width, target, 1) for target in targets)
        self.holding = nn.ModuleList(nn.Conv2d(width, target, 1) for target in targets)

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        maps = student.features[-1]
        targets = [standardised(teacher.features[-1]) for teacher in teachers]
        attention = [attention_loss(w(maps), t) for w, t in zip(self.attending, targets, strict=True)]
        features = [feature_loss(v(maps), t) for v, t in zip(self.holding, targets, strict=True)]
        return {
            "patches_attention": torch.stack(attention).mean(dim=0),
            "patches_features": torch.stack(features).mean(dim=0),
        }
