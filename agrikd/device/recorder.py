"""The one writer of the records: whoever has something to record hands it over and goes on at once.

A thread commits what has come since its last commit in one transaction, so a slow disk makes larger commits and not a
slower camera. A full, read-only or failing disk makes it wait with what it has, within bounds; what waited longest may
then be dropped, and that is counted. A label, in contrast, is waited for: it is on the disk, or refused.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agrikd import console, files, records
from agrikd.device import opening
from agrikd.errors import AgriKDError, StorageError
from agrikd.records import Label, Opinion, Seen
from agrikd.types import ModelSpec

_AGAIN_S, _CHECK_S, _PATIENCE_S = 1.0, 10.0, 10.0
_WAITING, _WAITING_BYTES = 20_000, 64 * 2**20
"""What may wait for a disk: eleven minutes of 30 frames a second, and some thousand pictures."""
_CLOCK_JUMP_S = 2.0
_NEEDED_BYTES = 2 * 2**20
"""For the database to go on with, where the disk is full."""
_AT_ONCE = 500
_ROUNDS, _DROPPED_AT_ONCE, _FOLD_AGAIN_S = 10, 20, 60.0
"""Room is made in small steps, as labels wait meanwhile."""
_MEASURED = 10_000

Write = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True)
class Bounds:
    """quota_bytes: of kept pictures; the oldest that nobody has labelled go first, the labelled never. free_bytes: left
    to the disk's others, in the same way. rows: of frames; the oldest that are neither kept nor labelled become daily
    counts."""

    quota_bytes: int = 4 * 10**9
    free_bytes: int = 200 * 10**6
    rows: int = 5_000_000


@dataclass(frozen=True)
class _Entry:
    write: Write
    picture: tuple[str, bytes] | None = None
    done: Future[Any] | None = None
    seen_t: float | None = None

    @property
    def size(self) -> int:
        return len(self.picture[1]) if self.picture else 0


class Recorder:
    """Writes the records in `folder`, as soon as its disk lets it; `stop` commits what is still waiting,
    unless the disk takes long."""

    def __init__(self, folder: Path, bounds: Bounds = Bounds()) -> None:
        self.folder, self._bounds = folder, bounds
        self._waiting: deque[_Entry] = deque()
        self._waiting_bytes = self._in_hand = 0
        self._taken_ms: deque[float] = deque(maxlen=_MEASURED)
        self._changed = threading.Condition()
        self._stopping = False
        self.dropped, self.trouble = 0, ""
        self._clock = time.time() - time.monotonic()
        self._check_at = self._fold_at = 0.0
        self._db: sqlite3.Connection | None = None
        self._inode = self._rows = self._kept_bytes = 0
        self._last_id: int | None = None
        if (folder / records.DATABASE).exists():
            self._last_id = opening.last_id(folder)
        if self._last_id is None:
            self._open()
        # else the thread does: large records take a minute to look through, for which frames wait and no start does
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is handed over is still written."""
        return self._thread.is_alive()

    # What may be handed over

    def frame(
        self, new: Seen, said: tuple[Opinion, ModelSpec] | None, kept: tuple[str, bytes] | None = None, ask: str = ""
    ) -> Seen:
        """The same with its id: ids are given in the order in which frames are written, or who reads beyond one would
        miss another. said: the answer, and the model it is of. kept: why the picture is, and its JPEG. ask: why the
        teacher should be asked, where it should."""
        with self._changed:
            if self._last_id is None:  # the disk has not said yet where the ids go on
                self.dropped += 1
                return replace(new, id=int(1000 * new.t))
            self._last_id += 1
            seen = replace(new, id=self._last_id)

            def write(db: sqlite3.Connection) -> None:
                records.add_frame(db, seen)
                if said:
                    records.add_model(db, said[0].model, said[0].role, said[1])
                    records.add_opinion(db, seen.id, said[0])
                if ask:
                    records.add_ask(db, seen.id, ask, seen.t)

            self._put(_Entry(write, seen_t=seen.t))
            if kept:
                self.picture(seen, *kept)
        return seen

    def picture(self, seen: Seen, why: str, jpeg: bytes) -> None:
        """Keep a frame's picture; why: as "doubt" or "audit"."""
        name = f"{records.PICTURES}/{seen.local[:10]}/{seen.id:09d}.jpg"
        held = name, len(jpeg), files.sha256(jpeg)
        self._put(_Entry(lambda db: records.add_picture(db, seen.id, why, held), (name, jpeg)))

    def event(self, key: str, value: str) -> None:
        now = time.time()
        self._put(_Entry(lambda db: records.add_event(db, now, key, value)))

    def ask(self, frame: int, why: str) -> None:
        now = time.time()
        self._put(_Entry(lambda db: records.add_ask(db, frame, why, now)))

    def forget(self, frame: int, why: str) -> None:
        """Ask the teacher no more about a frame."""
        now = time.time()

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM asks WHERE frame = ?", (frame,))
            records.add_event(db, now, "teacher", f"frame {frame}: {why}")

        self._now(write)

    def label(self, label: Label) -> int:
        """The id of the label, which is on the disk. Raises `InputError` or `StorageError`, which says whether it may
        still be written."""
        return int(self._now(lambda db: records.add_label(db, label)))

    def opinion(self, frame: int, said: Opinion, spec: ModelSpec) -> None:
        """A teacher's answer, on the disk when this returns; raises as `label` does."""

        def write(db: sqlite3.Connection) -> None:
            records.add_model(db, said.model, said.role, spec)
            records.add_opinion(db, frame, said)

        self._now(write)

    def health(self) -> dict[str, Any]:
        """waiting: entries that the disk has not taken. dropped: those that it never got. kept_bytes: of pictures.
        p50_ms, p99_ms: from a frame's arrival to the disk, over the last 10,000."""
        taken_ms = sorted(self._taken_ms)
        return {
            "p50_ms": round(taken_ms[len(taken_ms) // 2], 1) if taken_ms else None,
            "p99_ms": round(taken_ms[99 * len(taken_ms) // 100], 1) if taken_ms else None,
            "waiting": len(self._waiting) + self._in_hand,
            "dropped": self.dropped,
            "trouble": self.trouble,
            "kept_bytes": self._kept_bytes,
            "rows": self._rows,
        }

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            console.say(f"{self.folder}: {len(self._waiting)} entries are lost: the disk takes too long")
        elif self._db:
            self._db.close()

    def _now(self, write: Write) -> Any:
        done: Future[Any] = Future()
        self._put(_Entry(write, done=done))
        try:
            return done.result(_PATIENCE_S)
        except LateError:
            if done.cancel():
                raise StorageError(f"{self.folder}: the disk is busy; it is not recorded\n    → try again") from None
        try:
            return done.result(_PATIENCE_S)
        except LateError:
            said = f"{self.folder}: the disk takes very long; it may be recorded"
            raise StorageError(f"{said}\n    → look, and try again") from None

    def _put(self, entry: _Entry) -> None:
        with self._changed:
            self._waiting.append(entry)
            self._waiting_bytes += entry.size
            while len(self._waiting) > _WAITING or self._waiting_bytes > _WAITING_BYTES:
                gone = self._waiting.popleft()
                self._waiting_bytes -= gone.size
                self._drop(gone, "it waited too long")
            self._changed.notify()

    def _drop(self, entry: _Entry, why: str) -> None:
        if entry.done is None:
            self.dropped += 1
        elif not entry.done.done():
            entry.done.set_exception(StorageError(f"{self.folder}: it is not recorded ({why})\n    → try again"))

    # The thread

    def _run(self) -> None:
        self._open()
        while (batch := self._next_batch()) is not None:
            wait_s = 0.0
            try:
                self._commit(batch)
            except (sqlite3.OperationalError, AgriKDError, OSError) as error:
                self._say(str(error))
                self._keep_for_later(batch, str(error))
                wait_s = _AGAIN_S
            except Exception as error:  # whatever it is, frames go on coming
                self._say(f"{type(error).__name__}: {error}")
                self._close()
                self._keep_for_later(batch, str(error))
                wait_s = _AGAIN_S
            else:
                self._say("")
            self._in_hand = 0
            self._make_room(full=bool(wait_s))
            if wait_s:
                with self._changed:
                    if self._stopping:
                        return
                    self._changed.wait_for(lambda: self._stopping, timeout=wait_s)

    def _next_batch(self) -> list[_Entry] | None:
        """What is waiting, perhaps nothing; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping, timeout=_CHECK_S)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
            self._waiting_bytes -= sum(one.size for one in batch)
            self._in_hand = len(batch)
            return None if self._stopping and not batch else batch

    def _commit(self, batch: list[_Entry]) -> None:
        """Each entry by itself, all of them in one transaction."""
        batch[:] = [one for one in batch if one.done is None or one.done.set_running_or_notify_cancel()]
        answers: list[tuple[_Entry, Any]] = []
        with files.storage_errors(self.folder):
            db = self._opened()
            for one in batch:
                if one.picture:
                    files.write_bytes(self.folder / one.picture[0], one.picture[1])
            clock = time.time() - time.monotonic()
            with records.transaction(db):
                if abs(clock - self._clock) > _CLOCK_JUMP_S:  # as when a board without a battery finds a network
                    records.add_event(db, time.time(), "clock", f"{clock - self._clock:+.1f} s")
                answers += [(one, _alone(one.write, db)) for one in batch]
        if abs(clock - self._clock) > _CLOCK_JUMP_S:
            self._clock = clock
        for one, answer in answers:
            self._tell(one, answer)

    def _tell(self, one: _Entry, answer: Any) -> None:
        """What became of an entry of a transaction that is on the disk."""
        if isinstance(answer, Exception):
            if one.done and isinstance(answer, AgriKDError):
                one.done.set_exception(answer)
            else:
                console.say(f"records: {type(answer).__name__}: {answer}")
                self._drop(one, str(answer))
            return
        if one.done:
            one.done.set_result(answer)
        if one.seen_t is not None:
            self._rows += 1
            self._taken_ms.append(1000 * (time.time() - one.seen_t))
        self._kept_bytes += one.size

    def _keep_for_later(self, batch: list[_Entry], why: str) -> None:
        with self._changed:
            for one in reversed(batch):
                if one.done is None:
                    self._waiting.appendleft(one)
                    self._waiting_bytes += one.size
                else:
                    self._drop(one, why)

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            console.say(f"records: {trouble or 'the disk takes them again'}")
            self.trouble = trouble

    # Room

    def _make_room(self, full: bool) -> None:
        """Within the bounds, and where the disk has just refused; what it refuses here is tried with the next batch."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error, OSError):
            for _ in range(_ROUNDS):
                if not self._too_much(full) or not self._drop_oldest(self._db):
                    break
            if self._rows > self._bounds.rows and time.monotonic() >= self._fold_at:
                wanted = min(_AT_ONCE, self._rows - self._bounds.rows + self._bounds.rows // 100)
                with records.transaction(self._db):
                    gone = records.fold(self._db, wanted)
                self._rows -= gone
                self._fold_at = time.monotonic() + _FOLD_AGAIN_S * (gone < wanted)

    def _too_much(self, full: bool) -> bool:
        if self._kept_bytes > self._bounds.quota_bytes:
            return True
        if not full and time.monotonic() < self._check_at:
            return False
        free = shutil.disk_usage(self.folder).free
        if free >= self._bounds.free_bytes:
            self._check_at = time.monotonic() + _CHECK_S
        return free < max(self._bounds.free_bytes, _NEEDED_BYTES if full else 0)

    def _drop_oldest(self, db: sqlite3.Connection) -> bool:
        """The files first: a full disk has no room to write that they are gone."""
        gone = records.oldest_unlabelled(db, _DROPPED_AT_ONCE)
        for _, name, _ in gone:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        with records.transaction(db):
            records.drop_pictures(db, [frame for frame, *_ in gone])
        self._kept_bytes = max(0, self._kept_bytes - sum(size for *_, size in gone)) if gone else _sum_of_pictures(db)
        return bool(gone)

    # Opening

    def _open(self) -> None:
        try:
            self._opened()
        except (AgriKDError, sqlite3.Error, OSError) as error:
            self._say(str(error))
            if self._last_id is None:
                self._last_id = opening.last_id(self.folder)

    def _opened(self) -> sqlite3.Connection:
        """The database. One that is no longer where it was is opened anew, one that the disk has damaged is set aside:
        the frames that come matter more."""
        path = self.folder / records.DATABASE
        if self._db is not None and (not path.exists() or path.stat().st_ino != self._inode):
            self._close()
        if self._db is None:
            try:
                db = opening.checked(self.folder)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._note(f"the records were damaged ({error}); they lie in {opening.set_aside(self.folder)}")
                db = records.create(self.folder)
            self._rows = int(db.execute("SELECT COUNT(*) FROM frames").fetchone()[0])
            self._kept_bytes = _sum_of_pictures(db)
            known = int(db.execute("SELECT COALESCE(MAX(id), 0) FROM frames").fetchone()[0])
            with self._changed:
                self._last_id = max(known, self._last_id or 0)
            self._db, self._inode = db, path.stat().st_ino  # before the disk is written: on a full one room is made
            for what in (*opening.sweep(db, self.folder), *opening.prune(self.folder, self._bounds.free_bytes)):
                self._note(what)
        return self._db

    def _note(self, what: str) -> None:
        """Of the records themselves; an event waits until the disk takes it."""
        console.say(f"{self.folder}: {what}")
        self.event("records", what)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()


def _alone(write: Write, db: sqlite3.Connection) -> Any:
    """What a write returns, or why it may not be, which is its own affair; raises where the disk refuses."""
    db.execute("SAVEPOINT alone")
    try:
        answer = write(db)
    except (sqlite3.OperationalError, OSError):
        raise
    except Exception as error:
        db.execute("ROLLBACK TO alone")
        answer = error
    db.execute("RELEASE alone")
    return answer


def _sum_of_pictures(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM pictures").fetchone()[0])
