"""Whatever runs the net, "not a plant I know" is the same answer to the same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agrikd import known
from agrikd.export import onnx as exporting
from agrikd.nets.sources import open_net
from agrikd.predict._base import FakePredictor
from agrikd.predict.decode import decode
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.torch import TorchPredictor
from agrikd.predict.trt import TrtPredictor
from agrikd.recipe import NetSpec
from agrikd.types import Calibration, ModelSpec

CLASSES = ("blight", "healthy", "rust")
Image = NDArray[np.uint8]


def greens(count: int, seed: int) -> list[Image]:
    rng = np.random.default_rng(seed)
    means = rng.normal((70, 130, 60), 12, (count, 3))
    return [np.clip(rng.normal(mean, 25, (60, 80, 3)), 0, 255).astype(np.uint8) for mean in means]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    fitted = known.fit(np.stack([known.statistics(one) for one in greens(120, 0)]), np.arange(120), 0)
    limit = float(np.quantile(fitted.held_out, 0.95))
    calibration = Calibration(1.2, 0.4, 0.1, 0.9, 0.9, limit, 0.95, 40, "val", fitted.known)
    return ModelSpec("leaves", "classification", CLASSES, (32, 32), calibration=calibration)


def test_the_backends_agree(device: Any, spec: ModelSpec, photos: list[Image], tmp_path: Path) -> None:
    net = open_net(NetSpec(timm="test_efficientnet", input_size=(32, 32)), CLASSES)
    shown = [*greens(40, 1), *photos, np.zeros((30, 30, 3), np.uint8)]
    source = TorchPredictor(net, spec)
    assert exporting.export(source, tmp_path / "model.onnx", shown).passed
    engine = TrtPredictor(tmp_path / "model.onnx", tmp_path / "engines")
    assert engine.wait(60) and engine.backend.startswith("tensorrt")
    exported = OrtPredictor(tmp_path / "model.onnx")
    said = [[one.unknown for one in predictor(shown)] for predictor in (source, exported, engine, FakePredictor(spec))]
    engine.close()
    assert said[0] == said[1] == said[2] == said[3]
    assert said[0][-4:] == [True] * 4 and said[0][:40].count(False) >= 30
    assert exported.spec == engine.spec == spec


def test_a_picture_s_answer_does_not_depend_on_the_others(spec: ModelSpec, photos: list[Image]) -> None:
    net, shown = open_net(NetSpec(timm="test_efficientnet", input_size=(32, 32)), CLASSES), [*greens(3, 2), *photos]
    predictor = TorchPredictor(net, spec)
    assert [one.unknown for one in predictor(shown)] == [predictor([one])[0].unknown for one in shown]


def test_a_backend_that_passes_no_picture_is_noticed(spec: ModelSpec) -> None:
    logits = np.zeros((2, 3), np.float32)
    for given in ([], greens(1, 0)):
        with pytest.raises(ValueError, match="zip"):
            decode(logits, logits, given, spec)
