"""A process that the kernel holds, as one that waits for a driver that hangs: it is killed and does not end."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest


class Stuck(subprocess.Popen[bytes]):
    """Says back what it is told, and ends when it is `let_go`."""

    held = True

    def wait(self, timeout: float | None = None) -> int:
        if self.held:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return super().wait(timeout)

    def poll(self) -> int | None:
        return None if self.held else super().poll()

    def let_go(self) -> None:
        self.held = False
        self.wait(10)


def all_stuck(monkeypatch: pytest.MonkeyPatch) -> list[Stuck]:
    """What is begun from now on, all of it stuck."""
    begun: list[Stuck] = []

    def begin(words: list[str], **how: Any) -> Stuck:
        begun.append(Stuck(["cat"], **how))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    return begun
