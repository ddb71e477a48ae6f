"""What the loop and the methods may ask of a task."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.data.manifest import Manifest
from agrikd.nets._base import Outputs
from agrikd.types import Scale


class Task(Protocol):
    """A task knows targets and what agreement is; it does not know who must agree with whom.

    classes: what the logits speak of, in their order: labels, or the bins of a number. scale: of that number.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def scale(self) -> Scale | None: ...

    def encode(self, manifest: Manifest) -> tuple[Tensor, Tensor]:
        """(target [N, ...], labelled bool [N]) over all rows; targets mean nothing where not labelled."""

    def loss(self, student: Outputs, batch: Batch) -> Tensor:
        """[B]: what each row's mistake costs; 0 on rows without a label."""

    def place(self, target: Tensor) -> Tensor:
        """int64 [N]: the class of each target [N, ...], or the bin."""

    def distribution(self, target: Tensor) -> Tensor:
        """float [N, C]: what a net that knew each target [N, ...] would say; rows sum to 1."""

    def mistake(self, logits: Tensor, target: Tensor) -> Tensor:
        """float [N]: 1 for a wrong class, or how far the number is off."""

    def divergence(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """[B], 0 where they agree; its gradient reaches the student."""
