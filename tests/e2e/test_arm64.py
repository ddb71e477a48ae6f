"""The device's side on arm64, where ONNX Runtime has other kernels: emulated, with all the processes that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_kit import WEIGHTS, Device, Pack, contents

from agrikd.device import installer
from agrikd.device.child import Limits

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / ".arm64"
PATIENT = Limits(start_s=900, answer_s=300, trial_s=900, memory_mib=4000, budget_ms=60_000)
"""Emulated, on a busy machine, an installation takes minutes."""


class Emulated(Device):
    """Its commands are run by the tree's Python, which is the sys.executable of all that they start."""

    def command(self, *words: str) -> list[str]:
        return [str(TREE / "python3"), *super().command(*words)[1:]]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture
def emulated(folder: Path, root: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    if os.environ.get("AGRIKD_TORTURE", "1") == "1":
        pytest.skip("what is emulated takes minutes: make torture")
    if not (TREE / ".ready").exists():
        pytest.skip(f"there is no arm64 to emulate: make {TREE.name}/.ready")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Emulated(folder, root)
    made.start(PATIENT)
    yield made
    made.stop()


@pytest.mark.torture
def test_a_release_serves_on_arm64_and_a_bad_one_does_not(emulated: Emulated, packed: Pack) -> None:
    end = time.monotonic() + 600
    while not installer.agent_answers(emulated.store):  # an installation waits 15 s for one
        assert time.monotonic() < end
        time.sleep(0.2)
    done = emulated.run("install", str(packed(1, compatible=("aarch64",))))
    assert done.returncode == 0 and emulated.store.state.phase == "COMMITTED", done.stderr
    good = emulated.require_whole()
    said = json.loads(emulated.run("status", "--json").stdout)
    assert said["kind"] == "aarch64" and said["phase"] == "COMMITTED" and said["current"] == good
    assert said["precision"] == "fp32" and not said["dropped"]
    assert said["agent"]["serving"] == good and said["agent"]["backend"] == "onnxruntime"
    assert Path(f"/proc/{said['agent']['pid']}/exe").readlink().name.startswith("qemu-aarch64")
    shuffled = contents(WEIGHTS[:, [1, 2, 0]], answers=WEIGHTS.tolist())
    done = emulated.run("install", str(packed(2, held=shuffled)))
    assert done.returncode == 10 and "differ from the lab" in done.stderr.replace("\n", " "), done.stderr
    said = json.loads(emulated.run("status", "--json").stdout)
    assert said["phase"] == "ROLLED_BACK" and said["agent"]["serving"] == good == emulated.require_whole()
