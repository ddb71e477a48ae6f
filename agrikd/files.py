"""Writing files so that a reader sees the old one or the new one whole, and digests of what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agrikd.errors import InputError, Problem, StorageError

_ELSEWHERE = "choose another place"
_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ("the disk is full", "free some space, then run this again")),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ("may not be written", _ELSEWHERE)),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), ("a file is in the way of a folder", _ELSEWHERE)),
    errno.EIO: ("the disk failed", "look what the system's log says of the disk, or choose another place"),
    errno.EISDIR: ("a folder is in the way of a file", _ELSEWHERE),
    errno.EFBIG: ("the file would be too large for this disk", "ask for less, as with fewer data.views"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}
"""What the operating system's refusals mean to a person, and the way out of each."""


@contextmanager
def storage_errors(path: Path | None = None) -> Iterator[None]:
    """Turn the operating system's refusals to write at `path` (by default, where it says) into one `StorageError`."""
    try:
        yield
    except OSError as error:
        where = path or error.filename
        if where is None or error.errno not in _REFUSALS:
            raise
        said, mend = _REFUSALS[error.errno]
        raise StorageError(f"{where}: {said} ({error.strerror})\n    → {mend}") from error


@contextmanager
def replacing(path: Path, secret: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; a clean exit syncs and renames it over `path`, else it goes.

    secret: for its owner alone, from its first byte on.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o600 if secret else 0o666 & ~_umask())
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder that must appear whole; if another writer was first, theirs stays. An empty one
    makes room."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if not path.exists() or (path.is_dir() and not any(path.iterdir())):
                temporary.rename(path)
                sync(path.parent)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_room(path: Path, size_bytes: int) -> None:
    """For a writer that would not say that the disk is full: raises the operating system's error beforehand."""
    if shutil.disk_usage(path.parent).free < size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def require_free(folder: Path) -> None:
    """Raise `InputError` unless `folder` is absent or empty."""
    if folder.exists() and not folder.is_dir():
        raise InputError(Problem(str(folder), "is a file, not a folder", "choose another place"))
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(Problem(str(folder), "exists and is not empty", "choose a new folder, or empty it"))


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_secret(path: Path, text: str) -> None:
    """For its owner alone."""
    with replacing(path, secret=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def cache_folder() -> Path:
    """Where decoded pixels and features are kept: $AGRIKD_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agrikd"
    return Path(os.environ.get("AGRIKD_CACHE") or default)


def read_bytes(path: Path) -> bytes:
    """All of a file; raises `InputError` if it is absent or unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(Problem(str(path), "there is no such file", "look at the name and its folder")) from None
    except OSError as error:
        mend = "it must be a file that you may read"
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})", mend)) from None


def read_text(path: Path, mend: str = "") -> str:
    """A UTF-8 text file; raises `InputError` if it is absent, unreadable (`mend` is the way out) or not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(Problem(str(path), "there is no such file", mend)) from None
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})", mend)) from None
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), f"is not UTF-8 text (byte {error.start})", "save it as UTF-8")) from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        mend = "agrikd wrote it whole: copy it again"
        raise InputError(Problem(f"{path}:{error.lineno}", f"is not valid JSON ({error.msg})", mend)) from None


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, would survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file, whatever its size; raises `OSError`."""
    made = hashlib.sha256()
    with path.open("rb") as data:
        while part := data.read(2**20):
            made.update(part)
    return made.hexdigest()


def digest(value: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces): the same value, the same digest."""
    return sha256(canonical(value))


def canonical(value: Any) -> bytes:
    """A JSON value's one form: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _umask() -> int:
    """Linux says it; elsewhere it can only be asked for by setting it, for a moment and for all threads."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
