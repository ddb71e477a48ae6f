"""How often the model is right in the field: from frames that were drawn at random, as people and the teacher judge
them. What was kept out of doubt says nothing of that: doubt is not drawn at random."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from agrikd.intervals import Interval, wilson
from agrikd.records import NOT_A_PLANT, PICKED, UNSURE, verdicts

How = Literal["people", "people and teacher", "teacher"]
_FEWEST = 20
"""Labels below which nothing is said of how the teacher errs."""
_RECENT = 100
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Judged:
    """A frame of the audit. right: as a person says; agrees: whether the teacher says the same; None where nobody
    did."""

    said: str
    right: bool | None
    agrees: bool | None


class Estimate(NamedTuple):
    """The share of frames on which the model is right, with a 95 % interval; of "teacher" alone it is the share on
    which the two agree, which is not the same. labelled: by people. answered: by the teacher."""

    share: float
    interval: Interval
    how: How
    labelled: int
    answered: int


class Fall(NamedTuple):
    """Shares judged right: of the frames before, and now, of the last `recent`."""

    before: float
    now: float
    recent: int
    how: Literal["people", "teacher"]

    def __str__(self) -> str:
        who = "people" if self.how == "people" else "the teacher"
        shares = f"{100 * self.before:.0f} % before, {100 * self.now:.0f} % in the last {self.recent} frames"
        return f"{shares}, as {who} judge it"


def judged(db: sqlite3.Connection, model: str = "") -> list[Judged]:
    """The audit's frames in their order, of one student or of the one that answered last.

    A person's last word counts, "unsure" is none; and so is what he said of a frame that he picked because of what he
    saw, live or by its number: the labelled frames would be no random part of the audit any more. Numbers are not
    judged so.
    """
    model = model or _last_student(db)
    specs = {name: json.loads(spec) for name, spec in db.execute("SELECT name, spec FROM models")}
    classes = {name: spec["classes"] for name, spec in specs.items() if not spec.get("scale")}
    words = {f: one.label for f, one in verdicts(db, without=PICKED).items() if one.label != UNSURE}
    rows = db.execute(
        "SELECT frames.id, own.top, own.unknown, other.model, other.top, other.unknown"
        " FROM frames JOIN predictions AS own ON own.frame = frames.id AND own.model = ?"
        " LEFT JOIN predictions AS other ON other.frame = frames.id AND other.role = 'teacher'"
        " WHERE frames.audit IS NOT NULL GROUP BY frames.id ORDER BY frames.id",
        (model,),
    )
    found = []
    for frame, top, unknown, teacher, its_top, its_unknown in rows if model in classes else ():
        label = words.get(frame)
        said = NOT_A_PLANT if unknown else classes[model][top]
        other = None if teacher not in classes else NOT_A_PLANT if its_unknown else classes[teacher][its_top]
        right, agrees = None if label is None else label == said, None if other is None else other == said
        found.append(Judged(said, right, agrees))
    return found


def estimate(rows: Sequence[Judged]) -> Estimate | None:
    """The share of frames on which the model is right; None where nobody has judged any.

    With at least 20 labels the teacher's answers to the other frames sharpen it: prediction-powered inference with
    power tuning (Angelopoulos, Duchi and Zrnic 2023, arXiv:2311.01453, eq. 4 and 6), which needs that the labelled
    frames are a random part of the audit. Else the interval is Wilson's of what there is.
    """
    right = [row.right for row in rows if row.right is not None]
    agrees = [row.agrees for row in rows if row.agrees is not None]
    counts = len(right), len(agrees)
    both = np.array([(row.right, row.agrees) for row in rows if None not in (row.right, row.agrees)], float)
    alone = np.array([row.agrees for row in rows if row.right is None and row.agrees is not None], float)
    if len(both) >= _FEWEST and len(both) == len(right) and len(alone):
        return _sharpened(both[:, 0], both[:, 1], alone, counts)
    if right:
        return Estimate(sum(right) / len(right), wilson(sum(right), len(right)), "people", *counts)
    if agrees:
        return Estimate(sum(agrees) / len(agrees), wilson(sum(agrees), len(agrees)), "teacher", *counts)
    return None


def by_class(rows: Sequence[Judged]) -> dict[str, Estimate]:
    """The same for the frames on which the model said each class."""
    names = sorted({row.said for row in rows})
    found = {name: estimate([row for row in rows if row.said == name]) for name in names}
    return {name: one for name, one in found.items() if one}


def fall(rows: Sequence[Judged], recent: int = _RECENT) -> Fall | None:
    """That the last frames were judged worse than all before them; None where that is not certain.

    By people where they judged enough, else by the teacher. The difference of two shares has Newcombe's interval (1998,
    method 10), and it falls when all of that lies below 0.
    """
    kinds: tuple[tuple[str, Literal["people", "teacher"]], ...] = (("right", "people"), ("agrees", "teacher"))
    for kind, how in kinds:
        marks = [bool(mark) for row in rows if (mark := getattr(row, kind)) is not None]
        if len(marks) >= 2 * recent:
            before, now = marks[:-recent], marks[-recent:]
            if _highest_difference(before, now) < 0:
                return Fall(sum(before) / len(before), sum(now) / len(now), recent, how)
            return None
    return None


def _sharpened(
    right: np.ndarray[tuple[int], np.dtype[np.float64]],
    agrees: np.ndarray[tuple[int], np.dtype[np.float64]],
    alone: np.ndarray[tuple[int], np.dtype[np.float64]],
    counts: tuple[int, int],
) -> Estimate:
    n, more = len(right), len(alone)
    spread = float(np.concatenate([agrees, alone]).var())
    weight = float(np.cov(right, agrees, bias=True)[0, 1]) / ((1 + n / more) * spread) if spread else 0.0
    weight = min(max(weight, 0.0), 1.0)
    share = float(right.mean() + weight * (alone.mean() - agrees.mean()))
    variance = weight**2 * spread / more + float((right - weight * agrees).var()) / n
    plain = wilson(int(right.sum()), n)
    if variance == 0:  # all right, or all wrong: the normal interval would be a point
        return Estimate(float(right.mean()), plain, "people", *counts)
    half = _Z * math.sqrt(variance)
    return Estimate(
        min(max(share, 0.0), 1.0),
        Interval(max(share - half, 0.0), min(share + half, 1.0)),
        "people and teacher",
        *counts,
    )


def _highest_difference(before: Sequence[bool], now: Sequence[bool]) -> float:
    old, new = (sum(marks) / len(marks) for marks in (before, now))
    old_low, new_high = wilson(sum(before), len(before)).low, wilson(sum(now), len(now)).high
    return new - old + math.hypot(new_high - new, old - old_low)


def _last_student(db: sqlite3.Connection) -> str:
    row = db.execute("SELECT model FROM predictions WHERE role = 'student' ORDER BY id DESC LIMIT 1").fetchone()
    return str(row[0]) if row else ""
