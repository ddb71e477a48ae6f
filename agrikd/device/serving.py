"""What answers: the worker of the wanted model, and the one that shall take over.

A new model starts beside the old one, which answers until the new one can: so a change costs no frame. One that dies
is started again, each time after twice the pause.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from agrikd import console
from agrikd.device.child import Child
from agrikd.errors import AgriKDError, DeviceError
from agrikd.records import Opinion
from agrikd.types import ModelSpec

_LONGEST_PAUSE_S, _LIVED_S, _TURN_S = 30.0, 60.0, 0.1


class Serving:
    """wanted: the name of the model that should answer, empty for none. start: its worker. log: hears of failures."""

    def __init__(
        self, wanted: Callable[[], str], start: Callable[[str], Child], log: Callable[[str, str], None]
    ) -> None:
        self._asked, self._open, self._log = wanted, start, log
        self._serving: tuple[str, Child] | None = None
        self._starting: tuple[str, Child] | None = None
        self._wanted = ""
        self._failures, self._not_before, self._why = 0, 0.0, ""
        self._served_at = math.inf
        self._asking = threading.RLock()

    def health(self) -> dict[str, Any]:
        """wanted: what should answer. serving: what does. failures, why: of what is wanted but does not."""
        serving = self._serving
        return {
            "wanted": self._asked(),
            "serving": serving[0] if serving else "",
            "backend": serving[1].backend if serving else "",
            "pid": serving[1].pid if serving else None,
            "failures": self._failures,
            "why": self._why,
        }

    @property
    def model(self) -> tuple[str, ModelSpec] | None:
        """The name and the spec of what answers."""
        serving = self._serving
        return (serving[0], serving[1].spec) if serving else None

    def follow(self) -> None:
        """Start what is wanted, let it take over when it can, start it again when it has died."""
        wanted = self._asked()
        if self._wanted != wanted:
            self._wanted, self._failures, self._not_before, self._why = wanted, 0, 0.0, ""
        if not self._asking.acquire(timeout=_TURN_S):
            return  # a model is thinking: there is nothing to do that could not wait
        try:
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
        finally:
            self._asking.release()

    def probe(self, rounds: int) -> dict[str, Any]:
        """What answers, asked for its release's probes; {"failed": why} where nothing does."""
        with self._asking:
            if self._serving is None:
                return {"failed": self._why or "nothing serves"}
            try:
                return asdict(self._serving[1].probe(rounds))
            except DeviceError as error:
                return {"failed": str(error)}

    def predict(self, pixels: int, shape: tuple[int, int], t: float) -> tuple[Opinion, ModelSpec] | None:
        """The opinion of what answers on the picture [H, W, 3] in a file of pixels; None where nothing does."""
        with self._asking:
            if self._serving is None:
                return None
            name, child = self._serving
            try:
                return child.predict(pixels, shape, name, t), child.spec
            except DeviceError:  # `follow` will see that it has died
                return None

    def stop(self) -> None:
        """Whoever waits for an answer is not waited for."""
        for one in (self._serving, self._starting):
            if one:
                one[1].kill()
        with self._asking:
            for one in (self._serving, self._starting):
                if one:
                    one[1].stop()
            self._serving = self._starting = None

    def _watch(self) -> None:
        """Notice who has died, and who can answer by now."""
        if self._serving:
            try:
                self._serving[1].watch()
            except DeviceError as error:
                if time.monotonic() - self._served_at > _LIVED_S:
                    self._failures = 0
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
        self._serving, self._starting, self._served_at = self._starting, None, time.monotonic()
        console.say(f"{self._serving[0]} serves: {self._serving[1].backend}")

    def _start(self, name: str) -> None:
        try:
            self._starting = name, self._open(name)
        except (AgriKDError, OSError, TypeError) as error:
            self._count(name, str(error))

    def _count(self, name: str, why: str) -> None:
        """A failure; the next start waits twice as long."""
        console.say(f"{name}: {why}")
        self._log(name, why)
        if name == self._wanted:
            self._failures, self._why = self._failures + 1, why
            self._not_before = time.monotonic() + min(0.5 * 2**self._failures, _LONGEST_PAUSE_S)
