"""What the records of a field add up to: counts by day, capture sessions with their pictures, room for more of them.

Nothing here writes. Whatever goes over all frames is one statement, so it speaks of one moment while the agent goes on.
"""

from __future__ import annotations

import io
import shutil
import sqlite3
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agrikd import image, kept, sheets
from agrikd.kept import Kept

GAP_S = 1800.0
"""Without a frame for longer than this, a camera's next one begins another session."""
THUMBNAIL = 240
"""Pixels of its longer side, at most."""
PART_BYTES, PART_PICTURES = 64 * 2**20, 5000
"""Of pictures in one ZIP, at most: it is held in memory while it is fetched."""
_RECENT_S, _SHORTEST_S, _DAY_S = 7 * 86400.0, 3600.0, 86400.0
_JPEG_QUALITY = 60


# Counts


class Count(NamedTuple):
    """Frames of which a model said most probably this, whether or not it was sure. day: of the clock there."""

    day: str
    field: str
    plot: str
    camera: str
    model: str
    role: str
    said: str
    frames: int


def counts(db: sqlite3.Connection) -> list[Count]:
    """Of all frames and models, those that were folded too; by day and the rest."""
    known, roles = kept.specs(db), dict[str, str](db.execute("SELECT name, role FROM models").fetchall())
    rows = db.execute(
        "SELECT day, field, plot, camera, model, top, SUM(n) FROM ("
        " SELECT substr(local, 1, 10) AS day, field, plot, camera, model, top, COUNT(*) AS n"
        " FROM predictions JOIN frames ON frames.id = frame GROUP BY 1, 2, 3, 4, 5, 6"
        " UNION ALL SELECT day, field, plot, camera, model, top, n FROM daily)"
        " GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6"
    )
    return [
        Count(day, field, plot, camera, model, roles[model], known[model].classes[top], frames)
        for day, field, plot, camera, model, top, frames in rows
    ]


def counts_csv(rows: Iterable[Count]) -> bytes:
    """For a spreadsheet; the mark of UTF-8 at its start is for Excel."""
    columns = "day", "field", "plot", "camera", "model", "role", "class", "frames"
    return sheets.as_csv(columns, (dict(zip(columns, row, strict=True)) for row in rows)).encode("utf-8-sig")


def by_day(rows: Iterable[Count], named: Callable[[str], str], most: int) -> dict[str, Counter[str]]:
    """Frames of each class for each day, by the names for people; the rarest of more than `most` classes together have
    the name ""."""
    totals: Counter[str] = Counter()
    days: dict[str, Counter[str]] = {}
    for row in rows:
        name = named(row.said)
        totals[name] += row.frames
        days.setdefault(row.day, Counter())[name] += row.frames
    if len(totals) <= most:
        return days
    shown = {name for name, _ in totals.most_common(most - 1)}
    return {day: _together(found, shown) for day, found in days.items()}


def _together(found: Counter[str], shown: set[str]) -> Counter[str]:
    made: Counter[str] = Counter()
    for name, frames in found.items():
        made[name if name in shown else ""] += frames
    return made


def students(db: sqlite3.Connection) -> list[str]:
    """All that answered; the one that did last comes first."""
    last = db.execute("SELECT model FROM predictions WHERE role = 'student' ORDER BY id DESC LIMIT 1").fetchone()
    names = [str(name) for (name,) in db.execute("SELECT name FROM models WHERE role = 'student' ORDER BY id DESC")]
    return sorted(names, key=lambda name: last is None or name != last[0])


# Sessions


@dataclass(frozen=True)
class Session:
    """Frames of one camera in one field without a long gap. begin, end: the clock there at the first and the last.
    first, last: their ids; no other session of the camera has an id between them. size_bytes: of its kept pictures."""

    camera: str
    field: str
    begin: str
    end: str
    first: int
    last: int
    frames: int
    pictures: int
    size_bytes: int


def sessions(db: sqlite3.Connection) -> list[Session]:
    """The newest first. Of old frames of which most were folded, what is left may stand farther apart than `GAP_S` and
    be several sessions."""
    going: dict[str, _Span] = {}
    ended: list[Session] = []
    rows = db.execute(
        "SELECT frames.id, camera, field, local, t, size_bytes"
        " FROM frames LEFT JOIN pictures ON pictures.frame = frames.id ORDER BY frames.id"
    )
    for frame, camera, field, local, t, size_bytes in rows:
        span = going.get(camera)
        if span is None or span.field != field or abs(t - span.t) > GAP_S:
            ended += [span.session(camera)] if span else []
            span = going[camera] = _Span(field, local, frame)
        span.last, span.end, span.t = frame, local, t
        span.frames += 1
        if size_bytes is not None:
            span.pictures += 1
            span.size_bytes += size_bytes
    ended += [span.session(camera) for camera, span in going.items()]
    return sorted(ended, key=lambda one: -one.first)


