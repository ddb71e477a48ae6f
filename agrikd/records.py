"""What was seen in a field: a folder with a database (SQLite, write-ahead log) and the pictures that are kept.

One process writes it, any number reads it meanwhile. Rows are only ever added, or removed to make room, and ids grow;
so what is new to somebody is what lies beyond the id that he has seen.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from agrikd.errors import InputError, Problem
from agrikd.types import ModelSpec, Prediction

SCHEMA = 1
DATABASE = "records.db"
PICTURES = "pictures"
TABLES = ("models", "frames", "predictions", "pictures", "labels", "events")
"""What a hub is told of, in this order: what a row speaks of comes before it."""
UNSURE, NOT_A_PLANT = "unsure", "not_a_plant"
"""Labels beside the classes: whoever looked cannot tell, or saw no plant that the model should know."""
WITHDRAWN = "withdrawn"
"""No label: it takes one of its frame back, whose key stands in its note."""
LIVE, CHOSEN, REVIEW = "live", "chosen", "review"
"""How a frame came before whoever labelled it: he stopped the live picture, he gave the frame's number, or the queue
showed it."""
PICKED = (LIVE, CHOSEN)
"""He picked it, perhaps for what was said of it: what is labelled so is no random part of anything."""
Role = Literal["student", "teacher"]
_MOST = 1e15
MOST_TEXT = 10_000
"""Characters of a text that a person writes."""

LAYOUT = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, spec TEXT NOT NULL);
CREATE TABLE frames(
  id INTEGER PRIMARY KEY, t REAL NOT NULL, local TEXT NOT NULL, camera TEXT NOT NULL, field TEXT NOT NULL,
  plot TEXT NOT NULL, latitude REAL, longitude REAL, quality TEXT NOT NULL, audit REAL);
CREATE TABLE predictions(
  id INTEGER PRIMARY KEY AUTOINCREMENT, frame INTEGER NOT NULL, model TEXT NOT NULL, role TEXT NOT NULL,
  t REAL NOT NULL, top INTEGER NOT NULL, probability REAL NOT NULL, value REAL, unsure INTEGER, unknown INTEGER,
  probabilities TEXT NOT NULL, candidates TEXT NOT NULL, interval TEXT, latency_ms REAL NOT NULL,
  UNIQUE(frame, model));
CREATE TABLE pictures(
  id INTEGER PRIMARY KEY AUTOINCREMENT, frame INTEGER NOT NULL UNIQUE, why TEXT NOT NULL, file TEXT NOT NULL,
  size_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE labels(
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, frame INTEGER NOT NULL, label TEXT NOT NULL, who TEXT NOT NULL,
  t REAL NOT NULL, source TEXT NOT NULL, note TEXT NOT NULL);
CREATE INDEX labels_of ON labels(frame);
CREATE TABLE events(id INTEGER PRIMARY KEY, t REAL NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE asks(frame INTEGER PRIMARY KEY, why TEXT NOT NULL, t REAL NOT NULL);
CREATE TABLE daily(
  day TEXT NOT NULL, camera TEXT NOT NULL, field TEXT NOT NULL, plot TEXT NOT NULL, model TEXT NOT NULL,
  top INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(day, camera, field, plot, model, top)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Place:
    """Where a camera looks; degrees, north and east positive."""

    field: str = ""
    plot: str = ""
    latitude: float | None = None
    longitude: float | None = None


@dataclass(frozen=True)
class Seen:
    """A frame. t: UTC, in seconds since 1970, when it arrived. quality: what is wrong with the picture, in words.
    audit: the share of frames it was drawn for at random; None where it was not drawn."""

    id: int
    t: float
    camera: str
    place: Place = Place()
    quality: tuple[str, ...] = ()
    audit: float | None = None

    @property
    def local(self) -> str:
        """The wall clock's time there, with its offset: 2027-05-04T16:20:01.250+02:00."""
        return datetime.fromtimestamp(self.t, timezone.utc).astimezone().isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Opinion:
    """What a model said of a frame; the fields of a `Prediction`, for a database and for a wire.

    model: a release's id, or of another model's file. t: UTC, seconds. latency_ms: of the model alone.
    """

    model: str
    role: Role
    t: float
    latency_ms: float
    top: int
    probabilities: tuple[float, ...]
    candidates: tuple[int, ...]
    unsure: bool | None = None
    unknown: bool | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def probability(self) -> float:
        return self.probabilities[self.top]

    @classmethod
    def of(cls, said: Prediction, model: str, role: Role, t: float, latency_ms: float) -> Opinion:
        return cls(
            model=model,
            role=role,
            t=t,
            latency_ms=round(latency_ms, 2),
            top=said.top,
            probabilities=tuple(round(float(p), 5) for p in said.probabilities),
            candidates=said.candidates,
            unsure=said.unsure,
            unknown=said.unknown,
            value=said.value,
            interval=said.interval,
        )

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Opinion:
        """Raises `KeyError`, `TypeError` or `ValueError` for what is none."""
        interval = said.get("interval")
        made = cls(
            **{
                **said,
                "probabilities": tuple(map(float, said["probabilities"])),
                "candidates": tuple(map(int, said["candidates"])),
                "interval": (float(interval[0]), float(interval[1])) if interval else None,
            }
        )
        if not 0 <= made.top < len(made.probabilities) or made.role not in ("student", "teacher"):
            raise ValueError(f"top {made.top} of {len(made.probabilities)} classes, role {made.role}")
        numbers = (*made.probabilities, made.t, made.latency_ms, made.value or 0.0, *(made.interval or ()))
        if not all(math.isfinite(float(one)) and abs(float(one)) < _MOST for one in numbers):
            raise ValueError("a number that is not finite, or beyond all reason")
        return made


