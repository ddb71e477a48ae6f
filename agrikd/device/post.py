"""What the device's two letter carriers share: options, a server over HTTP, the agent over its socket, and patience."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from agrikd import files
from agrikd.device.tether import die_with_parent
from agrikd.errors import DeviceError, InputError, Problem
from agrikd.wire import MAX_BYTES, Wire, WireError

T = TypeVar("T")
PIECE_BYTES = 16 * 2**10
LONGEST_WAIT_S = 60.0
_SILENCE_S = 20.0
_LITTLE_BYTES = 4096
"""What is sent again at once where a connection ends under it. More is for the sender to think over: perhaps the link
takes no piece of that size."""
_MOST_ANSWER_BYTES = MAX_BYTES + 2**20
"""A picture as large as one may be, or as much of words."""
_WORTH_PACKING_BYTES = 512


class AwayError(DeviceError):
    """Nobody answers, or not as was agreed: try again in a while. wait_s: what the other side asked for."""

    wait_s = 0.0


def started(kind: type[T], words: list[str]) -> T:
    """What a carrier was told, as JSON in its only word or else on stdin; from here on it dies with who started it.

    SIGTERM keeps its own way, which ends at once: there is nothing to end in order, as the server knows what it has.
    """
    die_with_parent()
    try:
        return kind(**json.loads(words[0] if words else sys.stdin.read()))
    except (ValueError, TypeError) as error:
        raise InputError(Problem("the options", f"are not understood ({error})", "update agrikd's agent")) from None


class Patience:
    """How long to wait after a failure: twice as long each time, up to a minute, no two devices alike."""

    def __init__(self) -> None:
        self._failures = 0

    def worked(self) -> None:
        self._failures = 0

    def failed(self, error: Exception) -> float:
        """Seconds."""
        self._failures = min(self._failures + 1, 10)
        own = min(LONGEST_WAIT_S, float(2 ** (self._failures - 1))) * random.uniform(0.5, 1)
        return min(LONGEST_WAIT_S, max(own, error.wait_s if isinstance(error, AwayError) else 0))


class Bucket:
    """Holds what is sent to so many bytes a second, over any ten seconds; None: as many as the link takes."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = 0.95 * bytes_per_s if bytes_per_s else 0.0  # the bucket's own half second counts too
        self._most = 0.5 * bytes_per_s if bytes_per_s else float("inf")
        self._left, self._then = self._most, time.monotonic()
        self.piece = max(1, int(min(PIECE_BYTES, self._most)))

    def take(self, count: int) -> None:
        """Wait until `count` bytes, of `piece` at most, may be sent."""
        if not self._rate:
            return
        now = time.monotonic()
        self._left = min(self._most, self._left + self._rate * (now - self._then)) - count
        self._then = now
        if self._left < 0:
            time.sleep(-self._left / self._rate)


class _Link(http.client.HTTPConnection):
    """A connection whose every byte, heads included, goes through the bucket."""

    def __init__(self, where: tuple[str, int], tls: ssl.SSLContext | None, bucket: Bucket) -> None:
        super().__init__(*where, timeout=_SILENCE_S)
        self._tls, self._bucket = tls, bucket

    def connect(self) -> None:
        super().connect()
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def send(self, data: Any) -> None:
        for start in range(0, len(data), self._bucket.piece):
            piece = data[start : start + self._bucket.piece]
            self._bucket.take(len(piece))
            super().send(piece)

    @property
    def ended(self) -> bool:
        """Whether the other side closed it while nothing was asked."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


@dataclass(frozen=True)
class Answer:
    """status: HTTP's. wait_s: as Retry-After says."""

    status: int
    body: bytes
    wait_s: float

    def json(self) -> dict[str, Any]:
        """Raises `AwayError` where it is no object: a captive portal's page, perhaps."""
        try:
            said = json.loads(self.body)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise AwayError(f"the server's answer ({self.status}) is none of agrikd's")
        return said

    def away(self) -> AwayError:
        """This answer as a failure, in the server's words."""
        said = self.body[:500].decode(errors="replace")
        with contextlib.suppress(AwayError):
            said = str(self.json().get("detail", said))
        error = AwayError(f"the server says {self.status}: {said}")
        error.wait_s = self.wait_s
        return error


