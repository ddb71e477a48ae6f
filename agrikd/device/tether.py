"""A process that does not outlive the one that began it: whoever asked it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PARENT = "AGRIKD_PARENT"
_PR_SET_PDEATHSIG = 1


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
