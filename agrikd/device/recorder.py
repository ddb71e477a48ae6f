"""The one writer of the records: whoever has something to record hands it over and goes on at once.

A thread commits what has come since its last commit in one transaction, so a slow disk makes larger commits and not a
slower camera. A full, read-only or failing disk makes it wait with what it has, within bounds; what nobody was told is
recorded may then be dropped, and that is counted. A label, in contrast, is waited for: it is on the disk, or refused.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agrikd import console, files, records
from agrikd.errors import AgriKDError, StorageError
from agrikd.records import Label, Opinion, Role, Seen
from agrikd.types import ModelSpec

_AGAIN_S, _CHECK_S, _PATIENCE_S = 1.0, 10.0, 10.0
_WAITING, _WAITING_BYTES = 20_000, 64 * 2**20
"""What may wait for a disk: eleven minutes of 30 frames a second, and some thousand pictures."""
_CLOCK_JUMP_S = 2.0
_AT_ONCE = 500
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
    """Writes the records in `folder`, as soon as its disk lets it; `stop` commits what is still waiting."""

    def __init__(self, folder: Path, bounds: Bounds = Bounds()) -> None:
        self.folder, self._bounds = folder, bounds
        self._waiting: deque[_Entry] = deque()
        self._waiting_bytes = self._in_hand = 0
        self._taken_ms: deque[float] = deque(maxlen=_MEASURED)
        self._changed = threading.Condition()
        self._stopping = False
        self.dropped, self.trouble = 0, ""
        self._clock = time.time() - time.monotonic()
        self._check_at = 0.0
        self._db: sqlite3.Connection | None = None
        self._rows = self._kept_bytes = 0
        self._last_id = int(1000 * time.time())  # beyond any that a disk knows that does not answer
        with contextlib.suppress(StorageError):
            self._last_id = int(self._opened().execute("SELECT COALESCE(MAX(id), 0) FROM frames").fetchone()[0])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # What may be handed over

    def model(self, name: str, role: Role, spec: ModelSpec) -> None:
        self._put(_Entry(lambda db: records.add_model(db, name, role, spec)))

    def frame(self, new: Seen, said: Opinion | None, kept: tuple[str, bytes] | None = None, ask: str = "") -> Seen:
        """The same with its id: ids are given in the order in which frames are written, or who reads beyond one would
        miss another. kept: why the picture is, and its JPEG. ask: why the teacher should be asked, where it should."""
        with self._changed:
            self._last_id += 1
            seen = replace(new, id=self._last_id)

            def write(db: sqlite3.Connection) -> None:
                records.add_frame(db, seen)
                if said:
                    records.add_opinion(db, seen.id, said)
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
        """The id of the label, which is on the disk. Raises `InputError` or `StorageError`: then it is not recorded."""
        return int(self._now(lambda db: records.add_label(db, label)))

    def opinion(self, frame: int, said: Opinion, spec: ModelSpec) -> None:
        """A teacher's answer, on the disk when this returns."""

        def write(db: sqlite3.Connection) -> None:
            records.add_model(db, said.model, said.role, spec)
            records.add_opinion(db, frame, said)

        self._now(write)

    def health(self) -> dict[str, Any]:
        """waiting: entries that the disk has not taken. dropped: frames that it never got. kept_bytes: of pictures.
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
        if self._db and not self._thread.is_alive():
            self._db.close()

    def _now(self, write: Write) -> Any:
        done: Future[Any] = Future()
        self._put(_Entry(write, done=done))
        try:
            return done.result(_PATIENCE_S)
        except TimeoutError:
            raise StorageError(f"{self.folder}: the disk takes too long\n    → try again") from None

    def _put(self, entry: _Entry) -> None:
        with self._changed:
            self._waiting.append(entry)
            self._waiting_bytes += entry.size
            while len(self._waiting) > _WAITING or self._waiting_bytes > _WAITING_BYTES:
                gone = self._waiting.popleft()
                self._waiting_bytes -= gone.size
                self.dropped += 1
            self._changed.notify()

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping, timeout=_CHECK_S)
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                self._waiting_bytes -= sum(one.size for one in batch)
                self._in_hand = len(batch)
                if not batch and self._stopping:
                    return
            taken = self._commit(batch)
            self._in_hand = 0
            if not taken:
                with self._changed:
                    if self._stopping:
                        return
                    self._changed.wait_for(lambda: self._stopping, timeout=_AGAIN_S)

    def _commit(self, batch: list[_Entry]) -> bool:
        """Whether the disk took it; what it did not take waits again, but for what somebody waits for."""
        try:
            with files.storage_errors(self.folder):
                db = self._opened()
                self._write(db, batch)
                self._make_room(db)
        except (sqlite3.IntegrityError, ValueError) as error:  # waiting would not help
            self._say(str(error))
            self.dropped += len(batch)
            self._refuse([one for one in batch if one.done], str(error))
            return True
        except (sqlite3.Error, StorageError, OSError) as error:
            self._say(str(error))
            self._refuse(batch, str(error))
            return False
        self._say("")
        return True

    def _write(self, db: sqlite3.Connection, batch: list[_Entry]) -> None:
        for one in batch:
            if one.picture:
                files.write_bytes(self.folder / one.picture[0], one.picture[1])
        answers: list[tuple[Future[Any], Any]] = []
        with records.transaction(db):
            self._note_clock(db)
            for one in batch:
                if one.done is None:
                    one.write(db)
                else:
                    answers.append((one.done, _answer(one.write, db)))
        taken_ms = [1000 * (time.time() - one.seen_t) for one in batch if one.seen_t is not None]
        self._rows += len(taken_ms)
        self._taken_ms.extend(taken_ms)
        self._kept_bytes += sum(one.size for one in batch)
        for done, answer in answers:
            if isinstance(answer, AgriKDError):
                done.set_exception(answer)
            else:
                done.set_result(answer)

    def _refuse(self, batch: list[_Entry], why: str) -> None:
        with self._changed:
            for one in reversed(batch):
                if one.done is None:
                    self._waiting.appendleft(one)
                    self._waiting_bytes += one.size
                else:
                    one.done.set_exception(StorageError(f"{self.folder}: it is not recorded ({why})\n    → try again"))

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            console.say(f"records: {trouble or 'the disk takes them again'}")
            self.trouble = trouble

    def _note_clock(self, db: sqlite3.Connection) -> None:
        """A row where the wall clock jumps, as when a board without a battery finds a network."""
        offset = time.time() - time.monotonic()
        if abs(offset - self._clock) > _CLOCK_JUMP_S:
            records.add_event(db, time.time(), "clock", f"{offset - self._clock:+.1f} s")
            self._clock = offset

    # Room

    def _make_room(self, db: sqlite3.Connection) -> None:
        if self._rows > self._bounds.rows:
            with records.transaction(db):
                self._rows -= records.fold(db, self._rows - self._bounds.rows + self._bounds.rows // 100)
        if self._kept_bytes > self._bounds.quota_bytes:
            self._kept_bytes = _sum_of_pictures(db)
        while self._kept_bytes > self._bounds.quota_bytes and self._drop_oldest(db):
            pass
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _CHECK_S
            while shutil.disk_usage(self.folder).free < self._bounds.free_bytes and self._drop_oldest(db):
                pass

    def _drop_oldest(self, db: sqlite3.Connection) -> bool:
        gone = records.oldest_unlabelled(db, 20)
        with records.transaction(db):
            records.drop_pictures(db, [frame for frame, _ in gone])
        for _, name in gone:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        self._kept_bytes = _sum_of_pictures(db)
        return bool(gone)

    # Opening

    def _opened(self) -> sqlite3.Connection:
        """The database; one that the disk has damaged is set aside, for the frames that come matter more."""
        if self._db is None:
            with files.storage_errors(self.folder):
                try:
                    self._db = _checked(self.folder)
                except sqlite3.OperationalError as error:
                    raise StorageError(f"{self.folder}: {error}\n    → look at the disk") from None
                except sqlite3.DatabaseError as error:
                    console.say(f"{self.folder}: the records were damaged ({error}); they lie in {_aside(self.folder)}")
                    self._db = _checked(self.folder)
                self._rows = int(self._db.execute("SELECT COUNT(*) FROM frames").fetchone()[0])
                self._kept_bytes = _sum_of_pictures(self._db)
                _sweep(self._db, self.folder)
        return self._db


def _answer(write: Write, db: sqlite3.Connection) -> Any:
    """What a write returns, or why it may not be; that is its own affair and not the batch's."""
    try:
        return write(db)
    except AgriKDError as error:
        return error


def _sum_of_pictures(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM pictures").fetchone()[0])


def _checked(folder: Path) -> sqlite3.Connection:
    db = records.create(folder)
    (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        db.close()
        raise sqlite3.DatabaseError(said)
    return db


def _aside(folder: Path) -> Path:
    aside = folder / f"damaged-{time.time_ns()}"
    aside.mkdir()
    for path in (*folder.glob(f"{records.DATABASE}*"), *folder.glob(records.PICTURES)):
        path.rename(aside / path.name)
    return aside


def _sweep(db: sqlite3.Connection, folder: Path) -> None:
    """Remove pictures of no row: of a writer that was killed between the two."""
    known = {name for (name,) in db.execute("SELECT file FROM pictures")}
    for path in (folder / records.PICTURES).rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in known:
            with contextlib.suppress(OSError):
                path.unlink()
