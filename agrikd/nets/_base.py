"""The face of every net: RGB in [0, 1] at any size comes in at the door, where it is resized and normalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrikd.data.loader import Batch


@dataclass(frozen=True)
class Outputs:
    """What a net says of a batch.

    logits: [B, C], what the task decodes. embedding: [B, D], pooled, the classifier's input. features: the
    last `stages` feature maps asked for, [B, C, h, w] each, finest first.
    """

    logits: Tensor
    embedding: Tensor
    features: tuple[Tensor, ...] = ()

    def detach(self) -> Outputs:
        """The same values, through which no gradient flows."""
        maps = tuple(one.detach() for one in self.features)
        return Outputs(self.logits.detach(), self.embedding.detach(), maps)


@dataclass(frozen=True)
class Origin:
    """Where a net's weights come from, as far as they say; what the gate holds against the recipe.

    classes, mean, std: what the weights were trained with, None where they do not say. head_trained: the
    classifier came with the weights (a fresh head has been taught nothing). source: in words.
    """

    source: str
    head_trained: bool
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Net(nn.Module):
    """Subclasses give `answer`: what is said of normalised images at `input_size` (height, width)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, input_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], origin: Origin
    ) -> None:
        super().__init__()
        self.input_size, self.origin = input_size, origin
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def answer(self, images: Tensor, stages: int) -> Outputs:
        raise TypeError(f"{type(self).__name__} gives no answer()")

    def forward(self, images: Tensor, stages: int = 0) -> Outputs:
        """images: float [B, 3, H, W], RGB in [0, 1]; `stages` feature maps are wanted."""
        if images.shape[-2:] != self.input_size:
            images = area_resize(images, self.input_size)
        return self.answer((images - self.mean).div_(self.std), stages)

    def on(self, batch: Batch, stages: int = 0) -> Outputs:
        """The answer to a batch; a net that replays stored answers looks them up by row and view instead."""
        outputs: Outputs = self(batch.images, stages)
        return outputs


def area_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 3, H, W] to `size`: averages over areas where it shrinks, interpolates where it grows."""
    if images.shape[-2] >= size[0] and images.shape[-1] >= size[1]:
        return F.interpolate(images, size=size, mode="area")
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
