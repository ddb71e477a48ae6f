"""Pixels: the one place that decodes, turns by EXIF, converts to RGB and resizes.

Loader, predictor and camera all come through here, so that a model sees in the field what it saw in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar, get_args, overload

import numpy as np

from agrikd import files
from agrikd.errors import InputError, MissingExtraError, Problem
from agrikd.types import Fit, Image

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 200_000_000
"""Larger pictures are refused: no field camera makes them, a decompression bomb does."""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_BEGINS = (_JPEG, _PNG, b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF", b"GIF8")
_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers: the start of the entropy-coded scan, and of the frame that says height and width."""


def opencv() -> ModuleType:
    """OpenCV, imported late: a `*` module must import with numpy alone."""
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("OpenCV", "train") from None
    return cv2


def decode(data: bytes, where: str) -> Image:
    """Decode a picture file's bytes to uint8 [H, W, 3] RGB, turned as EXIF says, 8 bits, alpha dropped.

    Raises `InputError` naming `where` if the bytes are empty, cut short, too large, or no picture.
    """
    _require_end(data, where)
    _require_size(data, where)
    cv2 = opencv()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # a board's OpenCV has no _RGB
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint8:
        raise _no_picture(where)
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise _too_large(where, pixels.shape)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def require_whole(data: bytes, where: str) -> None:
    """Raise `InputError` for what `decode` would refuse, as far as the first and last bytes tell it: without OpenCV."""
    _require_end(data, where)
    _require_size(data, where)
    if not data.startswith(_BEGINS):
        raise _no_picture(where)


def _require_end(data: bytes, where: str) -> None:
    if not data:
        raise InputError(Problem(where, "is empty (0 bytes)", "copy the photo again"))
    if is_cut_short(data):
        raise InputError(Problem(where, "is cut short: the end of the picture is missing", "copy it again"))


def _require_size(data: bytes, where: str) -> None:
    if (size := _declared_size(data))[0] * size[1] > MAX_PIXELS:
        raise _too_large(where, size)


def _no_picture(where: str) -> InputError:
    return InputError(Problem(where, "cannot be decoded as a picture", f"expected {', '.join(SUFFIXES)}"))


def read(path: Path) -> Image:
    """`decode` the file at `path`."""
    return decode(files.read_bytes(path), str(path))


def read_all(paths: Sequence[Path]) -> list[Image]:
    """`read` each; one `InputError` names all that cannot be read."""
    return _each(paths, read)


class Photos(Sequence[Image]):
    """Photos that are read whenever they are asked for: hundreds of a camera's are more than a board's memory."""

    def __init__(self, readers: Sequence[Callable[[], Image]]) -> None:
        self._readers = readers

    @classmethod
    def at(cls, paths: Sequence[Path]) -> Photos:
        """One `InputError` names all that `require_whole` refuses, before the first is read."""
        _each(paths, lambda path: require_whole(files.read_bytes(path), str(path)))
        return cls([partial(read, path) for path in paths])

    def __len__(self) -> int:
        return len(self._readers)

    @overload
    def __getitem__(self, place: int) -> Image: ...
    @overload
    def __getitem__(self, place: slice) -> list[Image]: ...
    def __getitem__(self, place: int | slice) -> Image | list[Image]:
        if isinstance(place, slice):
            return [one() for one in self._readers[place]]
        return self._readers[place]()


def _each(paths: Sequence[Path], done: Callable[[Path], T]) -> list[T]:
    """What is done with each; one `InputError` names all that it fails for."""
    made: list[T] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            made.append(done(path))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return made


def photos_of(paths: Sequence[Path]) -> list[Path]:
    """The photos themselves and, in place of a folder, those in it or below, by name; what is hidden is not looked at.

    Raises one `InputError` naming the folders without one.
    """
    found = {path: _below(path) if path.is_dir() else [path] for path in paths}
    if empty := [path for path, photos in found.items() if not photos]:
        mend = f"expected {', '.join(SUFFIXES)}"
        raise InputError(Problem(str(path), "holds no photos", mend) for path in empty)
    return [photo for photos in found.values() for photo in photos]


def _below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.casefold() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def encode_jpeg(image: Image, quality: int = 90) -> bytes:
    """JPEG bytes of an RGB image; quality 0 to 100."""
    cv2 = opencv()
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV could not encode a uint8 RGB image"
    return bytes(data)


