"""Unpacking archives from strangers: nothing leaves the folder, and nothing grows without bound.

An archive holds plain files and folders, or it is refused: links, devices, paths that lead out, and names that only
capitals tell apart are reported together before the first byte is written. Sizes are counted as they come, since
what an archive says of itself is not to be trusted.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal

from agrikd import files
from agrikd.errors import InputError, Problem

Kind = Literal["zip", "tar"]
Progress = Callable[[int, int], None]
"""Told (done, total) in bytes."""

MAGIC = {"zip": (b"PK\x03\x04", b"PK\x05\x06"), "tar": (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")}
"""How a file of that kind begins; a tar that is not compressed begins with a name, and says "ustar" at byte 257."""
_OPENERS: dict[bytes, Callable[..., Any]] = dict(zip(MAGIC["tar"], (gzip.open, bz2.open, lzma.open), strict=True))
_CHUNK = 1 << 20
_ELSEWHERE = "the archive is not to be trusted: fetch it from its authors"


@dataclass(frozen=True)
class Limits:
    """files, bytes: of one archive, unpacked. ratio: unpacked bytes to packed ones."""

    files: int = 1_000_000
    bytes: int = 200 * 10**9
    ratio: int = 200


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: str
    """"file", "folder", or why it is neither."""
    size: int
    open: Callable[[], IO[bytes] | None]


def looks_like(kind: Kind, head: bytes) -> bool:
    """Whether a file that begins with `head` (262 bytes or all of it) may be of that kind."""
    return head.startswith(MAGIC[kind]) or (kind == "tar" and head[257:262] == b"ustar")


def unpack(archive: Path, kind: Kind, into: Path, limits: Limits, progress: Progress) -> tuple[int, int]:
    """Unpack into a folder that nobody else writes to; returns (files, bytes).

    Raises `InputError` where the archive is damaged or not to be trusted, with every bad name; OSError where the
    disk has no room. What was written until then is the caller's to remove.
    """
    bound = min(limits.bytes, limits.ratio * archive.stat().st_size)
    with _readable(archive):
        total = _check(archive, _entries(archive, kind, bound), limits, bound)
        files.require_room(into / "x", total)
        count = done = 0
        for entry in _entries(archive, kind, bound):
            target = into / entry.name
            if _litter(entry):
                continue
            if entry.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            for chunk in _copy(entry, target):
                done += chunk
                if done > bound:
                    raise InputError(_bomb(archive, bound))
            count += 1
            progress(done, total)
    return count, done


def _copy(entry: _Entry, target: Path) -> Iterator[int]:
    """Write one file, and yield the bytes of each chunk before they are written."""
    source = entry.open()
    if source is None:
        raise tarfile.ReadError(f"{entry.name} has no content")
    with source, target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            yield len(chunk)
            out.write(chunk)


def _check(archive: Path, entries: Iterator[_Entry], limits: Limits, bound: int) -> int:
    """Look at every name before anything is written; returns the bytes that the archive says it holds."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    total = count = 0
    for entry in entries:
        count, total = count + 1, total + entry.size
        wrong = _wrong(entry)
        if wrong is None and entry.kind == "file":
            key = unicodedata.normalize("NFC", str(PurePosixPath(entry.name))).casefold()
            if key in seen:
                wrong = f"has the name of {seen[key]}, capitals aside" if seen[key] != entry.name else "stands twice"
            seen[key] = entry.name
        if wrong:
            problems.append(Problem(f"{archive}: {entry.name[:200]!r}", wrong, _ELSEWHERE))
        if count > limits.files:
            raise InputError(Problem(str(archive), f"holds more than {limits.files:,} files", _ELSEWHERE))
        if total > bound:
            raise InputError(_bomb(archive, bound))
    if problems:
        raise InputError(problems)
    if not seen:
        raise InputError(Problem(str(archive), "holds no files", _ELSEWHERE))
    return total


def _wrong(entry: _Entry) -> str | None:
    name = entry.name
    if entry.kind not in ("file", "folder"):
        return f"is {entry.kind}"
    if name.startswith("/") or PureWindowsPath(name).drive or "\\" in name:
        return "is an absolute path, or one of another system"
    if ".." in name.split("/") or (entry.kind == "file" and not name.strip("/.")):
        return "leads out of the folder"
    return None


def _litter(entry: _Entry) -> bool:
    """What a Mac adds to every archive, the same names in each."""
    parts = PurePosixPath(entry.name).parts
    return "__MACOSX" in parts or parts[-1:] == (".DS_Store",)


def _bomb(archive: Path, bound: int) -> Problem:
    packed = archive.stat().st_size
    return Problem(str(archive), f"unpacks to more than {bound:,} bytes, from {packed:,}", _ELSEWHERE)


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """A damaged archive is a mistake in the file, whatever its reader raises."""
    damage = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError)
    unforeseen = (ValueError, LookupError, ArithmeticError, RuntimeError)  # of the readers, on bytes that make no sense
    clash = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
    try:
        yield
    except (*damage, *unforeseen, OSError) as error:
        if isinstance(error, OSError) and error.errno not in clash:
            raise  # the disk's, not the archive's
        said = str(error) or type(error).__name__
        raise InputError(Problem(str(archive), f"is damaged ({said})", "fetch it again")) from None


def _entries(archive: Path, kind: Kind, bound: int) -> Iterator[_Entry]:
    return _zip_entries(archive) if kind == "zip" else _tar_entries(archive, bound)


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            yield _Entry(info.filename, _zip_kind(info), info.file_size, partial(opened.open, info))


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "neither a file nor a folder"
    return "encrypted" if info.flag_bits & 1 else "folder" if info.is_dir() else "file"


def _tar_entries(archive: Path, bound: int) -> Iterator[_Entry]:
    with archive.open("rb") as raw:
        head = raw.read(8)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), io.open)
    with opener(archive, "rb") as stream:
        bounded = _Bounded(stream, archive, bound)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Header) as opened:
            for member in opened:
                yield _Entry(member.name, _tar_kind(member), member.size, partial(opened.extractfile, member))
        while bounded.read(_CHUNK):  # the sum of a compressed stream stands at its end
            pass


class _Header(tarfile.TarInfo):
    """A member's header. An archive ends with a block of zeros: tarfile takes any header that is cut for its end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"{error} where a file or the end should be") from None


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if member.isdir():
        return "folder"
    return "file" if member.isreg() and not member.issparse() else "neither a file nor a folder"


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it has given more than `bound`: headers can be bombs too."""

    def __init__(self, stream: IO[bytes], archive: Path, bound: int) -> None:
        self._stream, self._archive, self._bound = stream, archive, bound
        self._left = bound + 1024 * 1024  # headers and padding

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise InputError(_bomb(self._archive, self._bound))
        return data
