"""What the loop and the methods may ask of a task."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.data.manifest import Manifest
from agrikd.nets._base import Outputs


class Task(Protocol):
    """A task knows targets and what agreement is; it does not know who must agree with whom."""

    name: str
    classes: tuple[str, ...]

    def encode(self, manifest: Manifest) -> tuple[Tensor, Tensor]:
        """(target [N, ...], labelled bool [N]) over all rows; targets mean nothing where not labelled."""

    def loss(self, student: Outputs, batch: Batch) -> Tensor:
        """[B]: what each row's mistake costs; 0 on rows without a label."""

    def divergence(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """[B], 0 where they agree; its gradient reaches the student."""
