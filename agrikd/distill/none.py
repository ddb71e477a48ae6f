"""Hard labels only: the student alone, the baseline beside which every distilled run stands."""

from __future__ import annotations

from agrikd.distill._base import Distiller


class StudentAlone(Distiller):
    """The task's loss and nothing else; rows without a label have nothing to say."""

    needs_teacher = False
    uses_unlabelled = False
