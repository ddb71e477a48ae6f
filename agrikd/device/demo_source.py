"""A camera for who has none: drawn leaves that move past, one after the other.

Synthetic (see `agrikd.data.leaf`): the leaves that a student of the drawn dataset knows.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import lru_cache
from itertools import count

import numpy as np

from agrikd import image
from agrikd.data.leaf import DISEASES, Spec, draw
from agrikd.types import Image

HOLD_S = 0.1
"""Between two frames."""
_WIDTH, _HEIGHT, _FRAMES, _LEAVES = 640, 480, 40, 12
_SOFT_PX = 4.0
"""Pixels, frames that a leaf is shown for, and leaves; all of them drawn take 15 MB, and 0.1 s each on a laptop."""


def frames() -> Generator[Image, None, None]:
    """For ever, as fast as they are taken: uint8 [480, 640, 3] in OpenCV's order BGR."""
    for number in count():
        leaf = _leaf(number // _FRAMES % _LEAVES)
        top = round((_WIDTH - _HEIGHT) / 2 * (1 - math.cos(2 * math.pi * number / _FRAMES)))
        yield leaf[top : top + _HEIGHT]


@lru_cache(_LEAVES)
def _leaf(number: int) -> Image:
    kinds = tuple(DISEASES)
    spec = Spec(0, number, 0, kinds[number % len(kinds)], severity_pct=10.0, size=_WIDTH)
    drawn = draw(spec).image[..., ::-1].astype(np.float32)
    soft = image.opencv().GaussianBlur(drawn, (0, 0), _SOFT_PX)
    sharp: Image = np.clip(2.5 * drawn - 1.5 * soft, 0, 255).astype(np.uint8)  # a drawing looks out of focus
    return sharp
