"""The hub's tables, which are those of the records with a source beside each id, and what may be a row of them."""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
from dataclasses import dataclass
from typing import Any

from agrikd import records
from agrikd.errors import InputError, MissingExtraError, Problem
from agrikd.wire import MAX_BYTES

try:
    import sqlalchemy as sa
except ImportError:
    raise MissingExtraError("sqlalchemy", "serve") from None

MOST_ROWS, MOST_TEXT = 1000, 2**16
"""Of a batch, and of a text in characters."""
AWAITED, WHOLE, GONE = "", "whole", "gone"
"""What is held of a picture."""
_MOST_INT = 2**63 - 1
_KINDS: dict[str, tuple[type, type[sa.types.TypeEngine[Any]]]] = {
    "INTEGER": (int, sa.BigInteger),
    "REAL": (float, sa.Double),
    "TEXT": (str, sa.Text),
}


@dataclass(frozen=True)
class _Column:
    kind: str
    required: bool


def _columns() -> dict[str, dict[str, _Column]]:
    """What the records' own tables have."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(records.LAYOUT)
        return {
            table: {
                name: _Column(kind, bool(required or key))
                for _, name, kind, required, _, key in db.execute(f"PRAGMA table_info({table})")
            }
            for table in records.TABLES
        }


COLUMNS = _columns()
METADATA = sa.MetaData()
ABOUT = sa.Table(
    "about", METADATA, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
SOURCES = sa.Table(
    "sources",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("series", sa.Text, nullable=False),
    sa.UniqueConstraint("device", "series"),
)


def _of_source(name: str, *columns: sa.Column[Any] | sa.Index) -> sa.Table:
    """A table whose rows belong to a source."""
    origin = sa.Column("origin", sa.Integer, sa.ForeignKey(SOURCES.c.number), primary_key=True)
    return sa.Table(name, METADATA, origin, *columns)


def _mirror(table: str) -> sa.Table:
    columns: list[sa.Column[Any] | sa.Index] = [
        sa.Column(name, _KINDS[one.kind][1](), primary_key=name == "id", nullable=not one.required, autoincrement=False)
        for name, one in COLUMNS[table].items()
    ]
    if table == "pictures":
        columns += [sa.Column("held", sa.Text, nullable=False, server_default=AWAITED)]
        columns += [sa.Index("pictures_held", "origin", "held", "id")]
    if "frame" in COLUMNS[table]:
        columns += [sa.Index(f"{table}_of_frame", "origin", "frame")]
    return _of_source(table, *columns)


MIRRORS = {table: _mirror(table) for table in records.TABLES}
CURSORS = _of_source(
    "cursors", sa.Column("name", sa.Text, primary_key=True), sa.Column("beyond", sa.BigInteger, nullable=False)
)
BEATS = _of_source(
    "heartbeats",
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("t", sa.Double, nullable=False),
    sa.Column("period_s", sa.Double, nullable=False),
    sa.Column("vitals", sa.Text, nullable=False),
)


def check(table: str, after: object, rows: object) -> tuple[int, list[dict[str, Any]]]:
    """An id, and the rows beyond it of one of the records' tables, as they may be stored.

    Raises `InputError` with all that is wrong with them.
    """
    if table not in COLUMNS:
        raise InputError(Problem(repr(table[:80]), "is no table of records", f"one of {', '.join(COLUMNS)}"))
    if not isinstance(rows, list) or len(rows) > MOST_ROWS:
        raise InputError(Problem(table, f"must be a list of at most {MOST_ROWS} rows", "send fewer at once"))
    begin = after if isinstance(after, int) and _is(after, int) and after >= 0 else None
    problems = [Problem("after", "must be an id, or 0")] if begin is None else []
    last = begin or 0
    for place, row in enumerate(rows):
        where = f"{table}[{place}]"
        if not isinstance(row, dict):
            problems.append(Problem(where, "is no row"))
            continue
        wrong = {repr(name[:80]): "is not known here" for name in row if name not in COLUMNS[table]}
        wrong |= {name: words for name, one in COLUMNS[table].items() if (words := _wrong(row.get(name), one))}
        if "id" not in wrong and row["id"] <= last:
            wrong["id"] = f"is {row['id']}, which is not beyond {last}"
        if table == "pictures" and not wrong:
            wrong = _wrong_picture(row)
        problems += [Problem(f"{where}.{name}", words) for name, words in wrong.items()]
        last = row["id"] if "id" not in wrong else last
    if problems or begin is None:
        raise InputError(problems)
    return begin, [{name: row.get(name) for name in COLUMNS[table]} for row in rows]


def _wrong(value: object, column: _Column) -> str:
    if value is None:
        return "is missing" if column.required else ""
    if not _is(value, _KINDS[column.kind][0]):
        return f"is no {column.kind} that a database holds"
    if isinstance(value, str) and (len(value) > MOST_TEXT or "\0" in value or not _is_unicode(value)):
        return f"must be text of at most {MOST_TEXT} characters, none of them a zero or half of one"
    return ""


def _wrong_picture(row: dict[str, Any]) -> dict[str, str]:
    wrong = {}
    if not 0 < row["size_bytes"] <= MAX_BYTES:
        wrong["size_bytes"] = f"must be 1 to {MAX_BYTES}"
    if not re.fullmatch(r"[0-9a-f]{64}", row["sha256"]):
        wrong["sha256"] = "must be 64 hex digits"
    return wrong


def _is(value: object, kind: type) -> bool:
    if type(value) is not kind:
        return False
    if isinstance(value, int):
        return abs(value) <= _MOST_INT
    return not isinstance(value, float) or math.isfinite(value)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False
