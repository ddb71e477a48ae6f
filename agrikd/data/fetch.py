"""One file over HTTP: it goes on where it stopped, and stops where a server lies.

`FILE.part` grows until the file is whole. It goes on by Range where the server names the version that it sends, and
If-Range makes it begin anew where that version is gone (RFC 9110, 13.1.5).
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from agrikd import __version__, console, files
from agrikd.data import unpack
from agrikd.data.cards import Download
from agrikd.errors import InputError, Problem

_MB = 10**6
_CHUNK = 1 << 16
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be others in a while."""


@dataclass(frozen=True)
class Limits:
    """timeout_s: of one read. tries: in a row that each come less than `worth_bytes` further. max_bytes: of one file
    whose size nobody says. wait: sleeps that many seconds between tries (1, 2, 4, … at most 30)."""

    timeout_s: float = 60.0
    tries: int = 6
    worth_bytes: int = 1 << 20
    redirects: int = 5
    max_bytes: int = 50 * 10**9
    wait: Callable[[float], None] = time.sleep


class _DroppedError(Exception):
    """Another try may help."""


class _RefusedError(Exception):
    """No further try helps."""


def fetch(item: Download, path: Path, limits: Limits) -> None:
    """Download to `path` by way of its part file, in as many tries as come further.

    Raises `InputError` with the address, what is wrong with it, and where a file from elsewhere is to be put; OSError
    where the disk is full. What was downloaded is kept, unless it is not the file.
    """
    part = part_of(path)
    failures, furthest = 0, length(part_of(path))
    with console.job(f"download {item.file}, MB") as progress:
        while True:
            try:
                _attempt(item, part, limits, progress)
                break
            except _RefusedError as error:
                mend = f"if you have the file from elsewhere, put it at {path}, then run the same command"
                raise InputError(Problem(item.url, str(error), mend)) from None
            except _DroppedError as error:
                failures = 0 if length(part) >= furthest + limits.worth_bytes else failures + 1
                furthest = max(furthest, length(part))  # beginning anew is no progress
                if failures >= limits.tries:
                    said = f"cannot be had: {error}, {failures} times in a row ({length(part):,} bytes are kept)"
                    mend = f"the same command goes on; or put the whole file at {path} by hand, then run it"
                    raise InputError(Problem(item.url, said, mend)) from None
            limits.wait(min(2.0 ** max(failures - 1, 0), 30.0))
    with part.open("rb") as whole:
        os.fsync(whole.fileno())
    part.replace(path)
    _forget(part)


def _attempt(item: Download, part: Path, limits: Limits, progress: Callable[..., None]) -> None:
    """Bring the part file further, to its end at best."""
    version = _version_file(part).read_text() if part.exists() and _version_file(part).exists() else ""
    have = length(part) if version else 0
    if have and have == item.size_bytes:
        return
    with _open(item.url, part, have, version, limits) as answer:
        start, total = _extent(answer, part, have, version)
        _refuse(item, answer, total, limits)
        files.require_room(part, (total or item.size_bytes or 0) - start)
        if start == 0:
            part.write_bytes(b"")
            _version_file(part).write_text(_version(answer))
        _append(item, answer, part, total or item.size_bytes, limits, progress)


def _append(
    item: Download, answer: HTTPResponse, part: Path, total: int | None, limits: Limits, progress: Callable[..., None]
) -> None:
    done, most, wrong = length(part), total or limits.max_bytes, None
    with part.open("ab") as out:
        for chunk in _chunks(answer):
            if done == 0 and (wrong := not_wanted(item, chunk)):
                break
            done += len(chunk)
            if done > most:
                wrong = f"sends more than {most:,} bytes"
                break
            out.write(chunk)
            progress(done // _MB, total and total // _MB)
    if wrong:
        _forget(part)
        raise _RefusedError(wrong)
    if done < (total or 0):
        raise _DroppedError(f"the connection ended at byte {done:,} of {total:,}")


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _DroppedError(f"the connection broke ({error or type(error).__name__})") from None
        if not chunk:
            return
        yield chunk


def _extent(answer: HTTPResponse, part: Path, have: int, version: str) -> tuple[int, int | None]:
    """(the first byte that the answer brings, the bytes of the whole file where it says)."""
    if answer.status == 206:
        stands = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if stands is None or int(stands[1]) != have or _version(answer) not in ("", version):
            _forget(part)
            raise _DroppedError("the file changed on the server while it was downloaded")
        return have, int(stands[2]) if stands[2] != "*" else None
    if answer.status != 200:
        raise _RefusedError(f"answered {answer.status} {answer.reason}")
    return 0, answer.length


def _refuse(item: Download, answer: HTTPResponse, total: int | None, limits: Limits) -> None:
    """Raise `_RefusedError` where an answer's head says that it is not the file."""
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _RefusedError("answered with a web page, not the file")
    if total is not None and item.size_bytes is not None and total != item.size_bytes:
        raise _RefusedError(f"is {total:,} bytes long, the card says {item.size_bytes:,}")
    if total is not None and total > limits.max_bytes:
        raise _RefusedError(f"is {total:,} bytes long, at most {limits.max_bytes:,} are taken")


def _open(url: str, part: Path, have: int, version: str, limits: Limits) -> HTTPResponse:
    headers = {"User-Agent": f"agrikd/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        answer: HTTPResponse = build_opener(_Redirects(limits.redirects)).open(
            Request(url, headers=headers), timeout=limits.timeout_s
        )
        return answer
    except HTTPError as error:
        error.close()
        if error.code == 416:
            _forget(part)
        if error.code in (*_AGAIN, 416):
            raise _DroppedError(f"it answered {error.code} {error.reason}") from None
        if "infinite loop" in str(error.reason):
            raise _RefusedError("redirects without end") from None
        if 300 < error.code < 400:
            raise _RefusedError(f"redirects to {error.url}, which is not safe") from None
        raise _RefusedError(f"answered {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError):
            raise _RefusedError(f"cannot be reached ({reason})") from None
        raise _DroppedError(f"it cannot be reached ({reason})") from None


class _Redirects(HTTPRedirectHandler):
    """So many, to HTTP alone, and never from HTTPS to less."""

    def __init__(self, most: int) -> None:
        self.max_redirections = most  # type: ignore[misc]

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.startswith("https://" if req.type == "https" else ("http://", "https://")):
            raise _RefusedError(f"redirects to {newurl}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _version(answer: HTTPResponse) -> str:
    """What If-Range takes: a strong ETag, else the date; "" where there is neither and no going on."""
    etag: str = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _version_file(part: Path) -> Path:
    return part.with_name(f".{part.name}.version")


def part_of(path: Path) -> Path:
    """Where a file grows until it is whole."""
    return path.with_name(f"{path.name}.part")


def length(part: Path) -> int:
    """Bytes of a file; 0 where it is not."""
    return part.stat().st_size if part.exists() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def not_wanted(item: Download, head: bytes) -> str | None:
    """What is wrong with a file that begins with `head`."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file"
    if item.unpack != "none" and not unpack.looks_like(item.unpack, head):
        return f"does not begin as a {item.unpack} file does"
    return None
