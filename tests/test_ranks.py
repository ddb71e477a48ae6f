"""Two processes train as one does; where one dies the other ends with a clear error, and the job goes on later."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from agrikd import cli, ranks, train
from agrikd.errors import InputError
from agrikd.recipe import parse
from agrikd.run import Run

Tiny = Callable[..., dict[str, Any]]
STEPS = 20


@pytest.fixture(scope="module")
def raw(tiny: Tiny) -> dict[str, Any]:
    """kd from a stored teacher on fixed views, half the rows unlabelled, into a small student without batch norm."""
    made = tiny(teachers=[{"timm": "mobilenetv3_small_075", "input_size": 32}], method={"name": "kd"})
    made["gate"] = {"override": "a test"}
    made["data"] = {**made["data"], "views": 3, "unlabelled_share": 0.5}
    small = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    made["student"] = {"timm": "convnext_atto", "input_size": 32, "kwargs": small}
    made["optim"] = {"steps": STEPS, "batch": 8, "checkpoint_every": 1, "lr": 1e-3}
    return made


@pytest.fixture(scope="module")
def recipe(raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module", autouse=True)
def _without_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def alone(raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same recipe in one process."""
    return train.fit(parse(raw, "test"), tmp_path_factory.mktemp("alone") / "run")


Started = list["subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Starts ranks without torchrun: `words` to the command line, `code` before it."""
    running: Started = []

    def begin(words: list[Any], code: str = "", world: int = 2) -> Started:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
        line = [sys.executable, "-c", f"{code}\nfrom agrikd.cli import main\nmain()", *map(str, words)]
        begun = [
            subprocess.Popen(line, stdout=-1, stderr=-1, text=True, env={**os.environ, **meeting, "RANK": str(rank)})
            for rank in range(world)
        ]
        running.extend(begun)
        return begun

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def distill(recipe: Path, out: Path) -> list[Any]:
    return ["distill", recipe, "--out", out, "--resume", "--json"]


AT_STEP = """
import dataclasses, os, signal, time
from agrikd import ranks, train
take = train._step
def step(state, batch):
    if (ranks.rank(), state.step) == ({rank}, 7):
        {what}
    return take(state, batch)
train._step = step
"""


def seconds_until_error(survivor: subprocess.Popen[str]) -> tuple[float, str]:
    """And all that was said. What follows, Python's own end with torch loaded, takes a starved machine long."""
    assert survivor.stderr
    since, said = time.monotonic(), ""
    while "error: " not in said and (line := survivor.stderr.readline()):
        said += line
    seconds = time.monotonic() - since
    said += survivor.stderr.read()  # communicate() would not see what readline() has buffered
    survivor.wait()
    return seconds, said


def require_clear(said: str, rank: int) -> None:
    assert f"error: rank {rank} stops: another of the 2 processes of this job has died or stopped" in said
    assert "go on with --resume" in said and "Traceback" not in said
    assert len(said.splitlines()) <= 12


def require_close(run: Run, alone: Run) -> float:
    """Each step's loss and parts as with one process; returns the largest difference."""
    ours, theirs = run.history(), alone.history()
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs] == [*range(1, STEPS + 1)]
    apart = [abs(one[name] - other[name]) for one, other in zip(ours, theirs, strict=True) for name in other]
    assert ours[0].keys() == theirs[0].keys() >= {"loss", "task", "kd", "lr", "val_mistake"}
    assert max(apart) < 1e-4
    return max(apart)


def test_two_processes_train_as_one(
    recipe: Path, alone: Run, start: Callable[..., Started], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))  # photos and the teacher's answers: by both, anew
    first, second = start(distill(recipe, tmp_path / "run"))
    said, quiet = first.communicate(), second.communicate()
    assert (first.returncode, second.returncode) == (0, 0), said[1] + quiet[1]
    assert quiet == ("", "")
    assert json.loads(said[0])["step"] == STEPS and "the gate refuses" in said[1] and "next: agrikd calib" in said[1]
    run = Run.open(tmp_path / "run")
    apart = require_close(run, alone)
    ours, theirs = load_file(run.weights), load_file(alone.weights)
    assert ours.keys() == theirs.keys()
    far = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    print(f"largest differences: losses {apart:.2g}, weights {far:.2g}")
    assert 0 < far < 1e-3
    assert {path.name for path in run.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}


