"""What many devices have seen, in one place: a database of their records (SQLite or PostgreSQL), a folder of pictures.

A device's rows are those of its own database, under a source: its name and the series of that database, so that a
device whose disk was replaced begins anew. Each is stored once, with the cursor that says so in the same transaction:
what a device sends again, twice at the same time, or after a gap, adds nothing and leaves nothing out.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrikd import files, records
from agrikd.errors import AgriKDError, InputError, MissingExtraError, Problem, StorageError
from agrikd.hub_tables import ABOUT, AWAITED, BEATS, CURSORS, GONE, METADATA, MIRRORS, SOURCES, WHOLE, check

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql, sqlite
except ImportError:
    raise MissingExtraError("sqlalchemy", "serve") from None

MOST_BEAT_BYTES, MOST_BEATS = 2**16, 20_000
"""Of a heartbeat, and how many of a source are kept: a week of one in 30 s."""
MOST_PAGE = 500
_WANTED = 16
_STALE = 3
_LONGEST_PERIOD_S = 86_400
_NAME, _SERIES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), re.compile(r"[0-9a-f]{32}")
_PICTURES = MIRRORS["pictures"]
_LISTS = "probabilities", "candidates", "interval"


class OutOfStepError(AgriKDError):
    """A batch, or a piece, does not begin where the hub stands. at: where that is."""

    def __init__(self, what: str, at: int) -> None:
        self.at = at
        super().__init__(f"{what}: the hub stands at {at}\n    → go on from there")


class AbsentError(AgriKDError):
    """The hub has no such thing."""


@dataclass(frozen=True)
class Source:
    """Whose rows: the device's name, and the series of its database."""

    device: str
    series: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.device) or not _SERIES.fullmatch(self.series):
            mend = "a name has up to 64 letters, digits, dots, dashes and underscores; a series is 32 hex digits"
            raise InputError(Problem(f"{self.device[:80]!r}, {self.series[:80]!r}", "is no source", mend))


