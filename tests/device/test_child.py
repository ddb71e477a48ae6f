"""A worker that ends badly, as who holds it sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from device_kit import QUICK
from fakes.stuck import all_stuck

from agrikd.device.child import Child, Model
from agrikd.errors import DeviceError


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
