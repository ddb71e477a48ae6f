"""A process that does not outlive the one that began it: whoever asked it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

from agrikd.errors import DeviceError

_PARENT = "AGRIKD_PARENT"
_PR_SET_PDEATHSIG = 1
_MOST_HELD = 2


def environment() -> dict[str, str]:
    """For a process that is to be tethered to this one."""
    return {**os.environ, _PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """On Linux; the parent is the thread that began this process. Ends it now where that has ended already, as it may
    while Python imports."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):
        sys.exit(1)


def ended(code: int) -> str:
    """How a process came to its end, in words."""
    if code >= 0:
        return f"ended with code {code}"
    known = {one.value: one.name for one in signal.Signals}
    return f"was ended by {known.get(-code, f'signal {-code}')}"


class Held:
    """Processes that were killed and do not end: the kernel holds them, as where a driver hangs, and would hold the
    next one too. whose: in words."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._left: set[subprocess.Popen[bytes]] = set()

    def ended(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Whether a killed process ends within so many seconds; one that does not is remembered."""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._left.add(process)
            return False
        return True

    def require_few(self) -> None:
        """Raise `DeviceError` while two of them are there still."""
        self._left = {one for one in self._left if one.poll() is None}
        if len(self._left) >= _MOST_HELD:
            ids = ", ".join(str(one.pid) for one in self._left)
            raise DeviceError(f"the kernel holds {self._whose} processes {ids}, which were killed: restart the board")
