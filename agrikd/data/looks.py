"""One look at each photo: what kind of file it is, what is wrong with it, and a small picture to compare it by.

Looks are remembered in the cache, so a killed check goes on where it was and a grown dataset costs only what is new.
"""

from __future__ import annotations

import io
import json
import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from agrikd import console, files, image
from agrikd.errors import InputError, MissingExtraError, StorageError
from agrikd.types import Image

SIDE = 64
"""Pixels of a small picture's side; the photo is stretched to a square, as the loader does by default."""
TINY = 48
"""A photo with a shorter side below this many pixels shows no lesion."""

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP"}
_ORIENTATION, _TAKEN, _CAMERA, _EXIF_IFD, _BITS = 0x0112, 0x9003, 0x0110, 0x8769, 258
_SAVE_EVERY_S = 2.0
_ABSENT, _AGAIN = (-1, -1), (-2, -2)
"""Stamps of what is not there, and of what is there but could not be read this time: it is looked at again."""
_VERSION = 5
"""Of what a look says; another version looks again."""


@dataclass(frozen=True)
class Look:
    """What one photo is. height, width: pixels as shown, 0 if it cannot be decoded. brightness: mean, 0 to 255.

    taken: EXIF time as YYYY-MM-DDTHH:MM:SS, or "". camera: EXIF model, or "". defects: kinds of `DEFECTS`.
    """

    path: str
    sha256: str = ""
    size_bytes: int = 0
    height: int = 0
    width: int = 0
    brightness: float = 0.0
    taken: str = ""
    camera: str = ""
    defects: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        return self.height > 0


BROKEN = {
    "missing": "is not there",
    "empty": "is empty (0 bytes)",
    "truncated": "is cut short: the end of the picture is missing",
    "too large": "has too many pixels to be read: shrink it",
    "unreadable": "cannot be decoded as a picture",
}
"""Defects that no training survives."""
ODD = {
    "tiny": f"has a side shorter than {TINY} pixels",
    "cmyk": "is in printer's colours (CMYK): readers disagree about its colours",
    "16-bit": "has 16 bits a colour: read as 8, the rest is lost",
    "animated": "holds several pictures: only the first is read",
    "misnamed": "is another kind of file than its name says",
    "turned": "is turned by EXIF: tools that ignore EXIF show it lying",
}
"""Defects that agrikd reads through, and that other tools, or a person, may stumble over."""


