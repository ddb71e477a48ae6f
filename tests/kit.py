"""What several tests share: a net and a batch small enough to check by hand, a method over them."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from agrikd import distill
from agrikd.data.loader import Batch
from agrikd.nets._base import Net, Origin, Outputs
from agrikd.tasks.classification import Classification

CLASSES = ("blight", "healthy", "rust")


class Tiny(Net):
    """A net small enough to check by hand: three stages of convolutions, dropout, batch norm, a linear layer."""

    def __init__(self, seed: int) -> None:
        super().__init__((32, 32), (0.5,) * 3, (0.5,) * 3, Origin("test", True, CLASSES))
        torch.manual_seed(seed)
        widths = (3, 4, 6, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.GELU()) for a, b in itertools.pairwise(widths)
        )
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(widths[-1], len(CLASSES))

    def answer(self, images: Tensor, stages: int) -> Outputs:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        pooled = self.drop(maps[-1].mean((2, 3)))
        return Outputs(self.head(pooled), pooled, tuple(maps[len(maps) - stages :]))


def batch(rows: int = 6, unlabelled: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labelled = torch.arange(rows) < rows - unlabelled
    images = torch.rand((rows, 3, 32, 32), generator=generator)
    return Batch(images, torch.arange(rows) % 3, labelled, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def distiller(name: str, student: Net | None = None) -> distill.Distiller:
    method = distill.method(name)
    teachers = [Tiny(2)] if method.needs_teacher else []
    return method(Classification(CLASSES), student or Tiny(1), teachers, method.Config())


def same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
