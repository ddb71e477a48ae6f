"""The devices that the app knows: the one whose folder it has, and those that a hub hears of."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from agrikd import files, image, records
from agrikd.access import Visitor
from agrikd.condition import Condition, Eye, clock
from agrikd.device import installer, settings, support, vitals
from agrikd.device.post import AwayError, Server
from agrikd.device.settings import HubSettings
from agrikd.device.station import RECORDS
from agrikd.device.store import PENDING, SETTINGS, State, Store
from agrikd.errors import AgriKDError, DeviceError, InputError, Problem, StorageError
from agrikd.heard import Beat, Member, Sight, beats, members, sights
from agrikd.types import ModelSpec

BEATS, FRAMES, LINES = 120, 50, 200
"""How many heartbeats and frames of a device are looked at, and how many lines of a log."""
_EVENTS = 5000
_SIDE, _QUALITY = 960, 80
_AGAIN_S, _SLOWLY_S, _WAIT_S, _OUTDATED = 4.0, 30.0, 2.0, 4


# The device of a folder


@dataclass(frozen=True)
class Look:
    """A folder's agent at one moment. status: as `support.status` says. faults: by camera, what is wrong with its
    newest picture, in words."""

    status: dict[str, Any]
    condition: Condition
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def bare(self) -> bool:
        """Whether the agent was started on a model's file and not on the folder's releases."""
        return self.condition.answers and self.condition.wanted != self.status["current"]

    @property
    def installing(self) -> bool:
        return self.status["phase"] in PENDING

    @property
    def model(self) -> str:
        """What people call it; empty where there is none."""
        if not self.bare and "version" in self.status:
            return f"{self.status['name']} {self.status['version']}"
        return self.condition.wanted or str(self.status["current"])

    @property
    def way_back(self) -> str:
        """The release to go back to; empty where there is none, or where one is just being installed."""
        previous = str(self.status["previous"])
        return "" if self.bare or self.installing or previous == self.status["current"] else previous

    @property
    def marks(self) -> tuple[str, ...]:
        """What has changed as soon as something else may be done."""
        return (self.way_back, *(str(self.status[name]) for name in ("current", "phase", "reason")))


def opened(folder: Path) -> Store:
    """The device's store in a folder; raises `InputError` where there is none: looking makes nothing."""
    if not (folder / "trust").is_dir():
        mend = "start one: agrikd agent MODEL --source demo"
        raise InputError(Problem(str(folder), "is no folder of an agent", mend))
    return Store(folder)


def look(folder: Path) -> Look:
    """How it is now; raises `AgriKDError` where the folder cannot be read."""
    with _worded(folder):
        status = support.status(opened(folder))
        condition = Condition.of({**vitals.read(folder), "agent": status["agent"]})
        return Look(status, condition, _faults(folder, condition.eyes))


def state(folder: Path) -> State:
    """How far an installation is."""
    with _worded(folder):
        return opened(folder).state


def named(folder: Path, release: str) -> str:
    """A release as people know it: its name and version; its id where the folder does not have it."""
    with contextlib.suppress(AgriKDError, OSError):
        found = opened(folder).release(release)
        return f"{found.name} {found.version}"
    return release


def spec(folder: Path, model: str) -> ModelSpec | None:
    """What a model's answers mean, where the folder knows the model."""
    with contextlib.suppress(AgriKDError, OSError, sqlite3.Error, ValueError, KeyError, TypeError):
        with contextlib.closing(records.read(folder / RECORDS)) as db:
            row = db.execute("SELECT spec FROM models WHERE name = ?", (model,)).fetchone()
        return ModelSpec.from_json(json.loads(row["spec"])) if row else opened(folder).release(model).spec
    return None


def roll_back(visitor: Visitor, folder: Path, to: str) -> None:
    """Put the release that served before on trial, as `python -m agrikd.device rollback` does.

    Raises `InputError` for whoever may only look, `BusyError` where another process changes the store, and
    `DeviceError` where another release than `to`, which he was shown, is the one before by now.
    """
    visitor.require_review()
    with _worded(folder), (store := opened(folder)).locked():
        if store.linked("previous") != to:
            raise DeviceError(f"{to} is not the release before this one any more\n    → look again what serves now")
        installer.back_to_previous(store)
        store.log("asked back", release=to, who=visitor.name)


def support_file(folder: Path) -> bytes:
    """A .tar.gz of texts for whoever helps: no photos, no keys."""
    with _worded(folder), tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "agrikd-logs.tar.gz"
        support.bundle_logs(opened(folder), path)
        return path.read_bytes()


def log(folder: Path) -> list[tuple[str, str, str, str]]:
    """(when, what, release, more) of the lines of the device's log, newest first; when: by its clock, or empty."""
    with _worded(folder):
        path = folder / "log.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [_line(line) for line in reversed(lines)]


def events(folder: Path) -> list[tuple[str, str, str]]:
    """(when, what, more) of the newest events in the records, newest first; when: by this machine's wall clock."""
    with _worded(folder), contextlib.closing(records.read(folder / RECORDS)) as db:
        found = db.execute("SELECT t, key, value FROM events ORDER BY id DESC LIMIT ?", (_EVENTS,)).fetchall()
    return [(clock(t), key, value) for t, key, value in found]


