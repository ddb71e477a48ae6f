"""Photos that a net has learned from never judge it, and figures on other photos are not its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from agrikd import card, crossfit, files, gate, jobs, judge, learned, train
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest
from agrikd.errors import GateError, InputError
from agrikd.export.artefacts import export
from agrikd.nets.sources import open_net, read_weights
from agrikd.recipe import NetSpec, parse
from agrikd.run import Run
from agrikd.tasks.classification import Classification

Tiny = Callable[..., dict[str, Any]]
OTHER = {"train": "test", "test": "train", "val": "val"}


def turned(manifest: Manifest) -> Manifest:
    """Labelled photos of train judge, and those of test teach."""
    rows = (replace(row, split=OTHER[row.split]) if row.target in manifest.classes else row for row in manifest.rows)
    return replace(manifest, rows=tuple(row for row in rows if row.target in (*manifest.classes, None)))


@pytest.fixture
def own(tiny_photos: Path, tmp_path: Path) -> Path:
    """A manifest of the tiny photos that a test may change."""
    shutil.copytree(tiny_photos, tmp_path / "photos")
    return tmp_path / "photos" / "manifest.csv"


@pytest.fixture
def run(tiny: Tiny, own: Path, tmp_path: Path) -> Run:
    raw = tiny(data={"manifest": str(own)}, optim={"steps": 2, "batch": 8})
    return train.fit(parse(raw, "test"), tmp_path / "run")


def test_a_run_keeps_what_it_and_its_teacher_saw(tiny: Tiny, taught: Path, tmp_path: Path) -> None:
    manifest = manifests.read(Path(tiny()["data"]["manifest"]))
    labelled = learned.marks(manifest, manifest.indices("train", labelled=True))
    every = learned.marks(manifest, manifest.indices("train"))
    assert Run.open(taught).learned() == labelled and len(labelled) == 24 and len(every) == 42
    raw = tiny(teachers=[{"run": str(taught)}], method={"name": "kd"}, optim={"steps": 2, "batch": 8})
    raw["data"] |= {"labels_per_class": 6, "subset_seed": 1}
    assert learned.learned_from(parse(raw, "test"), manifest) == labelled, "the teacher saw them all"
    raw["data"] |= {"unlabelled_share": 0.5}
    assert train.fit(parse(raw, "test"), tmp_path / "run").learned() == every


def test_a_manifest_split_anew_does_not_judge(run: Run, own: Path) -> None:
    manifests.write(turned(manifests.read(own)), own)
    with pytest.raises(InputError, match="has learned from 24 of the 24 photos of test"):
        judge.judge([run.folder], None, "test", None, None)
    assert judge.judge([run.folder], None, "train", None, None).reports


def test_every_model_that_knows_the_photos_is_named(run: Run, own: Path, tiny: Tiny, tmp_path: Path) -> None:
    manifests.write(turned(manifests.read(own)), own.with_name("turned.csv"))
    raw = tiny(data={"manifest": str(own.with_name("turned.csv"))}, optim={"steps": 2, "batch": 8})
    other = train.fit(parse(raw, "test"), tmp_path / "other")
    with pytest.raises(InputError) as refused:
        judge.judge([run.folder, other.folder], None, "test", None, None)
    assert [one.where for one in refused.value.problems] == [str(other.folder)]


def test_a_report_on_other_photos_is_not_the_run_s_own(run: Run, own: Path, tmp_path: Path) -> None:
    judge.judge([run.folder], None, "test", None, None)
    before = (run.folder / "report_test.json").read_bytes()
    manifest = manifests.read(own)
    few = manifest.indices("test", labelled=True)[::4]
    manifests.write(replace(manifest, rows=tuple(manifest.rows[row] for row in few)), own.with_name("few.csv"))
    made = judge.judge([run.folder], own.with_name("few.csv"), "test", None, tmp_path / "few.html")
    assert "run keeps no report: these are not known to be the test photos of its own data." in made.note
    assert (run.folder / "report_test.json").read_bytes() == before
    assert run.record()["test_readings"] == 1
    assert f"On {json.loads(before)['rows']} photos of test" in "\n".join(card._figures(run))
    assert "read 2 times" in judge.judge([run.folder], own, "test", None, tmp_path / "again.html").note


def test_a_manifest_that_lies_elsewhere_by_now_is_the_run_s_own(run: Run, own: Path) -> None:
    moved = own.parent.rename(own.parent.with_name("moved"))
    assert judge.judge([run.folder], moved / own.name, "test", None, None).note == ""
    assert (run.folder / "report_test.json").exists() and run.record()["test_readings"] == 1


def test_an_export_is_judged_as_its_run_is(run: Run, own: Path, tmp_path: Path) -> None:
    made = export(run.folder, "fp32", 8)
    manifests.write(turned(manifests.read(own)), own)
    for path in (run.folder / str(made.file), run.folder):
        with pytest.raises(InputError, match="has learned from 24 of the 24 photos of test"):
            judge.judge([path], own, "test", None, tmp_path / "report.html")


def test_a_student_of_a_teacher_that_does_not_say_does_not_say_either(taught: Path, tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "teacher")
    (tmp_path / "teacher" / "learned.txt").unlink()
    raw = tiny(teachers=[{"run": str(tmp_path / "teacher")}], method={"name": "kd"}, optim={"steps": 2, "batch": 8})
    assert train.fit(parse(raw, "test"), tmp_path / "student").learned() is None


def test_a_calibration_on_photos_that_taught_is_refused(run: Run, own: Path) -> None:
    manifest = manifests.read(own)
    taught = {*manifest.indices("train", labelled=True)[:5]}
    rows = (replace(row, split="val") if number in taught else row for number, row in enumerate(manifest.rows))
    manifests.write(replace(manifest, rows=tuple(rows)), own)
    with pytest.raises(InputError, match="has learned from 5 of the 17 photos of val"):
        crossfit.held_out(run)


def test_a_teacher_that_has_seen_what_judges_is_refused(taught: Path, tiny: Tiny, own: Path, tmp_path: Path) -> None:
    manifests.write(turned(manifests.read(own)), own)
    raw = tiny(data={"manifest": str(own)}, teachers=[{"run": str(taught)}], method={"name": "kd"})
    with pytest.raises(GateError, match="it has learned from 24 of the 36 photos of val and test"):
        train.fit(parse(raw, "test"), tmp_path / "student")


def test_held_out_predictions_of_other_photos_are_no_evidence(
    taught: Path, tiny: Tiny, own: Path, tmp_path: Path
) -> None:
    """What a teacher is worth on last season's leaves says nothing of these."""
    manifest = manifests.read(own)
    new = (row for row in turned(manifest).rows if row.split != "val" and row.target)
    loader = jobs.prepare(parse(tiny(), "test")).loader
    loader.manifest = replace(manifest, rows=tuple(replace(row, split="train") for row in new if row.split == "train"))
    net = open_net(NetSpec(run=taught), manifest.classes).eval().requires_grad_(False)
    alone = tmp_path / "alone"
    shutil.copytree(taught, alone)
    checks = {
        one.name: one for one in gate.check(net, loader, Classification(manifest.classes), Run.open(taught), None)
    }
    assert "held-out rows" not in checks["above chance"].why
    found = gate._incomparable(Run.open(alone), loader, Classification(manifest.classes))
    assert found == "the student alone learned from other photos, or from fewer labels"