def test_a_killed_rank_ends_the_other_and_one_process_goes_on(
    raw: dict[str, Any], recipe: Path, alone: Run, start: Callable[..., Started], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    left, killed = start(distill(recipe, out), AT_STEP.format(rank=1, what="signal.pause()"))
    while left.poll() is None and not (
        (out / "metrics.jsonl").exists() and '"step": 5' in (out / "metrics.jsonl").read_text()
    ):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    seconds, said = seconds_until_error(left)
    print(f"the survivor stopped after {seconds:.2f} s")
    assert left.returncode == 6 and seconds < 30
    require_clear(said, rank=0)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] in (5, 6, 7)
    run = train.fit(parse(raw, "test"), out, resume=True)
    assert run.done
    require_close(run, alone)


SHORT = "from agrikd import ranks; ranks._SILENCE_S, ranks._GRACE_S = 5, 2\n"
"""What is waited for a rank that is silent: 15 s and 5 s else."""

ALONE_FOR_LONG = """
import os, signal, time
from agrikd import ranks, train
train._gate = lambda job, run: time.sleep(600)
if ranks.rank():
    train.prepare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""

DEATHS = {
    "rank 0 is killed": (1, AT_STEP.format(rank=0, what="os.kill(os.getpid(), signal.SIGKILL)")),
    "rank 1 meets an error": (0, AT_STEP.format(rank=1, what="raise MemoryError")),
    "rank 1 is frozen": (0, SHORT + AT_STEP.format(rank=1, what="os.kill(os.getpid(), signal.SIGSTOP)")),
    "rank 1 is killed while rank 0 works alone": (0, SHORT + ALONE_FOR_LONG),
}


@pytest.mark.parametrize("death", DEATHS)
def test_whatever_ends_one_rank_the_other_ends_too(
    recipe: Path, start: Callable[..., Started], tmp_path: Path, death: str
) -> None:
    survivor, code = DEATHS[death]
    begun = start(distill(recipe, tmp_path / "run"), code)
    other = begun[1 - survivor]
    ended = 0.0
    while begun[survivor].poll() is None and not ended:
        state = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0]
        ended = time.monotonic() if state in "TZ" else 0.0  # stopped, or dead
        time.sleep(0.01)
    seconds, said = seconds_until_error(begun[survivor])
    print(f"{death}: the other stopped after {seconds:.2f} s")
    assert begun[survivor].returncode == 6, said
    require_clear(said, survivor)
    assert seconds < 30
    assert ranks._SILENCE_S + ranks._GRACE_S + 2 * ranks._BEAT_S < 30
    if (tmp_path / "run" / "checkpoint.pt").exists():
        assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] in (6, 7)
    else:
        assert "alone" in death


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(
    recipe: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    broken = "batch = dataclasses.replace(batch, images=batch.images * float('nan'))"
    begun = start(distill(recipe, tmp_path / "run"), AT_STEP.format(rank=1, what=broken))
    for process in begun:
        said = process.communicate()[1]
        assert process.returncode == 6, said
        assert "step 7: the loss is not finite (task nan, kd nan); its batch is in" in said
    (kept,) = (tmp_path / "run").glob("non_finite_batch_*.pt")
    assert torch.load(kept, weights_only=True)["images"].shape[0] == 8, "the batch of all ranks"
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 7


def test_torchrun_goes_on_where_one_process_stopped(
    raw: dict[str, Any], recipe: Path, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, step = tmp_path / "run", train._step

    def interrupted(state: train.TrainState, batch: Any) -> Any:
        if state.step == 9:
            raise KeyboardInterrupt
        return step(state, batch)

    monkeypatch.setattr(train, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.fit(parse(raw, "test"), out)
    line = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", 2, "-m", "agrikd"]
    words = [sys.executable, "-m", *line, *distill(recipe, out)]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["step"] == STEPS
    assert done.stderr.count("next: agrikd calibrate") == 1
    require_close(Run.open(out), alone)


PRIMITIVES = """
import sys, torch
from torch import nn
from agrikd import ranks
from agrikd.errors import InputError
mine = ranks.rank()
with ranks.joined():
    assert list(ranks.part([*range(6)])) == [[0, 2, 4], [1, 3, 5]][mine]
    means = ranks.mean({"a": torch.tensor(1.0 + mine), "b": torch.tensor(2.0)})
    assert {name: float(value) for name, value in means.items()} == {"a": 1.5, "b": 2.0}
    assert torch.isnan(ranks.mean({"a": torch.tensor([1.0, float("nan")][mine])})["a"])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1).requires_grad_(False))
    frozen = nn.BatchNorm2d(4).eval()
    frozen.running_mean.fill_(mine)
    both = nn.ModuleList([net, frozen])
    images = torch.rand(2, 6, 3, 4, 4)
    net(images[mine]).square().mean().backward()
    own = [value.grad.clone() for value in net.parameters() if value.grad is not None]
    assert len(own) == 4
    ranks.share(both)
    for value, expected in zip(own, [p.grad for p in net.parameters() if p.grad is not None]):
        sums = ranks.mean({str(n): one for n, one in enumerate(value.flatten())})
        assert torch.allclose(torch.stack([*sums.values()]), expected.flatten(), atol=1e-7)
    first = nn.BatchNorm2d(4)
    with torch.no_grad():
        first(net[0](images[0]))
    assert torch.equal(net[1].running_mean, first.running_mean) and torch.equal(net[1].running_var, first.running_var)
    assert float(frozen.running_mean[0]) == mine, "what does not learn is left alone"
    seen = []
    with ranks.first():
        seen.append(mine)
    ranks.require_same({"recipe": "a", "photos": [1, None]})
    try:
        ranks.require_same({"recipe": "a", "photos": mine})
    except InputError as error:
        assert "not the same on all 2 ranks: photos" in str(error)
    else:
        raise AssertionError
