"""Photos that may show one plant, as far as times and file names tell: a guess, to be looked at by a person.

A person takes several photos of a plant and walks on. Where nobody wrote down the plant, the photos of one moment,
or of one numbered name, are the nearest thing to it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Literal

from agrikd.data.looks import Look

GAP = timedelta(seconds=60)
"""Photos of one camera nearer in time than this are one moment: walking to the next plot takes longer."""

_TIME = re.compile(r"(?<!\d)(20\d{6})[-_T]?(\d{6})(?!\d)")
_NUMBERED = re.compile(
    r"^(?P<stem>.*\d.*?)(?:[-_. ]+\(?(?:[a-z]+)?\d{1,2}\)?|[-_ ]?\(\d{1,3}\)|[-_][a-d])$", re.IGNORECASE
)
_LEAST_SHARE, _MOST_OF_ONE = 0.2, 20
"""Numbered names are believed where they gather this share of the photos, into groups no larger than this."""


@dataclass(frozen=True)
class Moment:
    """Paths that may show one plant. by: "time" (EXIF, or a time in the name) or "name" (a stem with a number)."""

    by: Literal["time", "name"]
    name: str
    paths: tuple[str, ...]


def guess(photos: Sequence[Look]) -> list[Moment]:
    """Moments of two photos or more; by name only for photos without a time."""
    timed = [(time, photo) for photo in photos if (time := taken(photo))]
    known = {photo.path for _, photo in timed}
    return [*_by_time(timed), *_by_name([photo.path for photo in photos if photo.path not in known])]


def taken(photo: Look) -> datetime | None:
    """When a photo was taken: as EXIF says, or a YYYYMMDD-HHMMSS in its name; None where neither does."""
    if photo.taken:
        return datetime.fromisoformat(photo.taken)
    if found := _TIME.search(PurePosixPath(photo.path).stem):
        try:
            return datetime.strptime("".join(found.groups()), "%Y%m%d%H%M%S")
        except ValueError:
            return None
    return None


def _by_time(timed: Iterable[tuple[datetime, Look]]) -> list[Moment]:
    by_camera = defaultdict(list)
    for time, photo in timed:
        by_camera[photo.camera].append((time, photo.path))
    moments: list[list[tuple[datetime, str]]] = []
    for shots in by_camera.values():
        last = None
        for time, path in sorted(shots):
            if last is None or time - last > GAP:
                moments.append([])
            moments[-1].append((time, path))
            last = time
    return [Moment("time", f"{m[0][0]:%Y-%m-%d %H:%M:%S}", tuple(p for _, p in m)) for m in moments if len(m) > 1]


def _by_name(paths: Sequence[str]) -> list[Moment]:
    stems = defaultdict(list)
    for path in paths:
        if found := _NUMBERED.fullmatch(PurePosixPath(path).stem):
            stems[found["stem"].casefold()].append(path)
    groups = {stem: tuple(sorted(found)) for stem, found in stems.items() if 2 <= len(found) <= _MOST_OF_ONE}
    if sum(map(len, groups.values())) < _LEAST_SHARE * len(paths):
        return []
    return [Moment("name", stem, found) for stem, found in sorted(groups.items())]