class Server:
    """agrikd serve, under its URL. ca: a file with the certificate that it is trusted by, where the system's do not do.
    bytes_per_s: of all that is sent to it. packs: JSON by gzip, which an agent's live view does not read."""

    def __init__(
        self, url: str, token_file: str, ca: str = "", bytes_per_s: float | None = None, packs: bool = True
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(Problem(url, "is no address of a server", "as in https://farm.example:8700"))
        safe = parts.scheme == "https"
        self.name = parts.netloc.rpartition("@")[2]
        self._where = parts.hostname, parts.port or (443 if safe else 80)
        self._below, self._token_file = parts.path.rstrip("/"), Path(token_file)
        self._tls = ssl.create_default_context(cafile=ca or None) if safe else None
        self._bucket = Bucket(bytes_per_s)
        self._link: _Link | None = None
        self._packs = packs

    def call(self, method: str, path: str, body: bytes | dict[str, Any] = b"", answer_s: float = _SILENCE_S) -> Answer:
        """One question: bytes go as they are, a dict as JSON. Raises `AwayError` where nobody answers in `answer_s`."""
        head = {"Authorization": f"Bearer {files.read_text(self._token_file).strip()}"}
        data = body if isinstance(body, bytes) else b""
        if isinstance(body, dict):
            data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
            head["Content-Type"] = "application/json"
            if self._packs and len(data) > _WORTH_PACKING_BYTES:
                data, head["Content-Encoding"] = gzip.compress(data, 6), "gzip"
        again = self._link is not None and len(data) <= _LITTLE_BYTES
        try:
            return self._call(method, self._below + path, data, head, answer_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            if again and isinstance(error, ConnectionError):  # the server closed it while the question was on its way
                return self.call(method, path, body, answer_s)
            raise AwayError(f"{self.name} does not answer ({str(error) or type(error).__name__})") from None

    def _call(self, method: str, path: str, body: bytes, head: dict[str, str], answer_s: float) -> Answer:
        if self._link and self._link.sock and self._link.ended:
            self.close()
        link = self._link = self._link or _Link(self._where, self._tls, self._bucket)
        link.request(method, path, body or None, head)
        link.sock.settimeout(answer_s)
        end, parts = time.monotonic() + answer_s + _SILENCE_S, []
        with link.getresponse() as said:
            while part := said.read1(PIECE_BYTES):
                parts.append(part)
                if time.monotonic() > end or sum(map(len, parts)) > _MOST_ANSWER_BYTES:
                    raise OSError("its answer does not end")
            wait = said.getheader("Retry-After", "")
            closes = said.will_close
        if closes:
            self.close()
        else:
            link.sock.settimeout(_SILENCE_S)
        return Answer(said.status, b"".join(parts), float(wait) if wait.isdecimal() else 0.0)

    def close(self) -> None:
        """So that the next question begins a connection."""
        if self._link:
            self._link.close()
        self._link = None


class AgentLink:
    """Questions to the agent, over one connection; what broke is begun anew by the next."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._socket: socket.socket | None = None
        self._wire: Wire | None = None

    def ask(self, **what: Any) -> dict[str, Any]:
        """Raises `AwayError` where the agent does not answer."""
        return self._ask(what)[0]

    def picture(self, **what: Any) -> tuple[dict[str, Any], bytes] | None:
        """What is said of a frame, and its JPEG; None where it is absent."""
        said, data = self._ask(what)
        return None if data is None else (said, data)

    def _ask(self, what: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        """The agent hangs up on who says nothing for a while: then once more, on another connection."""
        kept = self._wire is not None
        try:
            wire = self._wire or self._open()
            wire.say(**what)
            said = wire.hear()
            data = wire.receive() if "frame" in said else None
        except (OSError, WireError) as error:
            self.close()
            if kept:
                return self._ask(what)
            raise AwayError(f"the agent does not answer ({error})") from None
        if isinstance(data, dict):
            self.close()
            raise AwayError("the agent sent words where a picture was expected")
        return said, data

    def _open(self) -> Wire:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout_s)
        self._socket.connect(self._path)
        self._wire = Wire(self._socket.makefile("rb"), self._socket.makefile("wb"))
        return self._wire

    def close(self) -> None:
        """Hang up."""
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._socket = self._wire = None
