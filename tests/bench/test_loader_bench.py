"""Views a second of the loader, its photos cached, beside torchvision's ImageFolder with the same transform."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from agrikd import files, image
from agrikd.data.augment import Augment
from agrikd.data.leaf import Spec, draw
from agrikd.data.loader import Loader, PixelCache
from agrikd.data.manifest import Manifest, Row

pytestmark = pytest.mark.bench

SIZE = (224, 224)
TURNS = 30
CLASSES = ("healthy", "rust")


def drawn(folder: Path, count: int, shape: tuple[int, int]) -> Manifest:
    """Drawn leaves as JPEG files of quality 90 in a folder for each class, as ImageFolder wants them."""
    rows = []
    for number in range(count):
        target = CLASSES[number % 2]
        leaf = draw(Spec(seed=0, plant=number, photo=0, target=target, size=256)).image
        noise = np.random.default_rng(number).normal(0, 3, (*shape, 3))
        pixels = np.clip(image.resize(leaf, shape) + noise, 0, 255).astype(np.uint8)
        path = folder / target / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.write_jpeg(path, pixels, 90)
        rows.append(Row(f"{target}/{path.name}", target, "train", sha256=files.sha256(path.read_bytes())))
    return Manifest(tuple(rows), folder)


def through_opencv(path: str) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize(
    ("shape", "batch", "least"),
    [((256, 256), 32, 1.2), ((1224, 1632), 8, 3.0)],
    ids=["256 px", "2 megapixels"],
)
def test_views_a_second(
    race: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    batch: int,
    least: float,
) -> None:
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    photos = 2 * batch
    manifest = drawn(tmp_path / "photos", photos, shape)
    augment = Augment("field", SIZE)
    cache = PixelCache(manifest, SIZE, "stretch", 512)
    loader = Loader(manifest, cache, augment, torch.zeros(photos), torch.ones(photos, dtype=torch.bool))
    loader.batch([(0, 0)])  # fills the cache and makes the transform
    transform = augment._local.transform

    def same(pixels: Any) -> np.ndarray:
        return np.asarray(transform(image=np.asarray(pixels))["image"])

    folders = {
        "ImageFolder, PIL decodes": ImageFolder(manifest.root, same),
        "ImageFolder, OpenCV decodes": ImageFolder(manifest.root, same, loader=through_opencv),
    }
    turn = itertools.count()

    def drawn_rows() -> list[int]:
        """Other rows at every turn, and other draws of the transform."""
        seed = next(turn)
        transform.set_random_seed(seed)
        return np.random.default_rng(seed).permutation(photos)[:batch].tolist()

    def assembled(views: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float().div_(255)

    def of_folder(dataset: ImageFolder) -> Callable[[], torch.Tensor]:
        return lambda: assembled([dataset[row][0] for row in drawn_rows()])

    contenders: dict[str, Callable[[], object]] = {
        "agrikd Loader, cached": lambda: loader.batch([(row, next(turn)) for row in drawn_rows()]),
        **{name: of_folder(dataset) for name, dataset in folders.items()},
        "the transform alone": lambda: assembled([same(cache[row]) for row in drawn_rows()]),
    }
    found = race(contenders, batch, TURNS)
    reference = "ImageFolder, PIL decodes"
    found.show(f"Views of {SIZE[0]} px from {shape[1]} × {shape[0]} JPEG, batches of {batch}", "views", reference)
    assert found.ratio("agrikd Loader, cached", reference) >= least
