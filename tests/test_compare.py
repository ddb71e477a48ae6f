"""What a study says in words."""

from __future__ import annotations

import pytest

from agrikd.compare import ALONE, TEACHER, WITH_POOL, Arm, Study


def arm(name: str, *macro_f1: float) -> Arm:
    return Arm("leaves", name, macro_f1, macro_f1, macro_f1, 1.0, None)


@pytest.mark.parametrize(("alone", "cautions"), [(0.6, 0), (0.75, 1), (0.8, 1)])
def test_a_teacher_no_better_than_the_student_alone_is_named(alone: float, cautions: int) -> None:
    study = Study(2, 100, (arm(TEACHER, 0.7, 0.8), arm(ALONE, alone, alone), arm(WITH_POOL, 0.9, 0.9)), {})
    assert len(study.cautions()) == cautions
    assert study.markdown().count("no better than the student alone") == cautions