@dataclass(frozen=True)
class Label:
    """What somebody says a frame shows: a class, `UNSURE` or `NOT_A_PLANT`. key: the same for the same click, however
    often it is sent. source: `LIVE`, `CHOSEN` or `REVIEW`."""

    key: str
    frame: int
    label: str
    who: str
    t: float
    source: str = ""
    note: str = ""


def create(folder: Path) -> sqlite3.Connection:
    """For the one that writes; made where there is none. A commit is on the disk when it returns (synchronous=FULL)."""
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / DATABASE, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            with transaction(db):
                for statement in LAYOUT.split(";"):
                    db.execute(statement)
                series = {"schema": str(SCHEMA), "series": uuid.uuid4().hex}
                db.executemany("INSERT INTO meta VALUES(?, ?)", series.items())
        _require_schema(db, folder)
    except BaseException:
        db.close()
        raise
    return db


def read(folder: Path) -> sqlite3.Connection:
    """For whoever looks; rows come as mappings. Raises `InputError` where there are no records."""
    path = folder / DATABASE
    if not path.is_file():
        raise InputError(Problem(str(folder), "holds no records", "name the folder that an agent writes"))
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    try:
        _require_schema(db, folder)
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def meta(db: sqlite3.Connection, key: str) -> str:
    return str(db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])


def _require_schema(db: sqlite3.Connection, folder: Path) -> None:
    if (found := meta(db, "schema")) != str(SCHEMA):
        wrong = f"has records of the form {found}, this agrikd knows {SCHEMA}"
        raise InputError(Problem(str(folder), wrong, "update agrikd here"))


# Adding


def add_model(db: sqlite3.Connection, name: str, role: Role, spec: ModelSpec) -> None:
    """A model is known by what it is: the same name again is the same model."""
    if db.execute("SELECT 1 FROM models WHERE name = ?", (name,)).fetchone():
        return
    words = json.dumps(spec.to_json(), ensure_ascii=False)
    db.execute("INSERT INTO models(name, role, spec) VALUES(?, ?, ?) ON CONFLICT DO NOTHING", (name, role, words))


def add_frame(db: sqlite3.Connection, seen: Seen) -> None:
    place = seen.place
    where = (place.field, place.plot, place.latitude, place.longitude)
    row = (seen.id, seen.t, seen.local, seen.camera, *where, ", ".join(seen.quality), seen.audit)
    db.execute("INSERT INTO frames VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def add_opinion(db: sqlite3.Connection, frame: int, said: Opinion) -> None:
    """The first answer of a model to a frame stands."""
    row = (
        *(frame, said.model, said.role, said.t, said.top, said.probability, said.value, said.unsure, said.unknown),
        *(json.dumps(said.probabilities), json.dumps(said.candidates)),
        *(json.dumps(said.interval) if said.interval else None, said.latency_ms),
    )
    db.execute(
        "INSERT INTO predictions(frame, model, role, t, top, probability, value, unsure, unknown, probabilities,"
        " candidates, interval, latency_ms) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        row,
    )
    if said.role == "teacher":
        db.execute("DELETE FROM asks WHERE frame = ?", (frame,))


def add_label(db: sqlite3.Connection, label: Label) -> int:
    """Its id; the same click again is the same label. Raises `InputError` where the frame is not there, or a text is
    none that every database takes."""
    texts = {"key": label.key, "label": label.label, "who": label.who, "source": label.source, "note": label.note}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str) or not _plain(text)]:
        mend = f"expected {MOST_TEXT} characters at most, all of them Unicode's, and no NUL"
        raise InputError([Problem(name, "is no plain text", mend) for name in wrong])
    if not db.execute("SELECT 1 FROM frames WHERE id = ?", (label.frame,)).fetchone():
        raise InputError(Problem(f"frame {label.frame}", "is not in the records", "label a newer one"))
    row = (label.key, label.frame, label.label, label.who, label.t, label.source, label.note)
    db.execute(
        "INSERT INTO labels(key, frame, label, who, t, source, note) VALUES(?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        row,
    )
    found = db.execute("SELECT id, frame, label FROM labels WHERE key = ?", (label.key,)).fetchone()
    if tuple(found[1:]) != (label.frame, label.label):
        raise InputError(
            Problem(label.key, f"was {found[2]!r} on frame {found[1]}", "give each click a key of its own")
        )
    return int(found[0])