def test_a_run_of_an_early_version_is_told_by_its_digest(run: Run, own: Path) -> None:
    manifest = manifests.read(own)
    (run.folder / "learned.txt").unlink()
    assert learned.seen(run, manifest, manifest.indices("test")) is None
    assert learned.is_of(run, manifest) and not learned.is_of(run, turned(manifest))
    check = gate._stranger(manifest, run)
    assert check.answer == "not checked" and "do not say of which photos they are" in check.why
    assert judge.judge([run.folder], None, "test", None, None).reports


def test_hidden_labels_are_no_change_of_the_data(tiny: Tiny, own: Path, tmp_path: Path) -> None:
    raw = tiny(data={"manifest": str(own), "labels_per_class": 6}, optim={"steps": 2, "batch": 8})
    made, whole = train.fit(parse(raw, "test"), tmp_path / "run"), manifests.read(own)
    assert learned.is_as_it_was(made, whole) and not learned.is_as_it_was(made, turned(whole))
    assert files.read_json(made.folder / "run.json")["data_digest"] != whole.digest
    fewest = replace(whole, rows=tuple(row for row in whole.rows if row.target != "rust"))
    assert not learned.is_as_it_was(made, fewest)


def test_a_run_does_not_go_on_under_another_teacher(
    taught: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a teacher that was taught anew is the same."""
    shutil.copytree(taught, tmp_path / "teacher")
    raw = tiny(teachers=[{"run": str(tmp_path / "teacher")}], method={"name": "kd"})
    recipe, out = parse(raw, "test"), tmp_path / "student"
    with monkeypatch.context() as patched:
        patched.setattr(train, "_finish", lambda *_: None)
        train.fit(recipe, out)
    student, teacher = Run(out, recipe).record()["weights"]
    assert student is None and teacher == files.sha256_of(taught / "weights.safetensors")
    weights, said = read_weights(tmp_path / "teacher" / "weights.safetensors")
    changed = {name: value * 1.5 if name.startswith("classifier") else value for name, value in weights.items()}
    save_file(changed, tmp_path / "teacher" / "weights.safetensors", {"agrikd": json.dumps(said)})
    with pytest.raises(InputError, match="began with other weights or teachers"):
        train.fit(recipe, out, resume=True)
    shutil.copy(taught / "weights.safetensors", tmp_path / "teacher")
    assert train.fit(recipe, out, resume=True).done


def test_two_processes_do_not_train_one_run(run: Run) -> None:
    with Run.held(run.folder), pytest.raises(InputError, match="another process trains into it"):
        train.fit(run.recipe, run.folder, resume=True)
    assert train.fit(run.recipe, run.folder, resume=True).done


def test_what_was_made_for_nothing_goes(tmp_path: Path) -> None:
    with pytest.raises(InputError), Run.held(tmp_path / "runs" / "new"):
        raise InputError([])
    assert not (tmp_path / "runs").exists()
    with Run.held(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "run.json").touch()
    assert (tmp_path / "runs" / "new" / "run.json").exists()


def test_a_refused_run_that_is_begun_anew_keeps_nothing_of_the_refusal(
    taught: Path, tiny: Tiny, own: Path, tmp_path: Path
) -> None:
    manifests.write(turned(manifests.read(own)), own)
    raw = tiny(data={"manifest": str(own)}, teachers=[{"run": str(taught)}], method={"name": "kd"})
    recipe = parse(raw, "test")
    with pytest.raises(GateError):
        train.fit(recipe, tmp_path / "student")
    made = train.fit(recipe.without_teacher(), tmp_path / "student")
    assert made.done and not (made.folder / "gate.json").exists()
