"""Frames between two processes that share a pipe: a letter, a length, that many bytes.

J is a JSON object, B is bytes. Both sides are bounded: a length beyond `MAX_BYTES` ends the conversation.
"""

from __future__ import annotations

import json
import os
import select
from typing import IO, Any

from agrikd.errors import AgriKDError

PROTOCOL = 1
"""Of flash and device: what they say to each other."""
MAX_BYTES = 8 * 2**20
_HEAD = 5


class WireError(AgriKDError):
    """The other side is gone, or says what is no frame."""


class Patient:
    """Reads a pipe as bytes come, and gives up on one that is silent for `seconds`: a dead link looks so."""

    def __init__(self, stream: IO[bytes], seconds: float) -> None:
        self._stream, self._seconds = stream.fileno(), seconds

    def read(self, count: int) -> bytes:
        """At most `count` bytes, empty at the end; raises `OSError` after the silence."""
        if not select.select([self._stream], [], [], self._seconds)[0]:
            raise TimeoutError(f"nothing was heard for {self._seconds:g} s")
        return os.read(self._stream, count)


class Wire:
    """A conversation over a pair of binary streams; `bytes_sent` and `bytes_received` count all of it."""

    def __init__(self, reader: IO[bytes] | Patient, writer: IO[bytes]) -> None:
        self._reader, self._writer = reader, writer
        self.bytes_sent = self.bytes_received = 0

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

    def receive(self) -> dict[str, Any] | bytes:
        """The next frame; raises `WireError` where there is none."""
        head = self._exactly(_HEAD)
        kind, length = head[:1], int.from_bytes(head[1:], "big")
        if kind not in (b"J", b"B") or length > MAX_BYTES:
            raise WireError(f"the other side does not speak agrikd's protocol: it sent {head!r}")
        data = self._exactly(length)
        if kind == b"B":
            return data
        try:
            said = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the other side sent what is no JSON ({error})") from None
        if not isinstance(said, dict):
            raise WireError("the other side sent JSON that is no object")
        return said

    def _exactly(self, count: int) -> bytes:
        parts, left = [], count
        while left:
            try:
                part = self._reader.read(left)
            except (OSError, ValueError) as error:
                raise WireError(f"the link broke ({error})") from None
            if not part:
                raise WireError("the link is closed")
            parts.append(part)
            left -= len(part)
            self.bytes_received += len(part)
        return b"".join(parts)

    def _send(self, kind: bytes, data: bytes) -> None:
        try:
            self._writer.write(kind + len(data).to_bytes(4, "big") + data)
            self._writer.flush()
        except (OSError, ValueError) as error:
            raise WireError(f"the link broke ({error})") from None
        self.bytes_sent += _HEAD + len(data)
