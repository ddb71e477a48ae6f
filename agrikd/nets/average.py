"""The moving average of a net's weights: what a run keeps."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """`module` follows `net`: weights and statistics by a lerp, counters by copy.

    The first update copies; update n then keeps min(decay, (1 + n) / (10 + n)) of the old, so that the random
    start is soon forgotten (the ramp of tf.train.ExponentialMovingAverage). torch's AveragedModel gathers the
    tensors anew at each update, which costs a small net 2 % of its step.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(net).requires_grad_(False)
        self.decay, self.updates = decay, 0
        pairs = list(zip(self.module.state_dict().values(), net.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        followed, live = zip(*self._floats, strict=True)
        torch._foreach_lerp_(followed, live, 1 - keep)
        for counter, now in self._others:
            counter.copy_(now)
        self.updates += 1
