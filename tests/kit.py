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
from agrikd.tasks._base import Task
from agrikd.tasks.classification import Classification
from agrikd.tasks.regression import Regression
from agrikd.types import Scale

CLASSES = ("blight", "healthy", "rust")
TASKS: dict[str, Task] = {
    "classification": Classification(CLASSES),
    "regression": Regression(Scale(0, 10, "%", beyond=3), bins=16, sigma=0.75),
}


class Tiny(Net):
    """A net small enough to check by hand: three stages of convolutions, dropout, batch norm, a linear layer."""

    def __init__(self, seed: int, classes: tuple[str, ...] = CLASSES) -> None:
        super().__init__((32, 32), (0.5,) * 3, (0.5,) * 3, Origin("test", True, classes))
        torch.manual_seed(seed)
        widths = (3, 4, 6, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.GELU()) for a, b in itertools.pairwise(widths)
        )
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(widths[-1], len(classes))
        if classes != CLASSES:  # over many bins a fresh head is flat, and all numbers are the same
            self.head.weight.data *= 30

    def answer(self, images: Tensor, stages: int) -> Outputs:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        pooled = self.drop(maps[-1].mean((2, 3)))
        return Outputs(self.head(pooled), pooled, tuple(maps[len(maps) - stages :]))


def batch(rows: int = 6, unlabelled: int = 2, task: str = "classification") -> Batch:
    generator = torch.Generator().manual_seed(1)
    labelled = torch.arange(rows) < rows - unlabelled
    images = torch.rand((rows, 3, 32, 32), generator=generator)
    index = torch.arange(rows)
    target = index % 3 if task == "classification" else 2.5 * (2 * index % 5)
    return Batch(images, target, labelled, index, torch.zeros(rows, dtype=torch.int64))


def distiller(name: str, student: Net | None = None, task: str = "classification") -> distill.Distiller:
    method, classes = distill.method(name), TASKS[task].classes
    teachers = [Tiny(2, classes)] if method.needs_teacher else []
    return method(TASKS[task], student or Tiny(1, classes), teachers, method.Config())


def same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
