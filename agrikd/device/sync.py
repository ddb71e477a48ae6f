"""Sends what is recorded to a hub: python -m agrikd.device.sync, told by JSON on stdin.

It keeps nothing: the hub says how far it is, and that is where this goes on, after any cut of the link or of itself.
Rows go in batches and pictures in pieces that grow while the link is quick. A heartbeat goes before them, and is never
kept for later.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agrikd import console, files, records
from agrikd.device import vitals
from agrikd.device.post import AgentLink, Answer, AwayError, Patience, Server, started
from agrikd.errors import AgriKDError, DeviceError, InputError

NO_SERIES = "0" * 32
"""Of heartbeats from a device whose records cannot be read."""
_PIECE = "a piece of a picture"
_IDLE_S, _AGENT_S = 1.0, 5.0
_QUICK_S, _SLOW_S = 0.5, 2.0
_REFUSED, _FULL = (413, 422), 507


@dataclass(frozen=True)
class Options:
    """records: their folder. url: of agrikd serve. device: its name there. token_file, ca, bytes_per_s: see
    `post.Server`. heartbeat_s: between two. socket: the agent's, which says how it is."""

    records: str
    url: str
    device: str
    token_file: str
    socket: str = ""
    heartbeat_s: float = 60.0
    bytes_per_s: float | None = None
    ca: str = ""


