"""A question to the agent, over its socket."""

from __future__ import annotations

import socket
from typing import Any

from agrikd.device.store import Store
from agrikd.errors import DeviceError
from agrikd.wire import Wire, WireError


def ask(store: Store, timeout_s: float, **what: Any) -> dict[str, Any]:
    """One question and its answer; raises `DeviceError` or `OSError` where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_s)
        link.connect(str(store.socket))
        with link.makefile("rb") as reader, link.makefile("wb") as writer:
            wire = Wire(reader, writer)
            try:
                wire.say(**what)
                return wire.hear()
            except WireError as error:
                raise DeviceError(f"the agent does not answer: {error}") from None
