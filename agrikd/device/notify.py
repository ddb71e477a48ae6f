"""What a service manager is told: that the agent is ready, and that it still goes round (sd_notify, as datagrams).

Where $NOTIFY_SOCKET is not set, nobody listens and nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def tell(what: str) -> None:
    """Send one assignment, as READY=1; a manager that is gone hinders nobody."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # a name that is in no folder
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.sendto(what.encode(), address)


class Pulse:
    """Says that the process lives, three times in the span ($WATCHDOG_USEC) after which it would be taken for dead."""

    def __init__(self) -> None:
        self._every_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 3e6
        self._next = 0.0

    def beat(self) -> None:
        """To be called more often than needed; what is too soon is not sent."""
        if self._every_s and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            tell("WATCHDOG=1")
