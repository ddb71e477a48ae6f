"""A machine that has TensorRT and CUDA, both fakes, and a model for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agrikd.export import onnx as exporting
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec
from agrikd.types import ModelSpec

FAKES = Path(__file__).parents[1] / "fakes"
CLASSES = ("blight", "healthy", "rust")
Image = NDArray[np.uint8]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = open_net(NetSpec(timm="test_efficientnet", input_size=(32, 32)), CLASSES).eval()
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    spec = ModelSpec("leaves", "classification", CLASSES, (32, 32))
    exporting.write_graph(net, spec, path)
    exporting.fold(path)
    exporting.describe(path, spec, 1000)
    return path


class Device:
    """A machine with the fakes; `fails` says what goes wrong from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.fails()

    def fails(self, **asked: Any) -> None:
        self._patch.setenv("AGRIKD_FAKE_TRT", json.dumps(asked))
        sys.modules.pop("tensorrt", None)

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._patch.setenv(name, value)


@pytest.fixture
def device(cudart: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("AGRIKD_CUDART", str(cudart))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.syspath_prepend(str(FAKES))
    yield Device(monkeypatch)
    sys.modules.pop("tensorrt", None)


@pytest.fixture(scope="module")
def photos() -> list[Image]:
    return [np.random.default_rng(n).integers(0, 256, (40, 50, 3)).astype(np.uint8) for n in range(3)]
