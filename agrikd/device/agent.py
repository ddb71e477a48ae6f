"""The process that is always there: it keeps the current release's model answering, and ends what was begun.

It holds no model itself: that is a worker's, which may die. A new release starts beside the old one, which answers
until the new one can. Questions come over a Unix socket: {"health": true}, {"probe": rounds}.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from agrikd import console
from agrikd.device import installer, notify
from agrikd.device.child import Child, Limits
from agrikd.device.store import PENDING, BusyError, Store
from agrikd.errors import AgriKDError, DeviceError
from agrikd.wire import Wire, WireError

_TICK_S = 0.1
_LONGEST_PAUSE_S = 30.0
_AGAIN_S = 2.0
"""Between two tries to recover, or to end an installation: the lock may be held, or the disk full."""


class Agent:
    """Serves a store until `stop` is set."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self.stop = threading.Event()
        self._serving: tuple[str, Child] | None = None
        self._starting: tuple[str, Child] | None = None
        self._wanted = ""
        self._failures, self._not_before, self._why = 0, 0.0, ""
        self._asking = threading.RLock()
        self._advancing: subprocess.Popen[bytes] | None = None
        self._advance_at = self._recover_at = 0.0
        self._recovered, self._said = False, ""

    def run(self) -> None:
        """Until `stop`; what is on the way is ended, what has begun is left to the next start. Whatever the disk
        refuses, what serves goes on serving. Raises `BusyError` where the store has an agent."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._store.locked("agent.lock", "agent", wait_s=0))
            except OSError as error:  # a disk that may not be written: better two agents than none
                console.say(f"{self._store.folder}: {error}")
            held.enter_context(self._listening())
            notify.tell("READY=1")
            pulse = notify.Pulse()
            try:
                while not self.stop.wait(_TICK_S):
                    pulse.beat()
                    self._round()
            finally:
                self._end()

    def _round(self) -> None:
        for step in (self._recover, self._follow, self._go_on):
            try:
                step()
            except (AgriKDError, OSError) as error:
                self._say(str(error))

    def _recover(self) -> None:
        """Once, as soon as nobody else changes the store."""
        if not self._recovered and time.monotonic() >= self._recover_at:
            self._recover_at = time.monotonic() + _AGAIN_S
            with contextlib.suppress(BusyError), self._store.locked(wait_s=0):
                installer.recover(self._store)
                self._recovered = True

    def _say(self, what: str) -> None:
        """What is new; ten times a second the same would fill a log."""
        if what != self._said:
            self._said = what
            console.say(what)

    def health(self) -> dict[str, Any]:
        """wanted: what `current` points to. serving: what answers. failures, why: of what is wanted but does not."""
        serving = self._serving
        return {
            "wanted": self._store.linked("current"),
            "serving": serving[0] if serving else "",
            "backend": serving[1].backend if serving else "",
            "pid": serving[1].pid if serving else None,
            "failures": self._failures,
            "why": self._why,
        }

    def _follow(self) -> None:
        """Start what `current` points to, let it take over when it can, start it again when it has died."""
        wanted = self._store.linked("current")
        if self._wanted != wanted:
            self._wanted, self._failures, self._not_before, self._why = wanted, 0, 0.0, ""
        with self._asking:
            self._watch()
        if self._starting and self._starting[0] != wanted:
            self._starting[1].stop()
            self._starting = None
        served = self._serving is not None and self._serving[0] == wanted
        if wanted and not served and not self._starting and time.monotonic() >= self._not_before:
            self._start(wanted)
        if not wanted and self._serving:
            self._serving[1].stop()
            self._serving = None

    def _watch(self) -> None:
        """Notice who has died, and who can answer by now."""
        if self._serving:
            try:
                self._serving[1].watch()
            except DeviceError as error:
                self._count(self._serving[0], str(error))
                self._serving = None
        if not self._starting:
            return
        try:
            if not self._starting[1].ready():
                return
        except DeviceError as error:
            name, self._starting = self._starting[0], None
            self._count(name, str(error))
            return
        if self._serving:
            self._serving[1].stop()
        self._serving, self._starting = self._starting, None
        console.say(f"{self._serving[0]} serves: {self._serving[1].backend}")

    def _start(self, name: str) -> None:
        try:
            file = installer.choice_of(self._store, name).file
            child = Child(self._store.path(name), file, self._store.engines, self._limits, live=True)
            self._starting = name, child
        except (AgriKDError, OSError, TypeError) as error:
            self._count(name, str(error))

    def _count(self, name: str, why: str) -> None:
        """A failure; the next start waits twice as long."""
        console.say(f"{name}: {why}")
        self._store.log("failed", release=name, reason=why)
        if name == self._wanted:
            self._failures, self._why = self._failures + 1, why
            self._not_before = time.monotonic() + min(0.5 * 2**self._failures, _LONGEST_PAUSE_S)

    def _go_on(self) -> None:
        """End an installation that is pending and that nobody works on, in a process of its own."""
        if self._advancing is not None and self._advancing.poll() is None:
            return
        if self._store.state.phase in PENDING and time.monotonic() >= self._advance_at:
            self._advance_at = time.monotonic() + _AGAIN_S
            if self._store.busy:
                return
            limits = [f"{value:g}" for value in asdict(self._limits).values()]
            words = [sys.executable, "-m", "agrikd.device.advance", str(self._store.folder), *limits]
            self._advancing = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """A socket that answers; a disk that takes none costs the answers, not the agent."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            try:
                self._store.socket.unlink(missing_ok=True)
                door.bind(str(self._store.socket))
                self._store.socket.chmod(0o600)
                door.listen()
                threading.Thread(target=self._answer_all, args=(door,), daemon=True).start()
            except OSError as error:
                console.say(f"{self._store.socket}: nobody can ask this agent ({error})")
            yield

    def _answer_all(self, door: socket.socket) -> None:
        while not self.stop.is_set():
            try:
                link, _ = door.accept()
            except OSError:  # closed at the end, or too many files are open
                time.sleep(_TICK_S)
                continue
            threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        link.settimeout(self._limits.answer_s)
        with link, link.makefile("rb") as reader, link.makefile("wb") as writer:
            wire = Wire(reader, writer)
            with contextlib.suppress(WireError, ValueError, TypeError):
                asked = wire.hear()
                wire.say(**(self._probe(int(asked["probe"])) if "probe" in asked else self.health()))

    def _probe(self, rounds: int) -> dict[str, Any]:
        with self._asking:
            if self._serving is None:
                return {"failed": self._why or "nothing serves"}
            try:
                return asdict(self._serving[1].probe(rounds))
            except DeviceError as error:
                return {"failed": str(error)}

    def _end(self) -> None:
        with self._asking:
            for one in (self._serving, self._starting):
                if one:
                    one[1].stop()
        with contextlib.suppress(OSError):
            self._store.socket.unlink(missing_ok=True)
