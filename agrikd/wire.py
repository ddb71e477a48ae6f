"""Frames between two processes that share a pipe: a letter, a length, that many bytes.

J is a JSON object, B is bytes. Both sides are bounded: a length beyond `MAX_BYTES` ends the conversation.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import IO, Any

from agrikd.errors import DeviceError

PROTOCOL = 1
"""Of flash and device: what they say to each other."""
MAX_BYTES = 8 * 2**20
_HEAD = 5
_GRACE_S, SLOWEST_BYTES_S = 60.0, 500.0
"""A frame that has begun ends in this time and at this rate: a byte now and then keeps no conversation alive."""


class WireError(DeviceError):
    """The other side is gone, or says what is no frame."""


class Patient:
    """Reads a pipe as bytes come, and gives up on one that is silent for `seconds`: a dead link looks so. more_s: what
    must arrive at the other side before it can say anything has so long for that."""

    def __init__(self, stream: IO[bytes], seconds: float) -> None:
        self._stream, self._seconds, self._poll = stream.fileno(), seconds, select.poll()
        self._poll.register(self._stream, select.POLLIN)
        self.more_s = 0.0

    def read(self, count: int) -> bytes:
        """At most `count` bytes, empty at the end; raises `OSError` after the silence."""
        seconds = self._seconds + self.more_s
        if not self._poll.poll(1000 * seconds):
            raise TimeoutError(f"nothing was heard for {round(seconds, 2):g} s")
        return os.read(self._stream, count)


class Wire:
    """A conversation over a pair of binary streams."""

    def __init__(self, reader: IO[bytes] | Patient, writer: IO[bytes]) -> None:
        self._reader, self._writer = reader, writer

    def say(self, **what: Any) -> None:
        """Send a JSON object."""
        self._send(b"J", json.dumps(what, separators=(",", ":")).encode())

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._send(b"B", data)

    def hear(self) -> dict[str, Any]:
        """The next frame, which must be a JSON object."""
        found = self.receive()
        if not isinstance(found, dict):
            raise WireError("the other side sent bytes where words were expected")
        return found

    def receive(self, most: int = MAX_BYTES) -> dict[str, Any] | bytes:
        """The next frame, of at most so many bytes; raises `WireError` where there is none, or it does not end."""
        head = self._exactly(_HEAD, float("inf"))
        kind, length = head[:1], int.from_bytes(head[1:], "big")
        if kind not in (b"J", b"B") or length > most:
            raise WireError(f"the other side does not speak agrikd's protocol: it sent {head!r}")
        data = self._exactly(length, time.monotonic() + _GRACE_S + length / SLOWEST_BYTES_S)
        if kind == b"B":
            return data
        try:
            said = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the other side sent what is no JSON ({error})") from None
        if not isinstance(said, dict):
            raise WireError("the other side sent JSON that is no object")
        return said

    def _exactly(self, count: int, end: float) -> bytes:
        parts, left = [], count
        while left:
            if time.monotonic() > end:
                raise WireError("the other side takes too long over a frame")
            try:
                part = self._reader.read(left)
            except (OSError, ValueError) as error:
                raise WireError(f"the link broke ({error})") from None
            if not part:
                raise WireError("the link is closed")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _send(self, kind: bytes, data: bytes) -> None:
        try:
            self._writer.write(kind + len(data).to_bytes(4, "big") + data)
            self._writer.flush()
        except (OSError, ValueError) as error:
            raise WireError(f"the link broke ({error})") from None