def holding(rows: Iterable[tuple[str, ...]], word: str) -> list[tuple[str, ...]]:
    """The first `LINES` rows with a word in them, whatever its case."""
    sought = word.strip().casefold()
    return list(islice((row for row in rows if sought in " ".join(row).casefold()), LINES))


def _line(line: str) -> tuple[str, str, str, str]:
    try:
        said = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):  # a power cut left a part of it
        return "", "", "", line
    when, what, release = clock(said.pop("t", None)), str(said.pop("what", "")), str(said.pop("release", ""))
    return when, what, release, ", ".join(f"{key}: {value}" for key, value in said.items() if value)


def _faults(folder: Path, eyes: Iterable[Eye]) -> dict[str, str]:
    if not (folder / RECORDS / records.DATABASE).exists():
        return {}
    with contextlib.closing(records.read(folder / RECORDS)) as db:
        sought = "SELECT quality FROM frames WHERE id = ?"
        found = {eye.name: db.execute(sought, (eye.frame,)).fetchone() for eye in eyes}
    return {name: str(row["quality"]) for name, row in found.items() if row and row["quality"]}


@contextlib.contextmanager
def _worded(folder: Path) -> Iterator[None]:
    """What a disk or a database refuses, in words."""
    try:
        with files.storage_errors():
            yield
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"{folder}: {error}\n    → look at the folder and at its disk") from None


# The devices of a hub


class Hub:
    """What a hub says. No page waits long for it: it is asked by threads, and what it said last is at hand."""

    def __init__(self, own: HubSettings) -> None:
        self._own, self._lock = own, threading.Lock()
        self._asked: dict[str, _Question] = {}
        self.name = self._server().name

    @classmethod
    def of(cls, folder: Path) -> Hub | None:
        """The one that a folder's agent.yaml names; raises `InputError` where that file is wrong."""
        own = settings.read(folder / SETTINGS).hub
        return cls(own) if own else None

    def members(self) -> list[Member]:
        """Raises `AgriKDError` where it does not answer."""
        return members(self._latest("/hub/devices", _AGAIN_S))

    def beats(self, one: Member) -> list[Beat]:
        """The newest `BEATS`, oldest first."""
        return beats(self._latest(f"{one.path}/heartbeats?count={BEATS}", _SLOWLY_S))

    def sights(self, one: Member) -> list[Sight]:
        """The newest `FRAMES`, newest first."""
        return sights(self._latest(f"{one.path}/frames?count={FRAMES}", _SLOWLY_S))

    def picture(self, one: Member, frame: int) -> bytes:
        """A frame's picture as a JPEG that a slow link takes; raises `AgriKDError` where there is none."""
        answer = self._server().call("GET", f"{one.path}/frames/{frame}/picture")
        if answer.status != 200:
            raise answer.away()
        pixels = image.decode(answer.body, f"frame {frame} of {one.device}")
        height, width = pixels.shape[:2]
        scale = min(1.0, _SIDE / max(height, width))
        small = image.resize(pixels, (max(1, round(scale * height)), max(1, round(scale * width))))
        return image.encode_jpeg(small, _QUALITY)

    def _server(self) -> Server:
        return Server(self._own.url, str(self._own.token_file))

    def _latest(self, path: str, again_s: float) -> list[object]:
        with self._lock:
            question = self._asked.setdefault(path, _Question(self._server(), path))
        return question.latest(again_s)


class _Question:
    """A GET of a list, whose last answer is kept; asked again, by a thread, when that has grown old."""

    def __init__(self, server: Server, path: str) -> None:
        self._server, self._path = server, path
        self._lock, self._idle = threading.Lock(), threading.Event()
        self._idle.set()
        self._begun = self._told_at = -math.inf
        self._told: list[object] | AgriKDError = AwayError(f"{server.name} has not answered yet")

    def latest(self, again_s: float) -> list[object]:
        with self._lock:
            if self._idle.is_set() and time.monotonic() - self._begun >= again_s:
                self._idle.clear()
                self._begun = time.monotonic()
                threading.Thread(target=self._ask, daemon=True).start()
        if time.monotonic() - self._told_at > _OUTDATED * again_s:
            self._idle.wait(_WAIT_S)
        if isinstance(self._told, AgriKDError):
            raise self._told.with_traceback(None)
        if (silent_s := time.monotonic() - self._told_at) > _OUTDATED * again_s:
            raise AwayError(f"{self._server.name} has not answered for {silent_s:.0f} s")
        return self._told

    def _ask(self) -> None:
        try:
            answer = self._server.call("GET", self._path)
            if answer.status != 200:
                raise answer.away()
            self._told, self._told_at = _listed(answer.body, self._server.name), time.monotonic()
        except AgriKDError as error:
            self._told = error
        finally:
            self._idle.set()


def _listed(body: bytes, where: str) -> list[object]:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(said := json.loads(body), list):
            return said
    raise AwayError(f"the answer of {where} is none of agrikd's")