def add_event(db: sqlite3.Connection, t: float, key: str, value: str) -> None:
    """value: in words; what no database takes of them is left out."""
    told = value.encode(errors="replace").decode().replace("\0", "")[:MOST_TEXT]
    db.execute("INSERT INTO events(t, key, value) VALUES(?, ?, ?)", (t, key, told))


def add_ask(db: sqlite3.Connection, frame: int, why: str, t: float) -> None:
    """A question to the teacher that waits until it is answered; asked again, for the reason given last."""
    db.execute(
        "INSERT INTO asks VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET why = excluded.why, t = excluded.t", (frame, why, t)
    )


def add_picture(db: sqlite3.Connection, frame: int, why: str, held: tuple[str, int, str]) -> None:
    """held: its file under the records' folder, its size in bytes and its SHA-256."""
    db.execute(
        "INSERT INTO pictures(frame, why, file, size_bytes, sha256) VALUES(?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (frame, why, *held),
    )


def _plain(text: str) -> bool:
    return len(text) <= MOST_TEXT and "\0" not in text and text == text.encode(errors="replace").decode()


# Making room


def oldest_unlabelled(db: sqlite3.Connection, count: int) -> list[tuple[int, str, int]]:
    """(frame, file, size in bytes) of kept pictures that nobody has labelled."""
    rows = db.execute(
        "SELECT frame, file, size_bytes FROM pictures WHERE frame NOT IN (SELECT frame FROM labels)"
        " ORDER BY frame LIMIT ?",
        (count,),
    )
    return [(int(frame), str(file), int(size)) for frame, file, size in rows]


def drop_pictures(db: sqlite3.Connection, frames: list[int]) -> None:
    marks = [(frame,) for frame in frames]
    db.executemany("DELETE FROM pictures WHERE frame = ?", marks)
    db.executemany("DELETE FROM asks WHERE frame = ?", marks)


def fold(db: sqlite3.Connection, count: int) -> int:
    """Make daily counts of the oldest frames that have neither a picture nor a label; how many frames went."""
    kept = "SELECT frame FROM pictures UNION ALL SELECT frame FROM labels"
    rows = db.execute(f"SELECT id FROM frames WHERE id NOT IN ({kept}) ORDER BY id LIMIT ?", (count,)).fetchall()
    db.execute("CREATE TEMP TABLE IF NOT EXISTS going(id INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM going")
    db.executemany("INSERT INTO going VALUES(?)", rows)
    db.execute(
        "INSERT INTO daily SELECT substr(local, 1, 10), camera, field, plot, model, top, COUNT(*)"
        " FROM going JOIN frames USING(id) JOIN predictions ON frame = going.id WHERE true"
        " GROUP BY 1, 2, 3, 4, 5, 6 ON CONFLICT DO UPDATE SET n = n + excluded.n"
    )
    db.execute("DELETE FROM predictions WHERE frame IN (SELECT id FROM going)")
    db.execute("DELETE FROM frames WHERE id IN (SELECT id FROM going)")
    return len(rows)


# Reading


def verdicts(db: sqlite3.Connection, without: Collection[str] = ()) -> dict[int, Label]:
    """What people say of each frame that they looked at; without: sources whose labels do not count."""
    said: dict[int, list[Label]] = {}
    for row in db.execute("SELECT key, frame, label, who, t, source, note FROM labels ORDER BY id"):
        label = Label(*row)
        if label.source in without:
            continue
        said.setdefault(label.frame, []).append(label)
    found = {frame: last_word(labels) for frame, labels in said.items()}
    return {frame: label for frame, label in found.items() if label}


def last_word(said: Iterable[Label]) -> Label | None:
    """Of a frame's labels in their order: the last that was not taken back. "Unsure" takes back what the same person
    said before, and nobody else's word; those who gave no name count as one."""
    stand: list[Label] = []
    for one in said:
        if one.label == WITHDRAWN:
            stand = [other for other in stand if other.key != one.note]
        else:
            stand.append(one)
    doubted: set[str] = set()
    for one in reversed(stand):
        if one.label == UNSURE:
            doubted.add(one.who)
        elif one.who not in doubted:
            return one
    return stand[-1] if stand else None


def beyond(db: sqlite3.Connection, table: str, after: int, count: int) -> list[dict[str, Any]]:
    """The next rows of one of `TABLES` after an id, in the order of their ids."""
    if table not in TABLES:
        raise ValueError(table)
    rows = db.execute(f"SELECT * FROM {table} WHERE id > ? ORDER BY id LIMIT ?", (after, count))
    names = [column[0] for column in rows.description]
    return [dict(zip(names, row, strict=True)) for row in rows]
