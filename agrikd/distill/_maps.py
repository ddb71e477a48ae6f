"""Feature maps of two nets beside each other: their shapes, and one size for both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.nets._base import Net


def widths(net: Net, stages: int) -> tuple[int, ...]:
    """Channels of the net's last `stages` feature maps, finest first, and last those of its embedding."""
    training = net.training
    with torch.inference_mode():
        outputs = net.eval()(torch.zeros(1, 3, *net.input_size), stages)
    net.train(training)
    return (*(maps.shape[1] for maps in outputs.features), outputs.embedding.shape[1])


def one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, h, w] averaged down to the smaller height and width of the two."""
    h, w = (min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True))
    return F.adaptive_avg_pool2d(student, (h, w)), F.adaptive_avg_pool2d(teacher, (h, w))
