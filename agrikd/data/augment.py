"""Augmented views. The only file that knows albumentations, so that it can be replaced in one place.

A view is a pure function of the photo and its view seed: teacher, student, a resumed run and a replayed cache
see the same pixels.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Literal

import numpy as np

from agrikd import files, image
from agrikd.data.manifest import Row
from agrikd.errors import MissingExtraError
from agrikd.types import Image

Strength = Literal["none", "light", "field"]
CLEAN = -1
"""The view seed of the photo as it is: resized, nothing else."""


class Augment:
    """Renders views at `size` (height, width) pixels.

    "light": crops of at least 70 % of the area and mirror images. "field": crops of at least 50 % of the area
    (a leaf's lesions are small, the ImageNet habit of 8 % loses them), all eight turns and mirrors of a
    square (a leaf has no up), and changes of light and colour of a third, as between two cameras and two hours.
    """

    def __init__(self, strength: Strength, size: tuple[int, int]) -> None:
        self.strength, self.size = strength, size
        self._local = threading.local()

    def __call__(self, pixels: Image, row: Row, view: int) -> Image:
        """uint8 [H, W, 3] RGB at `size`; the same `row`, `view` and pixels give the same result."""
        if view == CLEAN or self.strength == "none":
            return image.resize(pixels, self.size)
        if not hasattr(self._local, "transform"):
            self._local.transform = _transform(self.strength, self.size)
        self._local.transform.set_random_seed(seed_of(row, view))
        result: Image = self._local.transform(image=pixels)["image"]
        return result

    @property
    def definition(self) -> dict[str, Any]:
        """What the pixels of a view depend on; a part of every cache key."""
        import albumentations

        steps = None if self.strength == "none" else _transform(self.strength, self.size).to_dict()["transform"]
        named = {"strength": self.strength, "steps": files.digest(steps), "size": self.size}
        return {**named, "albumentations": albumentations.__version__}


def seed_of(row: Row, view: int) -> int:
    """31 bits from the photo's identity and the view seed; does not depend on the row's place in the manifest."""
    key = f"{row.sha256 or row.path}:{view}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1


def another_camera(pixels: Image, rng: np.random.Generator) -> Image:
    """The photo uint8 [H, W, 3] as another camera, or one farther away, might give it; the same size.

    In half of the cases each: gains of red and of blue exp(±0.2 at most), Gaussian blur of σ 0.3 to 1.5 pixels, noise
    of σ 1 to 8 levels, JPEG of quality 30 to 95; in 40 % it is shrunk to 60 to 100 % of its sides, its border drawn
    out. The ranges are ours: without such views 96 % of coffee leaves in a warmer light were taken for no plant, with
    them 2 % (models/LOG.md).
    """
    cv2 = image.opencv()
    if rng.random() < 0.5:
        gains = np.exp(rng.uniform(-0.2, 0.2, 3)) ** (1, 0, 1)
        pixels = np.clip(pixels * gains, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < 0.5:
        noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(1, 8))
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        pixels = image.decode(image.encode_jpeg(pixels, int(rng.integers(30, 96))), "a view")
    return _farther(pixels, rng) if rng.random() < 0.4 else pixels


def _farther(pixels: Image, rng: np.random.Generator) -> Image:
    height, width = pixels.shape[:2]
    share = rng.uniform(0.6, 1)
    small = image.resize(pixels, (round(height * share), round(width * share)))
    top, left = (int(rng.integers(0, a - b + 1)) for a, b in zip((height, width), small.shape, strict=False))
    bottom, right = height - small.shape[0] - top, width - small.shape[1] - left
    return np.pad(small, ((top, bottom), (left, right), (0, 0)), mode="edge")


def _transform(strength: Strength, size: tuple[int, int]) -> Any:
    try:
        import albumentations as A
    except ImportError:
        raise MissingExtraError("albumentations", "train") from None
    area, aspect = image.opencv().INTER_AREA, size[1] / size[0]
    ratio = 0.8 * aspect, 1.25 * aspect
    if strength == "light":
        crop = A.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=ratio, interpolation=area)
        return A.Compose([crop, A.HorizontalFlip(p=0.5)])
    crop = A.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=ratio, interpolation=area)
    turn = A.D4(p=1) if size[0] == size[1] else A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    light = A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, p=0.8)
    return A.Compose([crop, turn, light])
