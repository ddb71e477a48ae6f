"""How the writer of records finds them: whole, damaged, half removed, or on a disk that may not be written."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from agrikd import records
from agrikd.errors import AgriKDError


def last_id(folder: Path) -> int | None:
    """Of the records on a disk that may not be written; None where it does not say."""
    if not (folder / records.DATABASE).exists():
        return 0
    with contextlib.suppress(AgriKDError, sqlite3.Error, OSError), contextlib.closing(records.read(folder)) as db:
        return int(db.execute("SELECT COALESCE(MAX(id), 0) FROM frames").fetchone()[0])
    return None


def checked(folder: Path) -> sqlite3.Connection:
    """The records, for the one that writes; raises `sqlite3.DatabaseError` where they are damaged."""
    db = records.create(folder)
    (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        db.close()
        raise sqlite3.DatabaseError(said)
    return db


def set_aside(folder: Path) -> Path:
    """Where damaged records lie from now on, with their pictures."""
    aside = folder / f"damaged-{time.time_ns()}"
    aside.mkdir()
    for path in (*folder.glob(f"{records.DATABASE}*"), *folder.glob(records.PICTURES)):
        path.rename(aside / path.name)
    return aside


def sweep(db: sqlite3.Connection, folder: Path) -> None:
    """Remove pictures of no row, and rows of no picture: of a writer that was killed between the two."""
    known = {name: frame for frame, name in db.execute("SELECT frame, file FROM pictures")}
    there = {path.relative_to(folder).as_posix(): path for path in (folder / records.PICTURES).rglob("*.jpg")}
    for name in there.keys() - known.keys():
        with contextlib.suppress(OSError):
            there[name].unlink()
    if lost := [known[name] for name in known.keys() - there.keys()]:
        with records.transaction(db):
            records.drop_pictures(db, lost)
