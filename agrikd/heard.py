"""What a hub says of its devices and of what they saw. It may be of a later or an older agrikd: whatever is not what
was expected counts as not said."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from agrikd import records
from agrikd.condition import LAST_T, Condition, Wrong, at, number, text
from agrikd.device.sync import NO_SERIES
from agrikd.records import Label

_TWIN_S = 7 * 86_400.0
"""A second device of a name that was silent for longer is no news any more."""


@dataclass(frozen=True)
class Member:
    """A device at its newest heartbeat. series: of its database now; older: how many it had before. age_s: since it was
    heard, None where it never was; stale: whether that is too long. since_s: since this database was heard first, as
    far as the hub says. twin: another device reports under this name."""

    device: str
    series: str
    age_s: float | None
    stale: bool
    condition: Condition
    since_s: float | None = None
    older: int = 0
    twin: bool = False

    @property
    def wrong(self) -> list[Wrong]:
        return [*([Wrong("twin")] if self.twin else []), *self.condition.wrong]

    @property
    def recorded(self) -> bool:
        """Whether the device can read its records."""
        return self.series != NO_SERIES

    @property
    def path(self) -> str:
        """Of what the hub holds of it."""
        return f"/hub/{quote(self.device, safe='')}/{quote(self.series, safe='')}"


@dataclass(frozen=True)
class Beat:
    """A heartbeat's numbers: °C, the share of memory in use, frames a second. None where it said none, and between two
    that are so far apart that no line should join them."""

    t: float
    celsius: float | None = None
    memory: float | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Said:
    """A model's answer to a frame: the class's index or, where a number was asked for, the number."""

    model: str
    top: int
    probability: float
    value: float | None
    unknown: bool


@dataclass(frozen=True)
class Sight:
    """A frame at the hub. local: the wall clock there. pictured: whether its picture has come."""

    frame: int
    local: str
    camera: str
    quality: str
    student: Said | None
    teacher: Said | None
    label: str
    pictured: bool

    @property
    def when(self) -> str:
        """By the wall clock there, to the second."""
        return self.local[:19].replace("T", " ")


def members(told: Sequence[object]) -> list[Member]:
    """From what GET /hub/devices says: each device once, as it was heard last; those that want a look come first."""
    found: dict[str, list[Member]] = defaultdict(list)
    for one in told:
        age_s = number(at(one, "age_s"))
        stale = age_s is None or at(one, "stale") is not False
        condition, since_s = Condition.of(at(one, "vitals")), number(at(one, "since_s"))
        new = Member(text(at(one, "device")), text(at(one, "series")), age_s, stale, condition, since_s)
        found[new.device].append(new)
    return sorted(map(_newest, found.values()), key=lambda one: (not one.stale, not one.wrong, one.device))


def _newest(heard: Sequence[Member]) -> Member:
    """Of those of one name. A database that is heard after the next one began is another device's: its own would have
    ended before."""
    newest = min(heard, key=lambda one: math.inf if one.age_s is None else one.age_s)
    others = [one for one in heard if one is not newest and one.recorded]
    since_s = min(newest.since_s or 0.0, _TWIN_S) if newest.recorded else 0.0
    twin = any(one.age_s is not None and one.age_s < since_s for one in others)
    return replace(newest, older=len(others), twin=twin)


def beats(told: Sequence[object]) -> list[Beat]:
    """From what GET …/heartbeats says, oldest first; a silence of more than three periods leaves a gap."""
    made: list[Beat] = []
    for one in reversed(told):
        t, period_s, condition = number(at(one, "t")), number(at(one, "period_s")), Condition.of(at(one, "vitals"))
        if t is None or not 0 <= t < LAST_T:
            continue
        if made and period_s and t - made[-1].t > 3 * period_s:
            made.append(Beat((t + made[-1].t) / 2))
        memory = None if condition.memory is None else 1 - condition.memory
        made.append(Beat(t, condition.celsius, memory, condition.fps))
    return made


def sights(told: Sequence[object]) -> list[Sight]:
    """From what GET …/frames says, in its order; of several labels the last word."""
    made = []
    for one in told:
        if (frame := number(at(one, "id"))) is None:
            continue
        answers = {at(said, "role"): _said(said) for said in _items(at(one, "predictions"))}
        said = ([text(at(said, key)) for key in ("key", "label", "who", "note")] for said in _items(at(one, "labels")))
        label = records.last_word(Label(key, 0, label, who, 0.0, "", note) for key, label, who, note in said)
        local, camera, quality = (text(at(one, name)) for name in ("local", "camera", "quality"))
        pictured = at(one, "picture", "held") == "whole"
        own = answers.get("student"), answers.get("teacher")
        made.append(Sight(int(frame), local, camera, quality, *own, label.label if label else "", pictured))
    return made


def _items(said: object) -> list[object]:
    return said if isinstance(said, list) else []


def _said(said: object) -> Said | None:
    top, probability = number(at(said, "top")), number(at(said, "probability"))
    if top is None or probability is None:
        return None
    value, unknown = number(at(said, "value")), bool(at(said, "unknown"))
    return Said(text(at(said, "model")), int(top), probability, value, unknown)