class Looks:
    """The remembered looks at the photos below `root`; a photo is looked at again when its size or time changes.

    Use as a context; one process at a time writes, others wait. Raises `StorageError` where the disk is full.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        name = files.digest([str(root.resolve()), _VERSION])[:32]
        self.path = files.cache_folder() / "looks" / f"{name}.sqlite"

    def __enter__(self) -> Looks:
        with files.storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS looks"
                " (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, look TEXT, small BLOB)"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def at(self, paths: Sequence[str], workers: int = 1) -> list[Look]:
        """A look at each path (relative to `root`), new where there is none; decoded by `workers` threads."""
        known = self._known()
        stamps = {path: _stamp(self.root / path) for path in paths}
        missing = [path for path in stamps if path not in known or known[path][0] != stamps[path]]
        saved = time.monotonic()
        with self._errors(), self._connection:
            for (look, small), path in zip(self._new(missing, workers), missing, strict=True):
                stamp = _AGAIN if "missing" in look.defects and stamps[path] != _ABSENT else stamps[path]
                values = (path, *stamp, json.dumps(asdict(look)), small.tobytes())
                self._connection.execute("REPLACE INTO looks VALUES (?, ?, ?, ?, ?)", values)
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self._connection.commit()
                    saved = time.monotonic()
        known = self._known()
        return [_told(known[path][1]) for path in paths]

    def small(self, paths: Sequence[str]) -> Image:
        """uint8 [N, SIDE, SIDE, 3] of paths that were looked at; black where the photo cannot be read."""
        found = np.zeros((len(paths), SIDE, SIDE, 3), np.uint8)
        with closing(self._connection.cursor()) as cursor:
            for at, path in enumerate(paths):
                (blob,) = cursor.execute("SELECT small FROM looks WHERE path = ?", (path,)).fetchone()
                found[at] = np.frombuffer(blob, np.uint8).reshape(SIDE, SIDE, 3)
        return found

    def _known(self) -> dict[str, tuple[tuple[int, int], str]]:
        rows = self._connection.execute("SELECT path, size, changed, look FROM looks")
        return {path: ((size, changed), look) for path, size, changed, look in rows}

    def _new(self, paths: Sequence[str], workers: int) -> Iterator[tuple[Look, Image]]:
        with ThreadPoolExecutor(workers) as pool:
            rest = iter(console.track(paths, "look at photos"))
            waiting: list[Future[tuple[Look, Image]]] = []
            for path in rest:
                waiting.append(pool.submit(look, self.root, path))
                if len(waiting) > 4 * workers:
                    yield waiting.pop(0).result()
            yield from (done.result() for done in waiting)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            mend = "free some space, or delete the file: it is only a memory of photos that were looked at"
            raise StorageError(f"{self.path}: cannot be used ({error})\n    → {mend}") from None


def look(root: Path, path: str) -> tuple[Look, Image]:
    """Read, hash and decode one photo. Never raises for what is wrong with the photo: that is in the look."""
    small = np.zeros((SIDE, SIDE, 3), np.uint8)
    try:
        data = files.read_bytes(root / path)
    except InputError:
        return Look(path, defects=("missing",)), small
    sha256 = files.sha256(data)
    if not data:
        return Look(path, sha256, defects=("empty",)), small
    try:
        pixels = image.decode(data, path)
    except InputError:
        return Look(path, sha256, len(data), defects=(_broken(data),)), small
    small = image.resize(pixels, (SIDE, SIDE))
    taken, camera, odd = _read_head(data, path)
    if min(pixels.shape[:2]) < TINY:
        odd = ("tiny", *odd)
    height, width = pixels.shape[:2]
    return Look(path, sha256, len(data), height, width, float(small.mean()), taken, camera, odd), small


def _broken(data: bytes) -> str:
    """The kind of `BROKEN` of what cannot be decoded."""
    if image.is_cut_short(data):
        return "truncated"
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pillow.open(io.BytesIO(data))
    except pillow.DecompressionBombError:
        return "too large"
    except Exception:  # what is no picture is refused in many ways
        pass
    return "unreadable"


def _pillow() -> ModuleType:
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise MissingExtraError("Pillow", "check") from None
    return Pillow


def _read_head(data: bytes, path: str) -> tuple[str, str, tuple[str, ...]]:
    """(time taken, camera, odd kinds) as the file's head tells them; a head that lies is no reason to stop."""
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = pillow.open(io.BytesIO(data))
            exif = picture.getexif()
            detail = exif.get_ifd(_EXIF_IFD)
            pages = getattr(picture, "n_frames", 1)
    except Exception:  # OpenCV could read the pixels; whatever Pillow stumbles over in the head tells us nothing
        return "", "", ()
    suffix = path.rpartition(".")[2].casefold()
    found = {
        "cmyk": picture.mode == "CMYK",
        "16-bit": _sixteen_bits(data, picture),
        "animated": pages > 1 and picture.format != "MPO",
        "misnamed": _FORMATS.get(suffix) != {"MPO": "JPEG"}.get(str(picture.format), picture.format),
        "turned": exif.get(_ORIENTATION, 1) not in (0, 1),
    }
    return _time(detail.get(_TAKEN)), str(exif.get(_CAMERA, "")).strip("\0 "), tuple(k for k, v in found.items() if v)


def _sixteen_bits(data: bytes, picture: Any) -> bool:
    """Pillow says "RGB" of a 16-bit colour PNG: the depth stands in the file (PNG 11.2.2, byte 24)."""
    if picture.format == "PNG":
        return len(data) > 24 and data[24] == 16
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(_BITS, (8,))
        return bool(max(bits if isinstance(bits, tuple) else (bits,)) > 8)
    return False


def _time(text: Any) -> str:
    """EXIF's YYYY:MM:DD HH:MM:SS as ISO 8601; "" for what is no time."""
    try:
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return ""


def _stamp(path: Path) -> tuple[int, int]:
    """(size, time of change in ns); `_ABSENT` for a file that is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return _ABSENT
    return found.st_size, found.st_mtime_ns


def _told(text: str) -> Look:
    values = json.loads(text)
    return Look(**{**values, "defects": tuple(values["defects"])})
