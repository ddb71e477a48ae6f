"""Relations: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation" (arXiv:1904.05068).

    d_ij = ‖e_i − e_j‖ / their mean over the pairs apart        a_ijk = cos of the angle at e_i between e_j and e_k
    loss = weight_task · CE(student, label) + weight_rkd_distance · mean Huber(d of student − d of teacher)
                                            + weight_rkd_angle · mean Huber(a of student − a of teacher)

e is the embedding; its width need not fit, nothing is learned beside the student, and stored embeddings of a teacher
serve. As in RepDistiller the means run over all pairs and triples of the batch, a row with itself among them.
What relates rows has no row of its own: unlabelled rows count as the others. Over several teachers the losses are
averaged. A batch of B rows holds B² · width floats for the differences and B³ for the angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.distill._base import PARTS, Distiller, Weight
from agrikd.nets._base import Outputs


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently far apart the rows stand, a scalar from embeddings [B, D] and [B, E]; 0 for a single row."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How different the angles of all triples are, a scalar from embeddings [B, D] and [B, E]; 0 for a single row."""
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


class Relations(Distiller):
    """Rows stand to each other in the student's embedding as they do in the teacher's."""

    exceptions: ClassVar[dict[str, str]] = {PARTS: "it compares rows with each other"}

    teacher_embedding = True

    class Config(Distiller.Config):
        """weight_rkd_distance, weight_rkd_angle: the 25 and 50 of RepDistiller and mdistiller."""

        weight_rkd_distance: Weight = 25.0
        weight_rkd_angle: Weight = 50.0

    def distillation_losses(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        pairs = [(student.embedding, teacher.embedding) for teacher in teachers]
        return {
            "rkd_distance": torch.stack([distance_loss(ours, theirs) for ours, theirs in pairs]).mean(),
            "rkd_angle": torch.stack([angle_loss(ours, theirs) for ours, theirs in pairs]).mean(),
        }


def _differences(embedding: Tensor) -> Tensor:
    rows = embedding.float()
    return rows[None] - rows[:, None]


def _distances(embedding: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(_differences(embedding), dim=2)
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    return lengths / mean.clamp(min=1e-12)


def _angles(embedding: Tensor) -> Tensor:
    """Cosines, [B, B, B]; 0 where a row is paired with itself or its double, so that no gradient grows there."""
    apart = _differences(embedding)
    lengths = torch.linalg.vector_norm(apart, dim=2, keepdim=True)
    units = apart / torch.where(lengths > 0, lengths, 1.0)
    with torch.autocast(units.device.type, enabled=False):  # bfloat16 would round the cosines at the third digit
        return units @ units.mT