class Hub:
    """The one place; any number of threads may use it. clock: of receipt, UTC in seconds.

    free_bytes: left free on the pictures' disk, so that rows find room when pictures no longer do.
    """

    def __init__(
        self, url: str, folder: Path, clock: Callable[[], float] = time.time, free_bytes: int = 200 * 10**6
    ) -> None:
        self._folder, self._clock, self._free_bytes = folder, clock, free_bytes
        with _said():
            kind = sa.make_url(url).get_backend_name()
            if kind not in ("sqlite", "postgresql"):
                raise InputError(Problem(kind, "is no database for a hub", "sqlite or postgresql"))
            self._engine = _engine(url)
            self._insert = sqlite.insert if kind == "sqlite" else postgresql.insert
            METADATA.create_all(self._engine)
            with self._engine.execution_options(writes=True).begin() as db:
                db.execute(self._insert(ABOUT).values(key="schema", value=str(records.SCHEMA)).on_conflict_do_nothing())
                found = db.execute(sa.select(ABOUT.c.value)).scalar_one()
        if found != str(records.SCHEMA):
            wrong = f"holds records of the form {found}, this agrikd knows {records.SCHEMA}"
            raise InputError(Problem("the hub", wrong, "begin a new one, or use the agrikd that made it"))

    @classmethod
    def open(cls, where: str, pictures: Path | None = None) -> Hub:
        """A folder, which then holds both, or the URL of a database and a folder for the pictures."""
        if "://" not in where:
            folder = Path(where)
            with files.storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            return cls(f"sqlite:///{folder / 'hub.db'}", pictures or folder / "pictures")
        if pictures is None:
            raise InputError(Problem("--hub", "is a database, which holds no pictures", "name --pictures FOLDER"))
        return cls(where, pictures)

    def close(self) -> None:
        """Close what the pool holds."""
        self._engine.dispose()

    # Taking

    def take(self, source: Source, table: str, after: object, rows: object) -> int:
        """All of the rows that a source has after an id, up to the last of them; where the cursor stands then.

        Raises `InputError` with all that is wrong with the rows, `OutOfStepError` where rows before them are missing.
        """
        begin, checked = check(table, after, rows)
        with self._changing(source) as (db, number):
            at = self._cursors(db, number)[table]
            new = [{**row, "origin": number} for row in checked if row["id"] > at]
            if begin > at or (begin < at and new and len(new) == len(checked)):
                raise OutOfStepError(f"{table} after {begin}", at)
            if not new:
                return at
            last = int(new[-1]["id"])
            db.execute(self._insert(MIRRORS[table]).on_conflict_do_nothing(), new)
            moved = self._insert(CURSORS).values(origin=number, name=table, beyond=last)
            db.execute(moved.on_conflict_do_update(index_elements=["origin", "name"], set_={"beyond": last}))
            return last

    def put(self, source: Source, picture: int, at: int, piece: bytes) -> int:
        """A picture's next bytes; how many are held then. It appears when all are there and are what its row says.

        Raises `AbsentError` where its row has not come, `OutOfStepError` where other bytes come next.
        """
        with self._changing(source) as (db, number):
            own = (_PICTURES.c.origin == number) & (_PICTURES.c.id == picture)
            row = db.execute(
                sa.select(_PICTURES.c.size_bytes, _PICTURES.c.sha256, _PICTURES.c.held).where(own)
            ).one_or_none()
            if row is None:
                raise AbsentError(f"picture {picture} of {source.device} is not in its rows")
            held = row.size_bytes if row.held == WHOLE else self._settled(number, picture, row)
            if held < row.size_bytes:
                if at != held:
                    raise OutOfStepError(f"picture {picture} at {at}", held)
                self._append(self._part(number, picture), piece[: row.size_bytes - held])
                held = self._settled(number, picture, row)
            if held == row.size_bytes and row.held != WHOLE:
                db.execute(sa.update(_PICTURES).where(own).values(held=WHOLE))
            return int(held)

    def gone(self, source: Source, picture: int) -> None:
        """The device no longer has a picture that was not sent: nobody waits for it any more."""
        with self._changing(source) as (db, number):
            own = (_PICTURES.c.origin == number) & (_PICTURES.c.id == picture) & (_PICTURES.c.held == AWAITED)
            db.execute(sa.update(_PICTURES).where(own).values(held=GONE))
            self._part(number, picture).unlink(missing_ok=True)

    def beat(self, source: Source, period_s: object, vitals: object) -> None:
        """A heartbeat: it says how soon to expect the next, and how the device is."""
        words = _beat_words(period_s, vitals)
        with self._changing(source) as (db, number):
            own = BEATS.c.origin == number
            last = db.execute(sa.select(sa.func.max(BEATS.c.id)).where(own)).scalar_one() or 0
            values = {"origin": number, "id": last + 1, "t": self._clock(), "period_s": period_s, "vitals": words}
            db.execute(sa.insert(BEATS).values(values))
            db.execute(sa.delete(BEATS).where(own, BEATS.c.id <= last + 1 - MOST_BEATS))

    def _append(self, part: Path, piece: bytes) -> None:
        with files.storage_errors(self._folder):
            part.parent.mkdir(parents=True, exist_ok=True)
            files.require_room(part, len(piece) + self._free_bytes)
            with part.open("ab") as out:
                out.write(piece)

    def _settled(self, number: int, picture: int, row: Any) -> int:
        """How many bytes are held; when they are all, the picture appears. Raises `InputError` where it is another."""
        part, path = self._part(number, picture), self._file(number, picture)
        if path.exists():  # a crash came before its row said so
            return int(row.size_bytes)
        held = _size(part)
        if held < row.size_bytes:
            return held
        if held > row.size_bytes or files.sha256_of(part) != row.sha256:
            part.unlink()
            raise InputError(Problem(f"picture {picture}", "is not what its row says", "send it from its beginning"))
        with files.replacing(path) as temporary:
            part.replace(temporary)
        return held

    # Where it stands

    def state(self, source: Source, after: int = 0) -> dict[str, Any]:
        """beyond: by table, the last id that is here. wanted: [id, bytes held] of the next pictures to send, whose ids
        are beyond `after`: the device has not those before it."""
        with self._reading(source) as (db, number):
            waits = sa.select(_PICTURES.c.id).where(_PICTURES.c.origin == number, _PICTURES.c.held == AWAITED)
            found = db.execute(waits.where(_PICTURES.c.id > after).order_by(_PICTURES.c.id).limit(_WANTED)).scalars()
            wanted = [[int(one), _size(self._part(number, int(one)))] for one in found]
            return {"beyond": self._cursors(db, number), "wanted": wanted}

    def devices(self) -> list[dict[str, Any]]:
        """Every source, each device's newest first: how long ago it was heard, whether that is too long, and how long
        ago it was heard first, as far as is known."""
        ids = sa.func.max(BEATS.c.id).label("last"), sa.func.min(BEATS.c.id).label("first")
        ends, first = sa.select(BEATS.c.origin, *ids).group_by(BEATS.c.origin).subquery(), BEATS.alias()
        joined = SOURCES.outerjoin(ends, ends.c.origin == SOURCES.c.number)
        for beat, number in ((BEATS, ends.c.last), (first, ends.c.first)):
            joined = joined.outerjoin(beat, (beat.c.origin == ends.c.origin) & (beat.c.id == number))
        with _said(), self._engine.begin() as db:
            shown = first.c.t.label("first_t"), BEATS.c.t, BEATS.c.period_s, BEATS.c.vitals
            rows = db.execute(sa.select(SOURCES, *shown).select_from(joined)).mappings()
            found = [self._device(row) for row in rows]
        return sorted(found, key=lambda one: (one["device"], math.inf if one["age_s"] is None else one["age_s"]))

    def _device(self, row: sa.RowMapping) -> dict[str, Any]:
        age_s = None if row["t"] is None else max(0.0, self._clock() - row["t"])
        return {
            "device": row["device"],
            "series": row["series"],
            "age_s": age_s,
            "since_s": None if row["first_t"] is None else max(0.0, self._clock() - row["first_t"]),
            "stale": age_s is None or age_s > _STALE * row["period_s"],
            "vitals": json.loads(row["vitals"] or "{}"),
        }

    def beats(self, source: Source, count: int) -> list[dict[str, Any]]:
        """The newest heartbeats, newest first."""
        with self._reading(source) as (db, number):
            chosen = sa.select(BEATS).where(BEATS.c.origin == number).order_by(BEATS.c.id.desc())
            rows = db.execute(chosen.limit(min(count, MOST_PAGE))).mappings().all()
        return [{"t": row["t"], "period_s": row["period_s"], "vitals": json.loads(row["vitals"])} for row in rows]

    def frames(self, source: Source, before: int, count: int) -> list[dict[str, Any]]:
        """Frames before an id, newest first, each with its `predictions`, its `labels` and its `picture`."""
        frames = MIRRORS["frames"]
        with self._reading(source) as (db, number):
            chosen = sa.select(frames).where(frames.c.origin == number, frames.c.id < before)
            rows = db.execute(chosen.order_by(frames.c.id.desc()).limit(min(count, MOST_PAGE))).all()
            made = {row.id: {**_plain(row), "predictions": [], "labels": [], "picture": None} for row in rows}
            for name in ("predictions", "labels", "pictures"):
                table = MIRRORS[name]
                mine = sa.select(table).where(table.c.origin == number, table.c.frame.in_(list(made)))
                for row in db.execute(mine.order_by(table.c.id)):
                    if name == "pictures":
                        made[row.frame]["picture"] = _plain(row)
                    else:
                        made[row.frame][name].append(_plain(row))
        return list(made.values())

    def picture(self, source: Source, frame: int) -> Path:
        """The file of a frame's picture; raises `AbsentError` where it is not here."""
        with self._reading(source) as (db, number):
            mine = (_PICTURES.c.origin == number) & (_PICTURES.c.frame == frame) & (_PICTURES.c.held == WHOLE)
            found = db.execute(sa.select(_PICTURES.c.id).where(mine)).scalar_one_or_none()
        if found is None:
            raise AbsentError(f"there is no picture of frame {frame} of {source.device}")
        return self._file(number, found)

    # Below

    @contextlib.contextmanager
    def _changing(self, source: Source) -> Iterator[tuple[sa.Connection, int]]:
        """A transaction that alone changes what is a source's; its number, made where there is none."""
        own = sa.select(SOURCES.c.number).filter_by(device=source.device, series=source.series).with_for_update()
        with _said(), self._engine.execution_options(writes=True).begin() as db:
            number = db.execute(own).scalar_one_or_none()
            if number is None:
                values = {"device": source.device, "series": source.series}
                db.execute(self._insert(SOURCES).values(values).on_conflict_do_nothing())
                number = db.execute(own).scalar_one()
            yield db, int(number)

    @contextlib.contextmanager
    def _reading(self, source: Source) -> Iterator[tuple[sa.Connection, int]]:
        """As `_changing`, for whoever looks; a source that is not there has the number 0, and nothing."""
        own = sa.select(SOURCES.c.number).filter_by(device=source.device, series=source.series)
        with _said(), self._engine.begin() as db:
            yield db, int(db.execute(own).scalar_one_or_none() or 0)

    def _cursors(self, db: sa.Connection, number: int) -> dict[str, int]:
        found = db.execute(sa.select(CURSORS.c.name, CURSORS.c.beyond).where(CURSORS.c.origin == number))
        return dict.fromkeys(records.TABLES, 0) | {name: int(at) for name, at in found}

    def _file(self, number: int, picture: int) -> Path:
        return self._folder / str(number) / f"{picture // 1000:06d}" / f"{picture:09d}.jpg"

    def _part(self, number: int, picture: int) -> Path:
        return self._folder / "incoming" / f"{number}-{picture}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _beat_words(period_s: object, vitals: object) -> str:
    if not isinstance(period_s, int | float) or not 0 < period_s <= _LONGEST_PERIOD_S:
        raise InputError(Problem("period_s", f"must be more than 0 and at most {_LONGEST_PERIOD_S}"))
    try:
        words = json.dumps(vitals, allow_nan=False)
    except ValueError:
        raise InputError(Problem("vitals", "hold a number that is none")) from None
    if not isinstance(vitals, dict) or len(words) > MOST_BEAT_BYTES:
        raise InputError(Problem("vitals", f"must be an object of at most {MOST_BEAT_BYTES} bytes"))
    return words


def _plain(row: Any) -> dict[str, Any]:
    """A row for an app: its lists as lists, without what only the hub knows by."""
    said = {name: value for name, value in row._mapping.items() if name not in ("origin", "file")}
    return said | {name: json.loads(said[name]) for name in _LISTS if said.get(name)}


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """The database's failures in words."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        words = " ".join(str(getattr(error, "orig", None) or error).split())
        raise StorageError(f"the hub's database: {words}\n    → look at it and at its disk") from None


def _engine(url: str) -> sa.Engine:
    try:
        made = sa.create_engine(url, pool_pre_ping=True)
    except ImportError:
        raise MissingExtraError("the database's driver", "serve") from None
    if made.dialect.name == "sqlite":
        sa.event.listen(made, "connect", _prepare)
        sa.event.listen(made, "begin", _begin)
    return made


def _prepare(link: Any, _: object) -> None:
    link.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        link.execute(f"PRAGMA {pragma}")


def _begin(db: sa.Connection) -> None:
    """SQLite has one lock, which who is going to write takes before he reads."""
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("writes") else "BEGIN")
