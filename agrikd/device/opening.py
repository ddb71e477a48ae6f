"""How the writer of records finds them: whole, damaged, half removed, or on a disk that may not be written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from agrikd import records
from agrikd.errors import AgriKDError

_NAME = re.compile(r"\.?(\d+)\.jpg(\..*)?")
"""Of a frame's picture, and while it is written."""


def last_id(folder: Path) -> int | None:
    """Of the records on a disk that may not be written; None where it does not say."""
    if not (folder / records.DATABASE).exists():
        return 0
    with contextlib.suppress(AgriKDError, sqlite3.Error, OSError), contextlib.closing(records.read(folder)) as db:
        return int(db.execute("SELECT COALESCE(MAX(id), 0) FROM frames").fetchone()[0])
    return None


def checked(folder: Path) -> sqlite3.Connection:
    """The records, for the one that writes; raises `sqlite3.DatabaseError` where they are damaged, or gone from beside
    their pictures."""
    db = records.create(folder)
    (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if said == "ok" and not db.execute("SELECT 1 FROM frames LIMIT 1").fetchone() and _pictures(folder)[0]:
        said = "nothing is recorded of the pictures"
    if said != "ok":
        db.close()
        raise sqlite3.DatabaseError(said)
    return db


def set_aside(folder: Path) -> Path:
    """Where damaged records lie from now on, with their pictures."""
    newest = max(map(_number, _aside(folder)), default=0)
    aside = folder / f"damaged-{max(time.time_ns(), newest + 1)}"  # the clock may have gone back
    aside.mkdir()
    with contextlib.suppress(OSError):  # there are none, or a disk of their own is mounted there
        (folder / records.PICTURES).rename(aside / records.PICTURES)
    of_database = sorted(folder.glob(f"{records.DATABASE}*"), reverse=True)
    for path in of_database:  # itself last: cut off before, this is done again
        path.rename(aside / path.name)
    return aside


def prune(folder: Path, free_bytes: int) -> list[str]:
    """Remove what was set aside, but for the newest and for what holds labels. What does not tell whether it does goes
    only where less than `free_bytes` are free. Returns what went, in sentences."""
    said = []
    for aside in _aside(folder)[:-1]:
        labels = _has_labels(aside)
        if labels or (labels is None and shutil.disk_usage(folder).free >= free_bytes):
            continue
        why = "the disk has no room, and nobody can read what it held" if labels is None else "it held no label"
        with contextlib.suppress(OSError):
            shutil.rmtree(aside / records.PICTURES, ignore_errors=True)  # first, so that a half of it tells as much
            shutil.rmtree(aside)
            said.append(f"{aside.name} was removed: {why}")
    return said


def sweep(db: sqlite3.Connection, folder: Path) -> list[str]:
    """Remove pictures of no row, and rows of no picture, of a writer that was killed between the two; says in sentences
    what it left.

    Nothing of a frame with a label goes; nor do most of the pictures, or of the rows: then a disk is not mounted, or
    another one is.
    """
    known = {name: int(frame) for frame, name in db.execute("SELECT frame, file FROM pictures")}
    labelled = {int(frame) for (frame,) in db.execute("SELECT frame FROM labels")}
    there, unread = _pictures(folder)
    stray, lost = there.keys() - known.keys(), known.keys() - there.keys()
    half = {name for name in stray if Path(name).name.startswith(".")}
    going = half | {name for name in stray if there[name] not in labelled}
    if 2 * len(going) > len(there):
        going = half
    for name in going:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    gone = [known[name] for name in lost if known[name] not in labelled]
    if unread or 2 * len(lost) > len(known):
        gone = []
    if gone:
        with records.transaction(db):
            records.drop_pictures(db, gone)
    return list(_left(folder / records.PICTURES, len(stray) - len(going), (len(lost) - len(gone), len(known)), unread))


def _left(place: Path, strays: int, lost: tuple[int, int], unread: list[OSError]) -> Iterator[str]:
    if strays:
        yield f"{strays} pictures in {place} are of no record: they stay"
    if lost[0]:
        why = f" ({unread[0]})" if unread else ""
        yield f"{lost[0]} of {lost[1]} kept pictures are not in {place}{why}: is their disk mounted? Their rows stay"


def _pictures(folder: Path) -> tuple[dict[str, int], list[OSError]]:
    """The frames of the pictures that are there, by their names in the records, and why others cannot be seen."""
    found, unread = dict[str, int](), list[OSError]()
    for at, _, names in os.walk(folder / records.PICTURES, onerror=unread.append):
        for name in names:
            if made := _NAME.fullmatch(name):
                found[(Path(at) / name).relative_to(folder).as_posix()] = int(made[1])
    return found, unread


def _aside(folder: Path) -> list[Path]:
    """What was set aside, the newest last."""
    return sorted((path for path in folder.glob("damaged-*") if path.name.partition("-")[2].isdecimal()), key=_number)


def _number(aside: Path) -> int:
    return int(aside.name.partition("-")[2])


def _has_labels(aside: Path) -> bool | None:
    """None where records that were set aside do not tell."""
    try:
        with contextlib.closing(records.read(aside)) as db:
            return db.execute("SELECT 1 FROM labels NOT INDEXED LIMIT 1").fetchone() is not None
    except (AgriKDError, sqlite3.Error, OSError):
        return None
