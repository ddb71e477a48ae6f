"""The same picture twice: byte for byte, or re-encoded, resized, cropped a little, made brighter or darker.

Candidates come from difference hashes (dHash: 256 signs of the horizontal gradient of a 17 × 16 picture) of each
whole picture against each other's whole and 25 windows of nine tenths its side, so that a crop meets the window it
was cut from. A candidate counts only when the two pictures, laid over each other, agree in their gradients:
the affine warp is found by enhanced correlation (Evangelidis & Psarakis 2008, doi:10.1109/TPAMI.2008.113).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agrikd import console, image
from agrikd.data.looks import SIDE, Look, Looks
from agrikd.types import Image

AGREEMENT = 0.86
"""Least correlation of gradients of one picture in two copies. On 3,674 leaf and field photos copies (JPEG at
quality 50, half size, a tenth of each side cut off, a fifth brighter or darker) reached 0.877 or more; different
photos of one leaf, or of like leaves, 0.841 or less."""

_BITS = 256
_WINDOW = 58
_MOST_BITS_APART = 70
_LEAST_LIKENESS = 0.55
_NEAREST = 8
_BLOCK = 16
_ALIGNED = 128
_KEPT_PICTURES = 4096
_STEPS, _CLOSE_ENOUGH, _BLUR = 40, 1e-3, 3

Signs = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two paths of one picture. agreement: correlation of gradients when laid over each other; 1 for equal bytes."""

    paths: tuple[str, str]
    kind: Literal["exact", "near"]
    agreement: float


@dataclass(frozen=True)
class _Candidate:
    """The whole of `whole` looks like a window of `other`."""

    whole: int
    other: int
    window: int


def find(looks: Looks, photos: Sequence[Look]) -> list[Pair]:
    """Every pair of copies among the readable photos. Of byte-identical photos the first stands for all."""
    copies: dict[str, list[str]] = defaultdict(list)
    for photo in photos:
        if photo.size_bytes:
            copies[photo.sha256].append(photo.path)
    exact = [Pair((paths[0], path), "exact", 1.0) for paths in copies.values() for path in paths[1:]]
    paths = [copies[photo.sha256][0] for photo in photos if photo.readable and copies[photo.sha256][0] == photo.path]
    return [*exact, *_near(looks, paths)]


