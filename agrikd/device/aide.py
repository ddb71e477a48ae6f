"""A process beside the agent that may die: it is started again, each time after twice the pause."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from agrikd import console
from agrikd.device.tether import environment

_LONGEST_PAUSE_S, _LIVED_S, _PATIENCE_S, _WORDS_S = 30.0, 60.0, 3.0, 1.0
_MOST_LINES = 4


class Aide:
    """`python -m MODULE`, which reads its options as JSON from stdin. tell: hears why it ended, where that is new."""

    def __init__(self, module: str, options: dict[str, Any], tell: Callable[[str], None] = console.say) -> None:
        self._module, self._options, self._tell = module, options, tell
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._words: list[str] = []
        self._begun = self._not_before = 0.0
        self.failures, self._said = 0, ""

    def keep(self) -> None:
        """Start it where it does not run, unless it has just died."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self._count(f"{self._module} ended with code {code}{self._last_words()}")
        if self._process is None and time.monotonic() >= self._not_before:
            self._begun = time.monotonic()
            command = [sys.executable, "-m", self._module]
            try:
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(  # a terminal's Ctrl-C is for the agent, which ends it
                    command, stdin=pipe, stderr=pipe, env=environment(), start_new_session=True
                )
            except OSError as error:
                self._count(f"{self._module} cannot be started ({error})")
                return
            assert self._process.stdin and self._process.stderr
            self._words = []
            self._listener = threading.Thread(target=_listen, args=(self._process.stderr, self._words), daemon=True)
            self._listener.start()
            with contextlib.suppress(OSError), self._process.stdin as words:
                words.write(json.dumps(self._options).encode())

    def _last_words(self) -> str:
        if self._listener:
            self._listener.join(_WORDS_S)  # a child of its own may hold the pipe open for longer
        text = " ".join(line.strip() for line in self._words)
        return f": {text}" if text else ""

    def _count(self, why: str) -> None:
        """Says it when it is new: what cannot run says the same for ever."""
        self.failures = 1 if time.monotonic() - self._begun > _LIVED_S else self.failures + 1
        self._not_before = time.monotonic() + min(0.5 * 2**self.failures, _LONGEST_PAUSE_S)
        if self.failures == 1 or why != self._said:
            self._tell(why)
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
        """failures: in a row, 0 once it has lived for a while. why: of the last of them."""
        lives = self._process is not None and time.monotonic() - self._begun > _LIVED_S
        failures = 0 if lives else self.failures
        return {
            "pid": self._process.pid if self._process else None,
            "failures": failures,
            "why": self._said if failures else "",
        }


def _listen(pipe: IO[bytes], words: list[str]) -> None:
    """Pass on what it says, and hold its last complaint: a line at the margin and what is indented below it."""
    with contextlib.suppress(OSError, ValueError), pipe:
        for line in pipe:
            text = line.decode(errors="replace").rstrip()
            console.say(text)
            if not text.startswith(" "):
                words.clear()
            if len(words) < _MOST_LINES:
                words.append(text)