print("right")
sys.exit()
"""


def test_what_ranks_tell_each_other(start: Callable[..., Started]) -> None:
    for process in start([], PRIMITIVES):
        out, said = process.communicate()
        assert (process.returncode, out) == (0, "right\n"), said


EQUAL_PARTS = {
    (8, 0.5, 2): "",
    (8, 0.0, 4): "",
    (7, 0.0, 2): "optim.batch=8",
    (6, 0.5, 2): "optim.batch=8 and data.unlabelled_share=0.5",
    (8, 0.1, 2): "optim.batch=10 and data.unlabelled_share=0.2",
    (32, 0.9, 3): "optim.batch=33 and data.unlabelled_share=0.909091",
    (4, 0.0, 4): "optim.batch=8",
    (9, 0.9, 3): "optim.batch=12 and data.unlabelled_share=0.75",
}
"""What is said of a batch, its unlabelled share and a number of processes."""


@pytest.mark.parametrize("asked", EQUAL_PARTS)
def test_a_batch_that_is_no_equal_parts_is_refused_with_one_that_is(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[int, float, int]
) -> None:
    batch, share, world = asked
    monkeypatch.setenv("WORLD_SIZE", str(world))

    def fit(batch: int, share: float) -> None:
        made = {**raw, "optim": {**raw["optim"], "batch": batch}, "data": {**raw["data"], "unlabelled_share": share}}
        train.fit(parse(made, "test"), tmp_path / "run")

    def meet() -> None:
        raise RuntimeError("it would begin")

    monkeypatch.setattr(ranks, "_meet", meet)
    if mend := EQUAL_PARTS[asked]:
        with pytest.raises(InputError, match=f"no equal parts for {world} processes") as caught:
            fit(batch, share)
        assert caught.value.problems[0].mend.endswith(f": set {mend}")
        named = dict(part.split("=") for part in mend.split(" and "))
        batch, share = int(named["optim.batch"]), float(named.get("data.unlabelled_share", 0))
    with pytest.raises(RuntimeError, match="it would begin"):
        fit(batch, share)
    assert not (tmp_path / "run").exists()


def test_other_verbs_refuse_torchrun_and_a_missing_rank_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = CliRunner().invoke(cli.app, ["teach", str(recipe)])
    assert refused.exit_code == 2 and "agrikd teach does its work in one process, not 2" in refused.stderr
    monkeypatch.delenv("RANK", raising=False)
    lost = CliRunner().invoke(cli.app, ["distill", str(recipe), "--out", str(tmp_path / "run")])
    assert lost.exit_code == 2 and "RANK expected, but not set" in lost.stderr and "unset WORLD_SIZE" in lost.stderr


def test_one_process_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with ranks.joined(), ranks.first():
        assert list(ranks.part(range(3))) == [0, 1, 2] and ranks.leads() and ranks.local_world() == 1
        assert not torch.distributed.is_initialized()
        ranks.require_same({"a": np.pi})
