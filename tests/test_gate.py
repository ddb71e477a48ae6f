"""Teachers that must be refused, each with its own reason, and the one that must pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agrikd import files, gate, jobs, train
from agrikd.data.loader import Loader
from agrikd.errors import GateError
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec, parse
from agrikd.run import Run
from agrikd.tasks.classification import Classification

CLASSES = ("blight", "healthy", "rust")
TASK = Classification(CLASSES)


@pytest.fixture(scope="module")
def loader(tiny: Callable[..., dict[str, Any]], taught: Path) -> Loader:
    raw = tiny(teachers=[{"run": str(taught)}], method={"name": "kd"})
    return jobs.prepare(parse(raw, "test")).loader


def teacher(taught: Path, **changes: Any) -> TimmNet:
    return open_net(NetSpec(run=taught, **changes), CLASSES).eval().requires_grad_(False)


def answers(checks: list[gate.Check]) -> dict[str, str]:
    return {check.name: check.answer for check in checks}


def why(checks: list[gate.Check]) -> str:
    return " | ".join(f"{check.name}: {check.why}" for check in checks if check.answer == "refused")


def test_a_taught_teacher_passes(taught: Path, loader: Loader) -> None:
    checks = gate.check(teacher(taught), loader, TASK, Run.open(taught), None)
    assert answers(checks) == {
        "class names and order": "ok",
        "declared normalisation": "ok",
        "trained head": "ok",
        "eval mode, no gradient": "ok",
        "has not seen what judges": "ok",
        "above chance": "ok",
        "beats the student": "not checked",
    }


def test_a_random_head_is_refused(taught: Path, loader: Loader) -> None:
    net = teacher(taught)
    net.origin = replace(net.origin, head_trained=False)
    torch.manual_seed(0)
    torch.nn.init.normal_(net.classifier.weight, std=0.02)
    said = why(gate.check(net, loader, TASK, None, None))
    assert "the classifier is random" in said and "agrikd teach" in said


def test_a_random_head_that_claims_to_be_trained_is_caught_by_its_answers(taught: Path, loader: Loader) -> None:
    net = teacher(taught)
    torch.manual_seed(0)
    torch.nn.init.normal_(net.classifier.weight, std=0.02)
    assert "above chance: accuracy" in why(gate.check(net, loader, TASK, None, None))


@pytest.mark.parametrize("declared", [True, False])
def test_shuffled_classes_are_refused(taught: Path, loader: Loader, declared: bool) -> None:
    net = teacher(taught)
    order = [2, 0, 1]
    if declared:
        net.origin = replace(net.origin, classes=tuple(CLASSES[i] for i in order))
        assert "the same classes in another order" in why(gate.check(net, loader, TASK, None, None))
        return
    with torch.no_grad():
        net.classifier.weight.copy_(net.classifier.weight[order])
        net.classifier.bias.copy_(net.classifier.bias[order])
    said = why(gate.check(net, loader, TASK, None, None))
    assert "above chance" in said and "another order, as in a shuffled label list" in said


def test_another_normalisation_is_refused(taught: Path, loader: Loader) -> None:
    net = teacher(taught, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    said = why(gate.check(net, loader, TASK, None, None))
    assert "it was trained with mean (0.5, 0.5, 0.5)" in said and "the recipe gives mean (0.485, 0.456, 0.406)" in said


def test_a_normalisation_nobody_declared_is_refused(taught: Path, loader: Loader) -> None:
    net = teacher(taught)
    net.origin = replace(net.origin, mean=None)
    assert "does not say its mean and std" in why(gate.check(net, loader, TASK, None, None))


def test_another_class_count_is_refused_and_its_answers_not_judged(taught: Path, loader: Loader) -> None:
    net = teacher(taught)
    net.origin = replace(net.origin, classes=(*CLASSES, "mildew"))
    checks = gate.check(net, loader, TASK, None, None)
    assert "it knows 4 classes, the photos have 3" in why(checks)
    assert answers(checks)["above chance"] == "not checked"


def test_a_teacher_in_training_mode_is_refused(taught: Path, loader: Loader) -> None:
    net = teacher(taught)
    net.requires_grad_(True)
    assert "wants gradients" in why(gate.check(net, loader, TASK, None, None)).replace("want ", "wants ")


def test_a_teacher_no_better_than_the_student_is_refused(taught: Path, loader: Loader) -> None:
    """The student alone is played by the same net, so the teacher is exactly as good."""
    checks = gate.check(teacher(taught), loader, TASK, None, Run.open(taught))
    assert "a teacher no better than the student makes it worse" in why(checks)
    assert [check.name for check in checks if check.answer == "refused"] == ["beats the student"]


def test_without_val_split_held_out_predictions_of_both_are_compared(
    taught: Path, loader: Loader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(row for row in loader.manifest.rows if row.split != "val")
    train_alone = copy(loader)
    train_alone.manifest = replace(loader.manifest, rows=rows)
    folder = tmp_path / "alone"
    shutil.copytree(taught, folder)
    truth, logits = Run.open(taught).held_out() or (None, None)
    assert truth is not None and logits is not None
    (folder / "held_out.npz").unlink()

    def asked() -> gate.Check:
        return gate.check(teacher(taught), train_alone, TASK, Run.open(taught), Run.open(folder))[-1]

    found = asked()
    assert found.answer == "not checked" and f"agrikd calibrate {folder} makes them" in found.why
    gate.decide([[found]], Run.open(folder), None)
    assert "has not checked “beats the student”: there is no val split" in unwrapped(capsys.readouterr().err)
    gate.decide([[found]], Run.open(folder), "a study")
    assert capsys.readouterr().err == ""
    Run.open(folder).write_held_out(truth, -logits)
    assert asked().answer == "ok"
    Run.open(folder).write_held_out(truth, logits)
    assert asked().answer == "refused"


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_a_refusal_says_whose_and_a_control_s_says_nothing(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "seed-0" / "kd"
    shutil.copytree(taught, folder)
    refused = [[gate.Check("trained head", "refused", "the classifier is random")]]
    gate.decide(refused, Run.open(folder), "a study trains from refused teachers too")
    assert f"{folder}: the gate refuses its teacher:" in unwrapped(capsys.readouterr().err)
    gate.decide(refused, Run.open(folder), gate.CONTROL)
    assert capsys.readouterr().err == "" and not files.read_json(folder / "gate.json")["passed"]


def test_a_refusal_is_kept_and_leaves_no_trained_run(
    taught: Path, tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    wrong = {"run": str(taught), "mean": [0.1, 0.1, 0.1]}
    raw = tiny(teachers=[wrong], method={"name": "kd"})
    with pytest.raises(GateError, match=r"(?s)not fit to teach.*normalisation.*--override-gate"):
        train.fit(parse(raw, "test"), tmp_path / "refused")
    assert not (tmp_path / "refused" / "weights.safetensors").exists()
    assert not files.read_json(tmp_path / "refused" / "gate.json")["passed"]
    run = train.fit(parse({**raw, "gate": {"override": "to see how bad it is"}}, "test"), tmp_path / "overridden")
    said = files.read_json(run.folder / "gate.json")
    assert said["override"] == "to see how bad it is" and not said["passed"]


def test_held_out_predictions_are_the_evidence_where_there_is_no_val_split(taught: Path) -> None:
    stored = gate._held_out_evidence(Run.open(taught), TASK)
    assert stored is not None and stored.logits.shape == (len(stored.truth), 3)
    assert np.isfinite(stored.logits).all()
