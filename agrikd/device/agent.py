"""The process that is always there: it keeps the current release's model answering, ends what was begun, and looks
through the cameras. It holds no model itself: that is a worker's, which may die."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agrikd import __version__, console, files, image
from agrikd.device import installer, notify
from agrikd.device.child import Child, Limits, Model
from agrikd.device.desk import Reply, listening
from agrikd.device.serving import Serving
from agrikd.device.station import Eyes, Station
from agrikd.device.store import PENDING, BusyError, Store
from agrikd.errors import AgriKDError, InputError, Problem

if TYPE_CHECKING:
    from agrikd.bundle import Release
    from agrikd.device.settings import Settings

_TICK_S = 0.1
_AGAIN_S = 2.0
"""Between two tries to recover, or to end an installation: the lock may be held, or the disk full."""


class Agent:
    """Serves a store until `stop` is set. settings: what else it does, as looking through cameras. model: the one that
    answers in place of a release."""

    def __init__(
        self, store: Store, limits: Limits, settings: Settings | None = None, model: Model | None = None
    ) -> None:
        self._store, self._limits, self._settings, self._model = store, limits, settings, model
        self.stop = threading.Event()
        self._eyes = Eyes(settings.cameras if settings else ())
        self._serving = Serving(_named(model) if model else self._current, self._open, self._failed)
        self._station: Station | None = None
        self._release: tuple[str, Release] | None = None
        self._advancing: subprocess.Popen[bytes] | None = None
        self._advance_at = self._recover_at = 0.0
        self._recovered, self._said = False, ""
        self.trouble = ""

    def run(self) -> None:
        """Until `stop`; what is on the way is ended, what has begun is left to the next start. Whatever the disk
        refuses, what serves goes on serving. Raises `BusyError` where the store has an agent."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._store.locked("agent.lock", "agent", wait_s=0))
            except OSError as error:  # a disk that may not be written: better two agents than none
                console.say(f"{self._store.folder}: {error}")
            held.callback(self._serving.stop)
            if self._settings and self._settings.cameras:
                self._station = Station(self._store.folder, self._settings, self._eyes, self._serving)
                held.callback(self._station.stop)
            held.enter_context(listening(self._store.socket, self._verbs, self._limits.answer_s))
            notify.tell("READY=1")
            pulse = notify.Pulse()
            while not self.stop.wait(_TICK_S):
                pulse.beat()
                self._round()

    def health(self) -> dict[str, Any]:
        """What serves, what people call it and, where there are cameras, what they see and what is recorded."""
        said = self._serving.health() | (self._station.health() if self._station else {})
        trouble = self.trouble
        if one := self._wanted():
            said |= {"release": {"name": one.name, "version": one.version, "expired": one.expired}}
            trouble = "\n".join(filter(None, (trouble, _misfit(one))))
        return said | ({"trouble": trouble} if trouble else {})

    def _wanted(self) -> Release | None:
        """The release that is to serve; None where there is none, or it cannot be read."""
        name = self._current()
        if self._model or not name:
            return None
        with contextlib.suppress(AgriKDError, OSError, TypeError):
            if self._release is None or self._release[0] != name:
                self._release = name, self._store.release(name)
            return self._release[1]
        return None

    def _round(self) -> None:
        for step in (self._recover, self._serving.follow, self._go_on):
            try:
                step()
            except (AgriKDError, OSError) as error:
                self._say(str(error))
        if self._station:
            self._station.keep()

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

    def _current(self) -> str:
        return self._store.linked("current")

    def _open(self, name: str) -> Child:
        model = self._model
        if model is None:
            file = installer.choice_of(self._store, name).file
            model = Model(self._store.path(name), file, self._store.engines)
        return Child(model, self._limits, live=True, pixels=self._eyes.pixels)

    def _failed(self, name: str, why: str) -> None:
        self._store.log("failed", release=name, reason=why)

    @property
    def _verbs(self) -> dict[str, Callable[[Any], Reply]]:
        return {
            "health": lambda _: (self.health(), None),
            "probe": lambda rounds: (self._serving.probe(int(rounds)), None),
            **(self._station.verbs if self._station else {}),
        }


def _misfit(release: Release) -> str:
    """Why what serves may answer otherwise than in the lab, as after another agrikd was put beside it."""
    if release.resize == image.RESIZE:
        return ""
    wrong = f"was taught with pixels of resize {release.resize}, this device makes {image.RESIZE}"
    return f"{release.name} {release.version} {wrong}: flash one that was packed by agrikd {__version__}"


def _named(model: Model) -> Callable[[], str]:
    """A model that is no release is known by its file's name and the beginning of its hash."""
    path = model.folder / model.file
    whole = path / "weights.safetensors" if path.is_dir() else path
    if not whole.is_file():
        raise InputError(Problem(str(path), "is no model", "expected a Run folder or an .onnx file"))
    name = f"{path.stem}-{files.sha256_of(whole)[:8]}"
    return lambda: name
