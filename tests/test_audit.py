"""What is said of the accuracy in the field, from the frames that were drawn at random."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from agrikd import audit, records
from agrikd.audit import Judged
from agrikd.intervals import wilson
from agrikd.records import Label, Opinion, Seen
from agrikd.types import ModelSpec


def rows(rng: np.random.Generator, n: int, labelled: int, right: float = 0.8, teacher: float = 0.9) -> list[Judged]:
    """A model that is right so often, a teacher that sees that so often, some frames that people looked at."""
    truth = rng.random(n) < right
    agrees = np.where(rng.random(n) < teacher, truth, ~truth)
    seen = set(rng.permutation(n)[:labelled].tolist())
    return [Judged("rust", bool(truth[i]) if i in seen else None, bool(agrees[i])) for i in range(n)]


def test_the_interval_holds_the_truth_as_often_as_it_says_and_is_narrower_than_by_labels_alone() -> None:
    rng = np.random.default_rng(0)
    held, widths, plain = 0, [], []
    for _ in range(400):
        made = rows(rng, 1000, 100)
        said = audit.estimate(made)
        assert said and said.how == "people and teacher" and (said.labelled, said.answered) == (100, 1000)
        held += said.interval.low <= 0.8 <= said.interval.high
        widths.append(said.interval.high - said.interval.low)
        right = sum(bool(row.right) for row in made)
        plain.append(wilson(right, 100).high - wilson(right, 100).low)
    assert 0.92 <= held / 400 <= 0.98
    assert np.mean(widths) < 0.8 * np.mean(plain)


def test_a_teacher_who_errs_with_a_bias_does_not_bend_it() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(200):
        made = [Judged("rust", row.right, True) if rng.random() < 0.5 else row for row in rows(rng, 2000, 200)]
        said = audit.estimate(made)
        assert said
        shares.append(said.share)
    assert np.mean(shares) == pytest.approx(0.8, abs=0.01)


def test_golden_value() -> None:
    """By hand: the mean is 0.75 by people, 0.7 by the teacher on the same frames and 0.9 on the others."""
    both = [(True, True)] * 13 + [(True, False)] * 2 + [(False, True)] + [(False, False)] * 4
    made = [Judged("rust", right, agrees) for right, agrees in both]
    made += [Judged("rust", None, True)] * 162 + [Judged("rust", None, False)] * 18
    said = audit.estimate(made)
    assert said
    cov, spread = 13 / 20 - 0.75 * 0.7, (176 / 200) * (24 / 200)
    weight = cov / ((1 + 20 / 180) * spread)
    assert weight > 1  # and is then 1
    assert said.share == pytest.approx(0.75 + 0.9 - 0.7)


def test_few_labels_and_none() -> None:
    assert audit.estimate([]) is None and audit.estimate([Judged("rust", None, None)]) is None
    few = audit.estimate([Judged("rust", True, True)] * 5 + [Judged("rust", None, False)] * 50)
    assert few and few.how == "people" and few.share == 1.0 and few.interval.low == pytest.approx(0.566, abs=0.001)
    only = audit.estimate([Judged("rust", None, True)] * 9 + [Judged("rust", None, False)])
    assert only and only.how == "teacher" and only.share == 0.9
    assert list(audit.by_class([Judged("rust", True, None), Judged("blight", None, None)])) == ["rust"]


def test_a_fall_is_said_when_it_is_certain_and_seldom_else() -> None:
    rng = np.random.default_rng(2)
    steady = sum(bool(audit.fall(rows(rng, 600, 600))) for _ in range(300))
    fallen = sum(bool(audit.fall([*rows(rng, 500, 500), *rows(rng, 100, 100, 0.55)])) for _ in range(100))
    assert steady <= 15 and fallen >= 95
    assert "people" in str(audit.fall([Judged("rust", True, True)] * 200 + [Judged("rust", False, False)] * 100))
    assert "the teacher" in str(audit.fall([Judged("rust", None, True)] * 200 + [Judged("rust", None, False)] * 100))
    assert audit.fall([Judged("rust", True, True)] * 150) is None


def test_frames_are_judged_by_the_last_word_and_only_those_drawn_at_random(tmp_path: Path) -> None:
    spec = ModelSpec("leaf", "classification", ("rust", "healthy"), (64, 64))
    turned = ModelSpec("big", "classification", ("healthy", "rust"), (64, 64))

    def said(model: str, role: str, top: int, unknown: bool = False) -> Opinion:
        return Opinion(model, role, 1.0, 1.0, top, (0.5, 0.5), (top,), False, unknown)  # type: ignore[arg-type]

    with contextlib.closing(records.create(tmp_path)) as db:
        records.add_model(db, "m", "student", spec)
        records.add_model(db, "t", "teacher", turned)
        for frame, share in ((1, 0.01), (2, None), (3, 0.01), (4, 0.01)):
            records.add_frame(db, Seen(frame, 1.0, "c", audit=share))
            records.add_opinion(db, frame, said("m", "student", 0, unknown=frame == 4))
        records.add_opinion(db, 1, said("t", "teacher", 1))
        records.add_opinion(db, 3, said("t", "teacher", 0))
        words = [
            (1, "healthy", "Ana"),
            (1, "rust", "Ana"),
            (1, "unsure", "Ben"),
            (3, "rust", "Ana"),
            (3, "unsure", "Ana"),
            (4, "not_a_plant", "Ana"),
        ]
        for number, (frame, label, who) in enumerate(words):
            records.add_label(db, Label(f"click-{number:03d}", frame, label, who, 2.0))
        assert audit.judged(db) == [
            Judged("rust", True, True),
            Judged("rust", None, False),
            Judged("not_a_plant", True, None),
        ]
        assert audit.judged(db, "another") == []