def encode_png(image: Image) -> bytes:
    """PNG bytes of an RGB image: the pixels come back as they are."""
    cv2 = opencv()
    done, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done, "OpenCV could not encode a uint8 RGB image"
    return bytes(data)


def write_jpeg(path: Path, image: Image, quality: int = 90) -> None:
    with files.storage_errors(path):
        path.write_bytes(encode_jpeg(image, quality))


def fit(image: Image, size: tuple[int, int], mode: Fit = "stretch") -> Image:
    """Bring an image to `size` (height, width).

    "stretch" keeps all of the picture and lets its aspect go, "crop" keeps the aspect and the centre, "pad"
    keeps both and fills with grey. Shrinking skips no pixel, so that a thin lesion does not vanish between
    samples.
    """
    if mode not in get_args(Fit):
        raise ValueError(f"fit is {mode!r}, expected one of {get_args(Fit)}")
    height, width = size
    if mode == "crop":
        image = _centre_crop(image, height / width)
    elif mode == "pad":
        image = _pad(image, height / width)
    return resize(image, size)


RESIZE = 3
"""Changes with whatever changes the pixels that `resize` gives: a part of the key of what is kept of them."""


def resize(image: Image, size: tuple[int, int]) -> Image:
    """Resize to (height, width), so that no pixel falls between two samples.

    An even side is halved while that leaves it as large as asked for; what is then within `_NEAR` of its size is
    interpolated, and what is not is averaged over areas first. OpenCV's bit-exact interpolation gives a board the
    pixels that the lab had, and takes half a millisecond for a camera's frame, where areas alone take three.
    """
    cv2 = opencv()
    while (halved := _halved(image, size)) != image.shape[:2]:
        image = _interpolated(image, halved)
    sides = list(zip(image.shape[:2], size, strict=True))
    if any(side > _NEAR * wanted for side, wanted in sides):
        height, width = (min(one) for one in sides)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image if image.shape[:2] == tuple(size) else _interpolated(image, size)


_NEAR = 5 / 3
"""The farthest from a sample that a pixel then lies is 5/6: it counts for a sixth of it or more."""


def _halved(image: Image, size: tuple[int, int]) -> tuple[int, ...]:
    sides = zip(image.shape[:2], size, strict=True)
    return tuple(side // 2 if side % 2 == 0 and side // 2 >= wanted else side for side, wanted in sides)


def _interpolated(image: Image, size: tuple[int, ...]) -> Image:
    cv2 = opencv()
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR_EXACT))


def _centre_crop(image: Image, aspect: float) -> Image:
    height, width = image.shape[:2]
    keep_h, keep_w = min(height, round(width * aspect)), min(width, round(height / aspect))
    top, left = (height - keep_h) // 2, (width - keep_w) // 2
    return image[top : top + max(keep_h, 1), left : left + max(keep_w, 1)]


def _pad(image: Image, aspect: float) -> Image:
    height, width = image.shape[:2]
    full_h, full_w = max(height, round(width * aspect)), max(width, round(height / aspect))
    padded = np.full((full_h, full_w, 3), 114, np.uint8)
    top, left = (full_h - height) // 2, (full_w - width) // 2
    padded[top : top + height, left : left + width] = image
    return padded


def _too_large(where: str, size: Sequence[int]) -> InputError:
    return InputError(Problem(where, f"has {size[1]} × {size[0]} pixels", "shrink it first"))


def is_cut_short(data: bytes) -> bool:
    """OpenCV fills the lost part of a cut JPEG or PNG with grey and says nothing: look for the end mark.

    What follows it is not looked at: a phone's motion photo carries a film there.
    """
    if data.startswith(_JPEG):
        scan = next((at for marker, at in _jpeg_segments(data) if marker == _SCAN), len(data))
        return data.find(b"\xff\xd9", scan) < 0
    if data.startswith(_PNG):
        return b"IEND\xaeB`\x82" not in data
    return False


def _declared_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the head of a JPEG or PNG says, before memory is given to the pixels; else (0, 0)."""
    if data.startswith(_JPEG):
        frame = next((at for marker, at in _jpeg_segments(data) if marker in _FRAMES), len(data))
        return int.from_bytes(data[frame + 1 : frame + 3], "big"), int.from_bytes(data[frame + 3 : frame + 5], "big")
    if data.startswith(_PNG):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    return 0, 0


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where its content starts) up to the first scan; the preview inside an EXIF segment is stepped over."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # padding
            at += 1
            continue
        yield marker, at + 4
        if marker == _SCAN:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
