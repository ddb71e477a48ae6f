"""The loop: resumes to the same weights, stops at a loss that is not finite, keeps what a Run must hold."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kit import same_weights

from agrikd import jobs, train
from agrikd.errors import InputError, TrainingError
from agrikd.recipe import OptimSpec, parse
from agrikd.run import Run

Tiny = Callable[..., dict[str, Any]]


def distilled(tiny: Tiny, taught: Path, **changes: Any) -> dict[str, Any]:
    """Everything on that could break a resume: augmentation, EMA, unlabelled rows, dropout, a live teacher."""
    raw = tiny(teachers=[{"run": str(taught)}], method={"name": "kd"}, gate={"override": "a test"}, **changes)
    raw["data"] = {**raw["data"], "unlabelled_share": 0.5}
    raw["student"] = {**raw["student"], "kwargs": {"drop_rate": 0.2}}
    return raw


_CHILD = """
import sys, yaml, torch
from pathlib import Path
from agrikd import recipe, train
torch.set_num_threads(1)
raw = yaml.safe_load(Path(sys.argv[1]).read_text())
train.fit(recipe.parse(raw, "child"), Path(sys.argv[2]), resume=True)
"""


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(recipe), str(out)], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


def kill_after(run: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """SIGKILL as soon as the run has logged `step`."""
    deadline = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and any(json.loads(line)["step"] >= step for line in _whole_lines(metrics)):
            run.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    run.communicate()


def _whole_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1]


@pytest.mark.torture
def test_a_run_killed_five_times_ends_with_the_same_weights(tiny: Tiny, taught: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("AGRIKD_TORTURE", "5"))
    steps = 6 * (kills + 1)
    raw = distilled(tiny, taught, optim={"steps": steps, "batch": 8, "checkpoint_every": 3, "lr": 1e-3, "ema": 0.9})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    whole = start(recipe, tmp_path / "whole")
    assert whole.communicate()[1] is not None and whole.returncode == 0
    draw = random.Random(0)
    killed = 0
    for step in sorted(draw.sample(range(1, steps), kills)):
        run = start(recipe, tmp_path / "killed")
        kill_after(run, tmp_path / "killed" / "metrics.jsonl", step)
        killed += run.returncode == -signal.SIGKILL
    last = start(recipe, tmp_path / "killed")
    last.communicate()
    assert last.returncode == 0
    assert killed >= kills - 1, "the run ended before it could be killed"
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert Run.open(tmp_path / "whole").history() == Run.open(tmp_path / "killed").history()


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_run_interrupted_inside_a_step_resumes_to_the_same_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    recipe = parse(tiny(), "test")
    train.fit(recipe, tmp_path / "whole")
    step = train._step

    def interrupted(state: train.TrainState, batch: Any) -> Any:
        if state.step == stop:
            raise KeyboardInterrupt
        return step(state, batch)

    monkeypatch.setattr(train, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.fit(recipe, tmp_path / "again")
    monkeypatch.setattr(train, "_step", step)
    train.fit(recipe, tmp_path / "again", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "again")


def test_a_finished_run_holds_what_later_stages_read(tiny: Tiny, tmp_path: Path) -> None:
    run = train.fit(parse(tiny(), "test"), tmp_path / "run")
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"recipe.yaml", "run.json", "metrics.jsonl", "learned.txt", "weights.safetensors", "embeddings.npz"}
    record = run.record()
    assert record["classes"] == ["blight", "healthy", "rust"]
    assert record["versions"]["torch"] and record["recipe_digest"] == run.recipe.digest and record["data_digest"]
    kept = np.load(run.folder / "embeddings.npz")
    assert kept["embedding"].shape[0] == kept["thumbnail"].shape[0] == len(kept["path"]) == 24
    assert kept["thumbnail"].shape[1:] == (96, 96, 3)
    assert [entry["step"] for entry in run.history()] == [2, 4, 6]
    assert all({"loss", "task", "lr", "val_mistake"} <= entry.keys() for entry in run.history())
    assert Run.open(run.folder).recipe == run.recipe


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tiny: Tiny, tmp_path: Path) -> None:
    recipe = parse(tiny(optim={"steps": 50, "batch": 8, "lr": 1e30, "clip": 0, "warmup": 0, "name": "sgd"}), "test")
    with pytest.raises(TrainingError, match=r"(?s)the loss is not finite.*task.*lower optim.lr") as caught:
        train.fit(recipe, tmp_path / "run")
    (kept,) = (tmp_path / "run").glob("non_finite_batch_*.pt")
    assert str(kept) in str(caught.value)
    assert torch.load(kept, weights_only=True)["images"].shape[0] == 8
    with pytest.raises(InputError, match="has not finished"):
        Run.open(tmp_path / "run")


def test_a_loss_that_is_not_finite_crosses_to_another_process(tiny: Tiny) -> None:
    """An exception that cannot be unpickled breaks a whole pool of processes."""
    job = jobs.prepare(parse(tiny(), "test"))
    job.student.classifier.weight.data.fill_(math.nan)
    state = train.TrainState(job.distiller, job.recipe.optim)
    with pytest.raises(train.NonFiniteError, match=r"^task nan$") as caught:
        train.fit_epoch(state, iter([job.loader.batch(job.sampler.draw(0))]), 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == "task nan"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny: Tiny, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.fit(parse(tiny(seed=seed), "test"), tmp_path / name)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_learning_rate_golden_values() -> None:
    spec = OptimSpec(lr=1.0, steps=100, warmup=0.1)
    assert train.learning_rate(spec, 0) == pytest.approx(1 / 11)
    assert train.learning_rate(spec, 9) == pytest.approx(10 / 11)
    assert train.learning_rate(spec, 10) == pytest.approx(1.0)
    assert train.learning_rate(spec, 55) == pytest.approx(0.5)
    assert train.learning_rate(spec, 99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_the_average_follows_the_formula(tiny: Tiny) -> None:
    job = jobs.prepare(parse(tiny(optim={"steps": 3, "batch": 8, "ema": 0.5}), "test"))
    state = train.TrainState(job.distiller, job.recipe.optim)
    name, live = next(iter(job.student.named_parameters()))
    followed = None
    for step in range(3):
        train.fit_epoch(state, iter([job.loader.batch(job.sampler.draw(step))]), 1)
        keep = min(0.5, (1 + step) / (10 + step))
        now = live.detach().clone()
        followed = now if followed is None else followed * keep + now * (1 - keep)
    average = dict(state.average.module.named_parameters())[name]
    assert torch.allclose(average, followed, atol=1e-7)


def test_stored_features_teach_as_the_live_teacher_does(tiny: Tiny, taught: Path, tmp_path: Path) -> None:
    raw = distilled(tiny, taught)
    raw["data"]["views"] = 3
    recipe = parse(raw, "test")
    job = jobs.prepare(recipe)
    live = job.distiller.teachers[0]
    cached = train._replayed(job).teachers[0]
    seen = 0
    for step in range(4):
        batch = job.loader.batch(job.sampler.draw(step))
        with torch.inference_mode():
            assert torch.allclose(live.on(batch).logits, cached.on(batch).logits, atol=2e-2)
        seen += len(batch.index)
    assert seen == 32
    with pytest.raises(ValueError, match="view seed"):
        cached.store(torch.tensor([0]), torch.tensor([3]))


def test_the_teacher_is_asked_about_no_photo_that_is_never_drawn(tiny: Tiny, taught: Path) -> None:
    stored = {}
    for share in (0.0, 0.5):
        raw = distilled(tiny, taught)
        raw["data"] |= {"views": 2, "unlabelled_share": share}
        job = jobs.prepare(parse(raw, "test"))
        teacher = train._replayed(job).teachers[0]
        stored[share] = tuple(np.flatnonzero(teacher.store._slots >= 0).tolist())
    assert stored[0.0] == job.manifest.indices("train", labelled=True)
    assert stored[0.5] == job.manifest.indices("train")
