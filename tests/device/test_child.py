"""A worker that ends badly, as who holds it sees it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_kit import QUICK
from fakes.stuck import all_stuck

from agrikd.device import worker
from agrikd.device.child import Child, Model
from agrikd.errors import DeviceError
from agrikd.predict._base import FakePredictor
from agrikd.types import ModelSpec


def test_while_the_kernel_holds_two_workers_no_third_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = all_stuck(monkeypatch)

    def tried() -> str:
        with pytest.raises(DeviceError) as why:
            Child(Model(tmp_path, "model.onnx", tmp_path), replace(QUICK, start_s=0.1)).wait()
        return str(why.value)

    assert [tried() for _ in range(2)] == ["the model was not ready in time"] * 2
    for _ in range(2):
        said = tried()
        assert len(begun) == 2 and all(str(one.pid) in said for one in begun) and "restart the board" in said
    for one in begun:
        one.let_go()
    assert tried() == "the model was not ready in time" and len(begun) == 3
    begun[2].let_go()


def test_the_probes_of_a_slow_model_are_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for a photo is allowed, and so are 32 probes: three rounds of them would outlast who waits."""
    spec = ModelSpec("leaf", "classification", ("rust", "healthy"), (8, 8))
    clock, photos = itertools.count(0.0, 0.5), [np.zeros((8, 8, 3), np.uint8)] * 32
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: 2 * next(clock)))
    said = worker._probe(FakePredictor(spec), photos, 3)
    assert len(said["logits"]) == 32 and said["p50_ms"] == 1000 and next(clock) * 2 == 64
    quick = itertools.count(0.0, 0.001)
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: next(quick)))
    assert worker._probe(FakePredictor(spec), photos, 3)["p50_ms"] == pytest.approx(1) and next(
        quick
    ) * 1000 == pytest.approx(192)