def linked(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Paths joined by pairs, over however many steps."""
    sets: dict[str, list[str]] = {}
    for a, b in pairs:
        one, other = sets.setdefault(a, [a]), sets.setdefault(b, [b])
        if one is not other:
            one += other
            sets.update(dict.fromkeys(other, one))
    return list({id(found): found for found in sets.values()}.values())


def _near(looks: Looks, paths: Sequence[str]) -> list[Pair]:
    aligned = lru_cache(maxsize=_KEPT_PICTURES)(lambda at: _picture(looks.root, paths[at]))
    found: dict[tuple[int, int], float] = {}
    for one in _candidates(looks, paths):
        key = min(one.whole, one.other), max(one.whole, one.other)
        if found.get(key, 0.0) < AGREEMENT:
            found[key] = agreement(aligned(one.whole), aligned(one.other), one.window)
    return [Pair((paths[a], paths[b]), "near", score) for (a, b), score in sorted(found.items()) if score >= AGREEMENT]


def _candidates(looks: Looks, paths: Sequence[str]) -> Iterator[_Candidate]:
    """The nearest few of each picture that are near enough, by hash, then by the small pictures' gradients."""
    whole = np.empty((len(paths), _BITS), np.float32)
    for start in range(0, len(paths), 256):
        small = looks.small(paths[start : start + 256])
        whole[start : start + len(small)] = [_signs(_grey(picture)) for picture in small]
    for start in console.track(range(0, len(paths), _BLOCK), "compare photos"):
        pictures = [_grey(picture) for picture in looks.small(paths[start : start + _BLOCK])]
        signs = np.stack([_signs(window) for picture in pictures for window in _windows(picture)])
        apart = (_BITS - signs @ whole.T).reshape(len(pictures), -1, len(paths)) / 2
        for number, picture in enumerate(pictures):
            best = apart[number].argmin(0)
            nearest = np.take_along_axis(apart[number], best[None], 0)[0]
            nearest[start + number] = _BITS
            few = np.argpartition(nearest, _NEAREST)[:_NEAREST] if len(paths) > _NEAREST else np.arange(len(paths))
            near = [int(at) for at in few if nearest[at] <= _MOST_BITS_APART]
            for at, other in zip(near, looks.small([paths[at] for at in near]), strict=True):
                window = _windows(picture)[best[at]]
                if float(_gradients(window) @ _gradients(_grey(other))) >= _LEAST_LIKENESS:
                    yield _Candidate(at, start + number, int(best[at]))


def agreement(whole: Image, other: Image, window: int) -> float:
    """Correlation of gradients, −1 to 1, of two grey pictures [S, S], `other` warped onto `whole`.

    The search for the warp begins at the window of `other` that `whole` looked like.
    """
    cv2 = image.opencv()
    top, left, side = _places()[window]
    scale, unit = side / SIDE, _ALIGNED / SIDE
    warp = np.array([[scale, 0, left * unit], [0, scale, top * unit]], np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _STEPS, _CLOSE_ENOUGH)
    try:
        _, warp = cv2.findTransformECC(whole, other, warp, cv2.MOTION_AFFINE, stop, None, _BLUR)
    except cv2.error:  # the search left the picture: the two have nothing in common, or one is of one colour
        return 0.0
    size, onto = (_ALIGNED, _ALIGNED), cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(other.astype(np.float32), warp, size, flags=cv2.INTER_LINEAR | onto)
    inside = cv2.warpAffine(np.ones_like(other), warp, size, flags=cv2.INTER_NEAREST | onto)
    shown = cv2.erode(inside, np.ones((5, 5), np.uint8)) > 0
    first, second = (
        np.concatenate([cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx)[shown] for dx in (1, 0)])
        for grey in (warped, whole.astype(np.float32))
    )
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second) + 1e-6))


def _picture(root: Path, path: str) -> Image:
    """uint8 [S, S], grey, a little blurred: what JPEG adds is not the picture."""
    pixels = image.resize(image.read(root / path), (_ALIGNED, _ALIGNED))
    blurred: Image = image.opencv().GaussianBlur(_grey(pixels), (3, 3), 0)
    return blurred


def _grey(pixels: Image) -> Image:
    cv2 = image.opencv()
    grey: Image = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return grey


@lru_cache(maxsize=1)
def _places() -> tuple[tuple[int, int, int], ...]:
    """(top, left, side) of the whole small picture and of its windows."""
    offsets = np.linspace(0, SIDE - _WINDOW, 5).round().astype(int).tolist()
    return ((0, 0, SIDE), *((top, left, _WINDOW) for top in offsets for left in offsets))


def _windows(picture: Image) -> list[Image]:
    return [picture[top : top + side, left : left + side] for top, left, side in _places()]


def _signs(grey: Image) -> Signs:
    """float32 [256] of −1 and 1; the dot product of two is 256 − 2 · (bits apart)."""
    cv2 = image.opencv()
    tiny = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA)
    signs: Signs = np.where(tiny[:, 1:] > tiny[:, :-1], np.float32(1), np.float32(-1)).ravel()
    return signs


def _gradients(grey: Image) -> NDArray[np.float32]:
    """float32 [1800] of length 1."""
    cv2 = image.opencv()
    small: Any = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    both = [cv2.Sobel(small, cv2.CV_32F, dx, 1 - dx)[1:-1, 1:-1].ravel() for dx in (1, 0)]
    gradients: NDArray[np.float32] = np.concatenate(both)
    return gradients / np.float32(np.linalg.norm(gradients) + 1e-6)
