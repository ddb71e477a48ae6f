"""What is wrong with a picture: measured on real photos, as they are and spoilt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agrikd import image
from agrikd.device import quality
from agrikd.device.quality import BLURRED, COVERED, OVEREXPOSED, TOO_DARK
from agrikd.types import Image

FOLDERS = {
    "cls-coffee-leaf": 544,
    "cls-deepweeds-seasons": 1510,
    "cls-plantvillage-mini": 1120,
    "reg-coffee-severity": 500,
}
EACH, SPOILT_EACH = 8, 40
SPOILT = (TOO_DARK, OVEREXPOSED, BLURRED, COVERED)


def spoilt(photo: Image, how: str, rng: np.random.Generator) -> Image:
    """As a camera would: with noise of 3 of 255, after whatever happened to the light."""
    light: np.ndarray[Any, Any] = photo.astype(np.float32)
    short = min(photo.shape[:2])
    if how == TOO_DARK:
        light = light / 8
    elif how == OVEREXPOSED:
        light = light * 4
    elif how == BLURRED:
        light = image.opencv().GaussianBlur(light, (0, 0), short / 64)
    elif how == COVERED:  # by a finger: light comes through, and a shadow of what is there
        light = image.opencv().GaussianBlur(light, (0, 0), short / 4) / 4 + np.array([90, 30, 25])
    return np.clip(light + rng.normal(0, 3, photo.shape), 0, 255).astype(np.uint8)


def test_real_photos_pass_and_spoilt_ones_do_not(datasets: Path) -> None:
    rng, said = np.random.default_rng(0), Counter[tuple[str, str]]()
    for folder, count in FOLDERS.items():
        paths = sorted(path for path in (datasets / folder).rglob("*") if path.suffix.lower() in image.SUFFIXES)
        assert len(paths) == count
        for number, path in enumerate(paths[::EACH]):
            photo = image.read(path)
            said["", "".join(quality.faults(quality.grey(photo)))] += 1
            for how in () if number % (SPOILT_EACH // EACH) else SPOILT:
                said[how, "".join(quality.faults(quality.grey(spoilt(photo, how, rng))))] += 1
    for how in ("", *SPOILT):
        counts = {word: times for (was, word), times in said.items() if was == how}
        total = sum(counts.values())
        print(how or "as they are", {word: f"{100 * times / total:.1f} %" for word, times in counts.items()})
        assert total >= (450 if not how else 90)
        assert counts[how] >= (0.99 if not how else 0.95) * total, "a photo is judged by what was done to it"


@pytest.mark.parametrize(
    ("level", "word"), [(0, TOO_DARK), (20, TOO_DARK), (100, COVERED), (200, COVERED), (255, OVEREXPOSED)]
)
def test_one_colour(level: int, word: str) -> None:
    assert quality.faults(quality.grey(np.full((480, 640, 3), level, np.uint8))) == (word,)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3, 2), (480, 640), (3072, 4096)])
def test_any_size(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    small = quality.grey(noise)
    assert max(small.shape) <= 256
    quality.faults(small)


def test_a_picture_that_stands_still() -> None:
    still, rng = quality.Still(10), np.random.default_rng(0)
    one, other = rng.integers(0, 255, (2, 48, 64), np.uint8)
    assert [still.seen(one, at) for at in (0, 5, 9.9)] == [()] * 3
    assert still.seen(one, 10) == still.seen(one, 60) == (quality.FROZEN,)
    assert still.seen(other, 61) == still.seen(one, 62) == still.seen(one, 71.9) == ()
    assert still.seen(one, 72) == (quality.FROZEN,)
