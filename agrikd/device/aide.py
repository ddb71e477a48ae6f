"""A process beside the agent that may die: it is started again, each time after twice the pause."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import Any

from agrikd import console
from agrikd.device.tether import environment

_LONGEST_PAUSE_S, _LIVED_S, _PATIENCE_S = 30.0, 60.0, 3.0


class Aide:
    """`python -m MODULE`, which reads its options as JSON from stdin."""

    def __init__(self, module: str, options: dict[str, Any]) -> None:
        self._module, self._options = module, options
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = self._not_before = 0.0
        self.failures, self._said = 0, ""

    def keep(self) -> None:
        """Start it where it does not run, unless it has just died."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self._count(f"{self._module} ended with code {code}")
        if self._process is None and time.monotonic() >= self._not_before:
            self._begun = time.monotonic()
            command = [sys.executable, "-m", self._module]
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment())
            except OSError as error:
                self._count(f"{self._module} cannot be started ({error})")
                return
            assert self._process.stdin
            with contextlib.suppress(OSError), self._process.stdin as words:
                words.write(json.dumps(self._options).encode())

    def _count(self, why: str) -> None:
        """Says it when it is new: what cannot run says the same for ever."""
        self.failures = 1 if time.monotonic() - self._begun > _LIVED_S else self.failures + 1
        self._not_before = time.monotonic() + min(0.5 * 2**self.failures, _LONGEST_PAUSE_S)
        if self.failures == 1 or why != self._said:
            console.say(why)
        self._said = why

    def terminate(self) -> None:
        """Tell it to end."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Wait until it has ended, by SIGKILL where it does not listen."""
        if self._process is None:
            return
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def health(self) -> dict[str, Any]:
        return {"pid": self._process.pid if self._process else None, "failures": self.failures}
