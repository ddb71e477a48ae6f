"""What is wrong with a picture, whatever it shows: pure functions on a small grey copy of it.

Measured on 3,674 real photos of leaves and fields (PlantVillage, DeepWeeds, two sets of coffee leaves), of which 2 are
refused, and on 1,227 of them made dark, overexposed, blurred and covered, of which 97.5 to 100 % are:
tests/device/test_quality.py does so again on a part.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from agrikd import image
from agrikd.types import Image

TOO_DARK, OVEREXPOSED, BLURRED, COVERED, FROZEN = "too dark", "overexposed", "blurred", "covered", "frozen"

_SIDE = 256
"""The longer side of the grey copy in pixels: the numbers below hold for it."""
_DARK_BELOW = 50
"""Of 255, of the brightest hundredth. Real photos: 107 and more. At an eighth of their light: 34 at most."""
_WHITE, _WHITE_SHARE = 250, 0.35
"""Of the pixels. Real photos, with their white sheets and skies: 0.30 at most. At four times the light: 0.38 and more
in 95 % of them."""
_SHARP_ABOVE = 12.0
"""The variance of the Laplacian after a 3 x 3 Gaussian, which takes a sensor's noise (Pech-Pacheco et al. 2000, "Diatom
autofocusing in brightfield microscopy"). Real photos: 23 and more in 99.5 % of them. Blurred by a Gaussian of a 64th of
the shorter side, with noise of 3 of 255: 11 at most."""
_COVERED_BELOW = 40
"""Of 255, between the darkest and the brightest twentieth of a picture that is not sharp. Real photos: 40 and more.
Behind a finger: 30 at most."""


def grey(picture: Image) -> NDArray[np.uint8]:
    """The small grey copy of an RGB picture that the other functions look at."""
    height, width = picture.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    cv2 = image.opencv()
    return np.asarray(cv2.cvtColor(image.resize(picture, size), cv2.COLOR_RGB2GRAY), np.uint8)


def faults(small: NDArray[np.uint8]) -> tuple[str, ...]:
    """Why nobody should judge a plant by this picture, in words; empty where nothing speaks against it."""
    shares = np.cumsum(np.bincount(small.ravel(), minlength=256)) / small.size
    dark, bright, brightest = np.searchsorted(shares, (0.05, 0.95, 0.99))
    if brightest < _DARK_BELOW:
        return (TOO_DARK,)
    if 1 - shares[_WHITE - 1] > _WHITE_SHARE:
        return (OVEREXPOSED,)
    if _sharpness(small) < _SHARP_ABOVE:
        return (COVERED if bright - dark < _COVERED_BELOW else BLURRED,)
    return ()


class Still:
    """Notices a live camera that repeats one picture to the byte for `after_s` seconds.

    A sensor's noise never does so; an encoder may between two of its keyframes, which come every 1 to 10 s.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s, self._since = after_s, 0.0
        self._digest: int | None = None

    def seen(self, small: NDArray[np.uint8], mono: float) -> tuple[str, ...]:
        """("frozen",) if it is. mono: seconds of the monotonic clock at which the picture was taken."""
        digest = zlib.crc32(small.tobytes())
        if digest != self._digest:
            self._digest, self._since = digest, mono
        return (FROZEN,) if mono - self._since >= self._after_s else ()


def _sharpness(small: NDArray[np.uint8]) -> float:
    cv2 = image.opencv()
    edges = cv2.Laplacian(cv2.GaussianBlur(small, (3, 3), 0), cv2.CV_16S)
    return float(cv2.meanStdDev(edges)[1][0, 0]) ** 2
