"""Hints: Grad-CAM against the right answer and against its formula, nearest photos against a plain search."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from agrikd import explain, image
from agrikd.data import manifest as manifests
from agrikd.errors import InputError
from agrikd.nets.cached import FeatureStore
from agrikd.predict.torch import TorchPredictor
from agrikd.types import ModelSpec


class Toy(nn.Module):
    """Means over cells of 8 × 8 pixels, then a head: linear in the mean of each channel, or not linear at all."""

    def __init__(self, weights: Tensor, bend: bool = False) -> None:
        super().__init__()
        self.weights, self.bend = weights, bend

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)

    def forward_head(self, maps: Tensor) -> Tensor:
        if self.bend:
            maps = torch.tanh(maps) * maps.flip(2).exp()
        return maps.mean((2, 3)) @ self.weights


def corners() -> Tensor:
    """Red in the upper left quarter, blue in the lower right one, else black; [1, 3, 64, 64]."""
    picture = torch.zeros(1, 3, 64, 64)
    picture[0, 0, :32, :32] = 1
    picture[0, 2, 32:, 32:] = 1
    return picture


@pytest.mark.parametrize(("wanted", "corner"), [(0, np.s_[:4, :4]), (1, np.s_[4:, 4:])])
def test_the_heat_lies_where_the_class_is(wanted: int, corner: Any) -> None:
    red_and_blue = Toy(torch.tensor([[2.0, -1.0], [0.0, 0.0], [-1.0, 2.0]]))
    found = explain.grad_cam(red_and_blue, corners(), wanted)
    assert found.shape == (8, 8) and found[corner].sum() == found.sum() > 0


def slopes_by_differences(model: Any, maps: Tensor, wanted: int) -> Tensor:
    """∂y/∂A of each value of A, by central differences."""
    found, step = torch.zeros_like(maps), 1e-6
    for place in range(maps.numel()):
        pushed = torch.zeros_like(maps)
        pushed.view(-1)[place] = step
        up, down = (model.forward_head(maps + side * pushed)[0, wanted] for side in (1, -1))
        found.view(-1)[place] = (up - down) / (2 * step)
    return found


def test_the_formula_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    model = Toy(torch.randn(3, 4, generator=generator, dtype=torch.float64), bend=True)
    images = torch.randn(1, 3, 40, 24, generator=generator, dtype=torch.float64)
    maps = model.forward_features(images)
    for wanted in range(4):
        alpha = slopes_by_differences(model, maps, wanted).mean((2, 3), keepdim=True)  # eq. 1
        expected = (alpha * maps).sum(1)[0].clamp(min=0)  # eq. 2
        assert torch.allclose(explain.grad_cam(model, images, wanted), expected, atol=1e-7)


def test_the_formula_of_a_transformer_by_finite_differences() -> None:
    """To push a channel in all patches alike by δ moves the logit by δ times the sum of its slopes, which is Z α."""
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=3).double().eval()
    images, step, seen = torch.rand(1, 3, 160, 160, dtype=torch.float64), 1e-5, []
    push = torch.zeros(101, 64, dtype=torch.float64)
    hook = model.blocks[-1].norm1.register_forward_hook(lambda module, given, out: seen.append(out) or out + push)
    alpha = torch.zeros(64, dtype=torch.float64)
    with torch.no_grad():
        for channel in range(64):
            scores = []
            for side in (1, -1):
                push[1:, channel] = side * step  # the first token is the class's
                scores.append(model(images)[0, 2])
            push[:, channel] = 0
            alpha[channel] = (scores[0] - scores[1]) / (2 * step * 100)
    hook.remove()
    expected = (seen[0][0, 1:] @ alpha).clamp(min=0).reshape(10, 10)
    found = explain.grad_cam(model, images, 2)
    assert found.max() > 0 and torch.allclose(found, expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize(
    ("name", "own", "cells"),
    [
        ("test_efficientnet", {}, (5, 5)),
        ("test_convnext", {}, (5, 5)),
        ("test_vit", {}, (10, 10)),
        ("deit_tiny_distilled_patch16_224", {"embed_dim": 24, "depth": 2}, (14, 14)),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
            (7, 7),
        ),
    ],
)
def test_nets_of_every_build(name: str, own: dict[str, Any], cells: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=3, **own).eval()
    images = torch.rand(1, *model.pretrained_cfg["input_size"])
    found = [explain.grad_cam(model, images, wanted) for wanted in range(3)]
    assert all(one.shape == cells and one.isfinite().all() and one.min() >= 0 for one in found)
    assert max(float(one.max()) for one in found) > 0
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("name", ["levit_128s", "xcit_nano_12_p16_224"])
def test_a_net_without_a_grid_is_refused_in_words(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=3).eval()
    with pytest.raises(InputError, match="do not lie on a grid"):
        explain.grad_cam(model, torch.rand(1, 3, 224, 224), 0)


def test_two_who_look_at_once_do_not_meet() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=3).eval()
    pictures = [torch.rand(1, 3, 160, 160) for _ in range(4)]
    alone = [explain.grad_cam(model, one, 0) for one in pictures]
    together: dict[int, Tensor] = {}

    def look(place: int) -> None:
        for _ in range(5):
            together[place] = explain.grad_cam(model, pictures[place], 0)

    threads = [threading.Thread(target=look, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(together[place], one, atol=1e-6) for place, one in enumerate(alone))


def predictor_of(model: Any, fit: Any = "stretch") -> Any:
    zeros, ones = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    spec = ModelSpec("toy", "classification", ("red", "blue"), (64, 64), fit)
    return SimpleNamespace(net=SimpleNamespace(model=model, mean=zeros, std=ones), spec=spec)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_the_heat_is_of_the_pixels_that_the_net_saw(fit: Any) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (90, 200, 3), dtype=np.uint8)
    model = Toy(torch.tensor([[2.0, -1.0], [0.0, 0.0], [-1.0, 2.0]]))
    found = explain.heat(predictor_of(model, fit), picture, 0)
    assert (found.seen == image.fit(picture, (64, 64), fit)).all()
    assert found.cells.dtype == np.float32 and found.cells.min() >= 0 and found.cells.max() == pytest.approx(1)
    assert explain.drawn(found).shape == (448, 448, 3)


def test_where_nothing_speaks_for_a_class_nothing_is_bright() -> None:
    against = Toy(torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]))
    picture = np.full((64, 64, 3), 90, np.uint8)
    found = explain.heat(predictor_of(against), picture, 0)
    assert not found.cells.any()
    assert (explain.drawn(found) == 90).all()


def test_the_drawing_is_bright_in_the_right_corner() -> None:
    cells = np.zeros((4, 4), np.float32)
    cells[0, 3] = 1
    made = explain.drawn(explain.Heat(np.full((32, 64, 3), 60, np.uint8), cells)).astype(int)
    assert made.shape == (224, 448, 3)
    assert (made[112:, :224] == 60).all()
    assert made[5, 440].sum() > 2 * 3 * 60 and (made == 255).all(axis=2).any()


# Nearest photos


@pytest.fixture(scope="module")
def predictor(colours: Path) -> TorchPredictor:
    return TorchPredictor.from_run(colours)


def test_the_nearest_photos_are_those_of_a_plain_search(
    predictor: TorchPredictor, colours: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifests.load(tiny_photos / "manifest.csv")
    picture = manifest.photo(0)
    told: list[tuple[int, int]] = []
    found = explain.neighbours(predictor, colours, picture, 5, lambda done, of: told.append((done, of)))
    pictures = [manifest.photo(row) for row in range(len(manifest.rows))]
    rows = np.array([one.embedding for one in predictor(pictures)], np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.sort(rows @ rows[0])[::-1][:5]
    assert found.nearest[0].row == manifest.rows[0] and found.nearest[0].similarity == pytest.approx(1, abs=2e-3)
    assert [one.similarity for one in found.nearest] == pytest.approx(list(expected), abs=5e-3)
    assert {one.row.target for one in found.nearest} <= {manifest.rows[0].target, None}
    assert (found.photos, found.absent, found.changed) == (len(manifest.rows), 0, False)
    assert told[0] == (0, found.photos) and len(told) == -(-found.photos // 32)
    assert found.nearest[0].thumbnail.shape == (64, 64, 3)

    def never(self: Any, rows: Any) -> Any:
        raise AssertionError(f"computed again: {rows}")

    monkeypatch.setattr(FeatureStore, "_live", never)
    again = explain.neighbours(predictor, colours, picture, 5)
    assert [one[:2] for one in again.nearest] == [one[:2] for one in found.nearest]


def test_photos_that_are_not_here_are_said(
    predictor: TorchPredictor, colours: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(colours, run)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(str(tiny_photos / "manifest.csv"), str(tmp_path / "manifest.csv")))
    lines = (tiny_photos / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text("\n".join(lines[:-1]) + "\n")
    picture = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(InputError, match="none of its photos is on this machine"):
        explain.neighbours(predictor, run, picture)
    rows = manifests.load(tmp_path / "manifest.csv").rows
    for row in rows[:3]:
        shutil.copy(tiny_photos / row.path, tmp_path)
    found = explain.neighbours(predictor, run, picture)
    assert (found.photos, found.absent, found.changed) == (3, len(rows) - 3, True)
    assert len(found.nearest) == 3


def test_neither_module_needs_torch_to_be_there() -> None:
    code = "import sys; sys.modules['torch'] = None; import agrikd.panel, agrikd.explain"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