class Pace:
    """How much goes at once: twice as much after what was quick, half of it after what was slow or lost."""

    def __init__(self, begin: int, least: int, most: int) -> None:
        self.size, self._least, self._most = begin, least, most

    def took(self, seconds: float) -> None:
        if seconds < _QUICK_S:
            self.size = min(2 * self.size, self._most)
        elif seconds > _SLOW_S:
            self.less()

    def less(self) -> bool:
        """Whether there is less to be had."""
        before, self.size = self.size, max(self.size // 2, self._least)
        return self.size < before


class Sync:
    """One device's way to one hub."""

    def __init__(self, options: Options) -> None:
        self._options, self._folder = options, Path(options.records)
        self._server = Server(options.url, options.token_file, options.ca, options.bytes_per_s)
        self._agent = AgentLink(options.socket, _AGENT_S) if options.socket else None
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._series = NO_SERIES
        self._beyond: dict[str, int] | None = None
        self._wanted: deque[int] = deque()
        self._held: dict[int, int] = {}
        self._absent: set[int] = set()
        self._more = False
        self._picture: tuple[int, bytes] | None = None
        self._rows = {table: Pace(16, 1, 500) for table in records.TABLES}
        self._bytes = Pace(16 * 2**10, 2**10, 256 * 2**10)
        self._refused: dict[str, str] = {}
        self._beat_at, self._trouble = 0.0, ""

    def run(self) -> None:
        """Until a signal ends it."""
        patience = Patience()
        while True:
            try:
                sent = self.round()
                patience.worked()
                self._say(self._lacks())
                time.sleep(0 if sent else _IDLE_S)
            except (AgriKDError, OSError, sqlite3.Error) as error:
                self._say(str(error))
                self._picture = self._beyond = None  # the next try begins with asking how far the hub is
                time.sleep(patience.failed(error))

    def round(self) -> bool:
        """A heartbeat if it is due, a batch of each table, a piece of a picture; whether there was anything to send."""
        try:
            self._open()
        except (AgriKDError, OSError, sqlite3.Error) as error:
            self._close()
            self._say(str(error))
            self._beat()
            raise
        sent = False
        for table in records.TABLES:
            self._beat()
            sent |= self._send_rows(table)
        return self._send_piece() or sent

    def _lacks(self) -> str:
        """What does not get there though the link is good, in words."""
        lost = [f"{len(self._absent)} pictures that the hub waits for are not on the disk"] if self._absent else []
        return "; ".join([*self._refused.values(), *lost])

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            console.say(f"sync: {trouble or 'goes on'}")
            self._trouble = trouble

    # What there is

    def _open(self) -> sqlite3.Connection:
        """The records as they lie there now: a damaged database is set aside, and another one begins in its place."""
        found = (self._folder / records.DATABASE).stat()
        if self._db is None or self._file != (found.st_dev, found.st_ino):
            self._close()
            self._db, self._file = records.read(self._folder), (found.st_dev, found.st_ino)
            self._series = records.meta(self._db, "series")
        return self._db

    def _close(self) -> None:
        if self._db:
            self._db.close()
        self._db, self._beyond, self._series = None, None, NO_SERIES
        self._absent.clear()

    def _jpeg(self, picture: int) -> bytes | None:
        """A kept picture, whole; None where it is gone. Raises `FileNotFoundError` where the records have it still: its
        disk may come back."""
        assert self._db is not None
        if self._picture and self._picture[0] == picture:
            return self._picture[1]
        row = self._db.execute("SELECT file, sha256 FROM pictures WHERE id = ?", (picture,)).fetchone()
        if row is None:
            return None
        data = (self._folder / str(row["file"])).read_bytes()
        if files.sha256(data) != row["sha256"]:
            return None
        self._picture = picture, data
        return data

    # What is said

    def _call(self, method: str, what: str, body: bytes | dict[str, Any] = b"") -> Answer:
        path = f"/hub/{quote(self._options.device, safe='')}/{self._series}{what}"
        return self._server.call(method, path, body)

    def _beat(self) -> None:
        """If one is due; the answer says how far the hub is, so one is due too where that is not known."""
        if self._beyond is not None and time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + self._options.heartbeat_s
        self._look_for_absent()
        trouble = self._lacks() or self._trouble or None
        said = {**vitals.read(self._folder), "agent": self._health(), "sync": trouble}
        self._refused.clear()
        self._follow(self._call("POST", "/heartbeat", {"period_s": self._options.heartbeat_s, "vitals": said}))

    def _health(self) -> dict[str, Any] | None:
        with contextlib.suppress(DeviceError):
            return self._agent.ask(health=True) if self._agent else None
        return None

    def _look_for_absent(self) -> None:
        """When one of them is back, or is no longer in the records, all are asked for again."""
        if self._db and self._absent:
            file_of = dict(map(tuple, self._db.execute("SELECT id, file FROM pictures")))
            if any(one not in file_of or (self._folder / file_of[one]).exists() for one in self._absent):
                self._absent.clear()

    def _follow(self, answer: Answer, after: int = 0) -> None:
        said = _good(answer)
        try:
            self._beyond = {table: int(said["beyond"][table]) for table in records.TABLES}
            self._held = {int(picture): int(held) for picture, held in said["wanted"]}
        except (KeyError, TypeError, ValueError) as error:
            raise AwayError(f"the hub does not say how far it is ({error!r})") from None
        self._wanted = deque(one for one in self._held if one not in self._absent)
        self._more = any(one > after for one in self._held)

    def _send_rows(self, table: str) -> bool:
        assert self._db is not None and self._beyond is not None
        if table in self._refused:
            return False
        pace, after = self._rows[table], self._beyond[table]
        rows = records.beyond(self._db, table, after, pace.size)
        if not rows:
            return False
        answer = self._timed(pace, "POST", f"/rows/{table}", {"after": after, "rows": rows})
        if answer.status in _REFUSED:
            if not pace.less():  # the next heartbeat says so, and then it is tried again
                self._refused[table] = f"{table} after {after}: {answer.away()}"
            return True
        self._beyond[table] = _at(answer)
        self._more |= table == "pictures"
        return True

    def _next_picture(self) -> int | None:
        if self._more and not self._wanted:
            after = max(self._absent, default=0)
            self._follow(self._call("GET", f"?after={after}" if after else ""), after)
        return self._wanted[0] if self._wanted else None

    def _send_piece(self) -> bool:
        picture = None if _PIECE in self._refused else self._next_picture()
        if picture is None:
            return False
        try:
            data = self._jpeg(picture)
        except FileNotFoundError:
            self._open()  # raises where all of the records were set aside
            self._absent.add(picture)
            self._wanted.popleft()
            return bool(self._wanted)
        if data is None:
            self._open()
            if self._beyond is None:  # it is not this database's any more
                return True
            _good(self._call("POST", f"/pictures/{picture}/gone", {}))
            self._wanted.popleft()
            return True
        at = self._held[picture]
        answer = self._timed(self._bytes, "PUT", f"/pictures/{picture}?at={at}", data[at : at + self._bytes.size])
        if answer.status in (*_REFUSED, _FULL):  # as above; rows go on
            self._refused[_PIECE] = f"picture {picture}: {answer.away()}"
            self._wanted.clear()
            return False
        self._held[picture] = _at(answer)
        if answer.status == 200 and self._held[picture] >= len(data):
            self._wanted.popleft()
            self._picture = None
        return True

    def _timed(self, pace: Pace, method: str, what: str, body: bytes | dict[str, Any]) -> Answer:
        begun = time.monotonic()
        try:
            answer = self._call(method, what, body)
        except AwayError:
            pace.less()
            raise
        if answer.status == 200:
            pace.took(time.monotonic() - begun)
        return answer


def _good(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise answer.away()
    return answer.json()


def _at(answer: Answer) -> int:
    """How far the hub is, whether it took this or is elsewhere."""
    said = answer.json().get("at")
    if answer.status not in (200, 409) or not isinstance(said, int):
        raise answer.away()
    return said


def main(words: list[str]) -> int:
    """Send for ever; returns where the options are wrong."""
    try:
        Sync(started(Options, words)).run()
    except InputError as error:
        console.complain(str(error))
    return InputError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
