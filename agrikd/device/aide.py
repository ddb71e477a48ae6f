"""A process beside the agent that may die: it is started again, each time after twice the pause."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import Any

from agrikd import console

_LONGEST_PAUSE_S, _LIVED_S, _PATIENCE_S = 30.0, 60.0, 3.0


class Aide:
    """`python -m MODULE`, which reads its options as JSON from stdin."""

    def __init__(self, module: str, options: dict[str, Any]) -> None:
        self._module, self._options = module, options
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = self._not_before = 0.0
        self.failures = 0

    def keep(self) -> None:
        """Start it where it does not run, unless it has just died."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self.failures = 1 if time.monotonic() - self._begun > _LIVED_S else self.failures + 1
            self._not_before = time.monotonic() + min(0.5 * 2**self.failures, _LONGEST_PAUSE_S)
            console.say(f"{self._module} ended with code {code}")
        if self._process is None and time.monotonic() >= self._not_before:
            self._begun = time.monotonic()
            self._process = subprocess.Popen([sys.executable, "-m", self._module], stdin=subprocess.PIPE)
            assert self._process.stdin
            with contextlib.suppress(OSError), self._process.stdin as words:
                words.write(json.dumps(self._options).encode())

    def stop(self) -> None:
        """By SIGTERM, and by SIGKILL where that does not help."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def health(self) -> dict[str, Any]:
        return {"pid": self._process.pid if self._process else None, "failures": self.failures}
