"""What `agrikd bench` measures, without a word on how long it took."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from agrikd import bench
from agrikd.export import onnx as exporting
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec
from agrikd.types import ModelSpec

CLASSES = ("blight", "healthy", "rust")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "net.onnx"
    spec = ModelSpec("leaves", "classification", CLASSES, (32, 32))
    exporting.write_graph(open_net(NetSpec(timm="test_efficientnet", input_size=(32, 32)), CLASSES).eval(), spec, path)
    exporting.fold(path)
    exporting.describe(path, spec, 1000)
    return path


def test_each_model_at_each_number_of_threads(model: Path, taught: Path) -> None:
    found = bench.bench([model, taught], [1, 2], frames=10)
    assert [(one.backend, one.threads) for one in found] == [
        (backend, threads) for backend in ("onnxruntime", "torch") for threads in (1, 2)
    ]
    for one in found:
        assert one.frames == 10 and 0 < one.p50 <= one.p90 <= one.p99
        assert (one.bare is None) == (one.backend == "torch")
        assert (one.openvino is None) == (one.backend == "torch" or find_spec("openvino") is None)
    assert found[0].bare is not None and found[0].bare < found[0].p99
    assert found[0].model.endswith("/net.onnx") and found[2].model == taught.name


def test_the_warm_up_does_not_count(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter(np.arange(1e6))
    monkeypatch.setattr(bench, "_openvino", lambda *_: None)
    monkeypatch.setattr(bench, "_milliseconds", lambda work: (work(), float(next(took)))[1])
    (found,) = bench.bench([model], [1], frames=10)
    first_turn = 2 * bench._TURN
    assert found.bare is not None and found.frames == bench._TURN
    assert {found.p50, found.bare} == {first_turn + 4.5, first_turn + bench._TURN + 4.5}


def test_a_camera_of_another_size(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    monkeypatch.setattr(bench, "_milliseconds", lambda work: (seen.add(work.args[0].shape), 1.0)[1])
    bench.bench([model], [1], frames=10, frame=(36, 64))
    assert seen == {(36, 64, 3)}
