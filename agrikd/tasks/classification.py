"""One class a picture: cross-entropy for labels, Kullback–Leibler divergence for agreement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.data.manifest import NOT_A_PLANT, Manifest
from agrikd.errors import InputError, Problem
from agrikd.nets._base import Outputs
from agrikd.recipe import TaskSpec
from agrikd.types import Scale


def open_task(spec: TaskSpec, manifest: Manifest) -> Classification:
    classes = manifest.classes
    if len(classes) < 2:
        said = f"the manifest has {len(classes)} class{'' if len(classes) == 1 else 'es'}, expected at least 2"
        raise InputError(Problem("task", said, "label the photos of another class"))
    return Classification(classes, spec.label_smoothing)


@dataclass(frozen=True)
class Classification:
    """classes: in the order of the logits. label_smoothing: see `TaskSpec`."""

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    name: str = "classification"
    scale: Scale | None = None

    def encode(self, manifest: Manifest) -> tuple[Tensor, Tensor]:
        """int64 [N], the class's place; bool [N]."""
        place = {name: number for number, name in enumerate(self.classes)}
        known = [row.target is not None and row.target != NOT_A_PLANT for row in manifest.rows]
        if strange := {row.target for row, k in zip(manifest.rows, known, strict=True) if k} - place.keys():
            named = ", ".join(sorted(map(str, strange)))
            raise InputError(Problem("data.manifest", f"has labels that are no class here: {named}"))
        target = [place[str(row.target)] if k else 0 for row, k in zip(manifest.rows, known, strict=True)]
        return torch.tensor(target), torch.tensor(known)

    def loss(self, student: Outputs, batch: Batch) -> Tensor:
        """Cross-entropy with the label, [B]."""
        loss = F.cross_entropy(student.logits, batch.target, reduction="none", label_smoothing=self.label_smoothing)
        return loss * batch.labelled

    def place(self, target: Tensor) -> Tensor:
        return target

    def distribution(self, target: Tensor) -> Tensor:
        return F.one_hot(target, len(self.classes)).float()

    def mistake(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits.argmax(dim=1) != target).float()

    def divergence(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        return softened_kl(student.logits, teacher.logits, temperature)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of the softened class probabilities, [B] from logits [B, C].

    Without the T² of Hinton et al. 2015, which belongs to the method's weight, not to agreement.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