class _Span:
    """A session that may go on. t: of its last frame."""

    __slots__ = ("begin", "end", "field", "first", "frames", "last", "pictures", "size_bytes", "t")

    def __init__(self, field: str, begin: str, first: int) -> None:
        self.field, self.begin, self.end, self.first, self.last = field, begin, begin, first, first
        self.frames = self.pictures = self.size_bytes = 0
        self.t = 0.0

    def session(self, camera: str) -> Session:
        size = self.frames, self.pictures, self.size_bytes
        return Session(camera, self.field, self.begin, self.end, self.first, self.last, *size)


def thumbnail(path: Path) -> bytes:
    """A small JPEG of a picture; raises `InputError` where it is gone or none."""
    pixels = image.read(path)
    height, width = pixels.shape[:2]
    shrink = min(1.0, THUMBNAIL / max(height, width))
    small = max(1, round(height * shrink)), max(1, round(width * shrink))
    return image.encode_jpeg(image.resize(pixels, small), _JPEG_QUALITY)


def parts(db: sqlite3.Connection, session: Session) -> list[tuple[int, int]]:
    """Frame to frame, both included: a session's pictures in pieces of `PART_BYTES` and `PART_PICTURES` at most; a
    picture that is larger by itself is a piece."""
    rows = db.execute(
        "SELECT frames.id, size_bytes FROM pictures JOIN frames ON frames.id = pictures.frame"
        " WHERE pictures.frame BETWEEN ? AND ? AND camera = ? ORDER BY pictures.frame",
        (session.first, session.last, session.camera),
    )
    found: list[tuple[int, int]] = []
    held = held_bytes = 0
    for frame, size_bytes in rows:
        held, held_bytes = held + 1, held_bytes + size_bytes
        if found and held_bytes <= PART_BYTES and held <= PART_PICTURES:
            found[-1] = found[-1][0], frame
        else:
            found.append((frame, frame))
            held, held_bytes = 1, size_bytes
    return found


_ROLES = ("student", "teacher")
_SAID = (
    *("frame", "local", "camera", "field", "plot", "why", "picture", "gone"),
    *(f"{role}{of}" for role in _ROLES for of in ("", "_probability", "_unsure", "_model")),
    *("label", "label_by", "note"),
)


def packed(pictures: Iterable[Kept], place: Callable[[str], Path]) -> bytes:
    """A ZIP of pictures, named by their frames, and of `said.csv`, which says what was said of each and which of them
    are gone, and why. place: where a picture lies, by its name in the records."""
    out, rows = io.BytesIO(), []
    with zipfile.ZipFile(out, "w") as made:
        for one in pictures:
            name, gone = f"{one.frame:09d}.jpg", ""
            try:
                made.writestr(name, place(one.file).read_bytes())
            except OSError as error:
                name, gone = one.file, error.strerror or type(error).__name__
            rows.append({**_line(one), "picture": name, "gone": gone})
        table = sheets.as_csv(_SAID, rows).encode("utf-8-sig")
        made.writestr("said.csv", table, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _line(one: Kept) -> dict[str, Any]:
    line = {key: getattr(one, key) for key in ("frame", "local", "camera", "field", "plot", "why")}
    for role, answer in zip(_ROLES, (one.student, one.teacher), strict=True):
        line[role] = answer.said if answer else ""
        line[f"{role}_probability"] = answer.probability if answer else None
        line[f"{role}_unsure"] = answer.unsure if answer else None
        line[f"{role}_model"] = answer.model if answer else ""
    label = one.label
    said = {"label": label.label, "label_by": label.who, "note": label.note} if label else {"label": ""}
    return {**line, **said}


# Room


@dataclass(frozen=True)
class Room:
    """For pictures. left_bytes: until the oldest that nobody has labelled go. bytes_per_day: kept of late; None where
    that is too short to say."""

    kept_bytes: int
    labelled_bytes: int
    disk_free_bytes: int
    left_bytes: float
    bytes_per_day: float | None

    @property
    def days(self) -> float | None:
        """For which what is left lasts at that rate; None where it has no end, or nobody knows."""
        return self.left_bytes / self.bytes_per_day if self.bytes_per_day else None


def room(db: sqlite3.Connection, folder: Path, quota_bytes: float, free_bytes: float) -> Room:
    """free_bytes: that the agent leaves to the disk's others.

    The rate is that of the last 7 days; where the oldest picture that nobody has labelled is younger, since that one,
    as what was before it may have been removed.
    """
    join = "FROM pictures JOIN frames ON frames.id = pictures.frame"
    labelled = "pictures.frame IN (SELECT frame FROM labels)"
    now, (oldest,) = time.time(), db.execute(f"SELECT MIN(t) {join} WHERE NOT {labelled}").fetchone()
    since = max(now - _RECENT_S, oldest or 0.0)
    recent, total, of_labelled = db.execute(
        f"SELECT TOTAL(iif(t >= ?, size_bytes, 0)), TOTAL(size_bytes), TOTAL(iif({labelled}, size_bytes, 0)) {join}",
        (since,),
    ).fetchone()
    free = shutil.disk_usage(folder).free
    left = max(min(quota_bytes - total, free - free_bytes), 0.0)
    rate = recent / (now - since) * _DAY_S if now - since >= _SHORTEST_S else None
    return Room(int(total), int(of_labelled), free, left, rate)
