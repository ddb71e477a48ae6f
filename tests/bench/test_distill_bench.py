"""Distillation beside timm's and torchdistill's on the same pair of nets: seconds an epoch, memory, accuracy."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench

BATCH, STEPS = 32, 3
"""A turn's 96 views are an epoch of the hundred photos, but for four."""
TURNS = int(os.environ.get("AGRIKD_BENCH_TURNS", "12"))
LIVE, REPLAYED = "agrikd, live", "agrikd, replayed"
OTHERS = ("timm", "torchdistill")


class Contender:
    """A process of distill_arms.py that waits until it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.losses: list[float] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, name: str, raw: dict[str, Any]) -> Iterator[Contender]:
        script = Path(__file__).with_name("distill_arms.py")
        command = [sys.executable, str(script), name, json.dumps(raw), str(STEPS), str(TURNS + 1)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            yield cls(process)

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        print("go", file=self.process.stdin, flush=True)
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def turn(self) -> tuple[float, float]:
        said = self.ask()
        self.losses.append(said["said"])
        return said["cpu_s"], said["clock_s"]


def test_seconds_an_epoch(
    pair: Callable[..., dict[str, Any]], race: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy + T² · KL with T = 2, AdamW without weight decay, clipping or averaged weights, no workers.

    What fills agrikd's store is a process before the race, so that its memory is not counted to the one that replays.
    So few steps tell little of the students: their accuracy only shows that all of them learn the same.
    """
    pytest.importorskip("timm.task")
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    raw = pair(
        method={"name": "kd", "temperature": 2, "weight_kd": 1},
        optim={"steps": STEPS * (TURNS + 1), "batch": BATCH, "lr": 2e-3, "weight_decay": 0, "ema": 0, "clip": 0},
    )
    raw["data"] = {**raw["data"], "workers": 0}
    others = [name for name in OTHERS if importlib.util.find_spec(name)]
    with contextlib.ExitStack() as stack:
        with Contender.open(REPLAYED, raw) as first:
            filling = first.ask()
        arms = {name: stack.enter_context(Contender.open(name, raw)) for name in (LIVE, REPLAYED, *others)}
        for arm in arms.values():
            arm.ask()
        found = race({name: arm.turn for name, arm in arms.items()}, BATCH * STEPS, TURNS)
        last = {name: arm.ask() for name, arm in arms.items()}
    fastest = max(others, key=found.rate)
    title = "Distilling tf_efficientnet_lite2 at 224 px into mobilenetv3_small_050 at 112 px"
    found.show(f"{title}, {len(arms)} processes in turns, batches of {BATCH}", "views", fastest)
    print(f"{'':34}{'CPU s/epoch':>14}{'peak MiB':>10}{f'test accuracy after {STEPS * (TURNS + 1)} steps':>36}")
    for name, said in last.items():
        epoch_s = 100 * statistics.median(found.cpu_s[name]) / found.items
        print(f"{name:34}{epoch_s:14.2f}{said['peak_mib']:10.0f}{said['accuracy']:36.3f}")
    print(f"the store was filled before, once, in {filling['cpu_s']:.1f} CPU s ({filling['clock_s']:.1f} s by clock)")
    for name in set(OTHERS) - set(others):
        print(f"{name} is not installed, so it is left out: pip install 'agrikd[bench]'")
    for name, arm in arms.items():  # the same nets, pixels and loss; the store keeps float16
        assert arm.losses[0] == pytest.approx(arms[LIVE].losses[0], rel=2e-2 if name == REPLAYED else 1e-3), name
    assert found.ratio(LIVE, fastest) >= 1 / 1.05
    assert found.ratio(REPLAYED, fastest) >= 2
