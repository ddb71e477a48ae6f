"""A device gets what was exported, and the probes would tell if it answered otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agrikd import files, image, pack, trust
from agrikd.bundle import Bundle, File
from agrikd.cli import app
from agrikd.dsse import Key
from agrikd.errors import InputError, ParityError
from agrikd.export import artefacts
from agrikd.pack import Options
from agrikd.predict.ort import OrtPredictor
from agrikd.run import Run
from agrikd.types import Calibration


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "colours"
    shutil.copytree(colours, folder)
    artefacts.export(folder, "fp32", 8)
    artefacts.export(folder, "fp16", 8)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    done = CliRunner().invoke(app, ["keys", "new", str(folder / "k"), "--root", str(folder / "root.json")])
    assert done.exit_code == 0, done.output
    return folder


def contents(path: Path) -> dict[str, bytes]:
    with Bundle(path) as opened:
        listed: tuple[File, ...] = opened.release.files
        return {
            one.name: b"".join(opened.chunk(place, n) for n in range(len(one.chunks)))
            for place, one in enumerate(listed)
        }


def test_the_verbs_and_what_is_in_it(run: Path, keys: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.yaml"
    labels.write_text(
        "es: {blight: tizón, healthy: sana, rust: roya}\nen: {blight: Blight, healthy: Healthy, rust: Rust}"
    )
    out = tmp_path / "c.akb"
    words = [
        "bundle",
        "pack",
        str(run),
        "--key",
        str(keys / "k"),
        "--out",
        str(out),
        "--labels",
        str(labels),
        "--seq",
        "9",
    ]
    done = CliRunner().invoke(app, [*words, "--name", "colours", "--budget-ms", "50"])
    assert done.exit_code == 0, done.output
    held = contents(out)
    with Bundle(out) as opened:
        made = opened.release
    assert held["model.onnx"] == (run / "model.onnx").read_bytes()
    assert held["model.fp16.onnx"] == (run / "model.fp16.onnx").read_bytes()
    assert made.name == "colours" and made.seq == 9 and made.budget_ms == 50 and made.resize == image.RESIZE
    assert made.labels["es"] == ("tizón", "sana", "roya") and made.provenance["recipe_digest"]
    assert [one.precision for one in made.artefacts] == ["fp32", "fp16"]
    assert 0 < made.artefacts[0].atol < made.artefacts[1].atol
    card = held["card.md"].decode()
    assert "test_efficientnet" in card and "model card" not in card and "## Forms" in card and "Not measured" in card
    verify = ["bundle", "verify", str(out), "--root", str(keys / "root.json")]
    assert CliRunner().invoke(app, verify).exit_code == 0
    shown = CliRunner().invoke(app, ["bundle", "show", str(out), "--json"])
    assert json.loads(shown.stdout)["seq"] == 9


def test_what_they_made_as_json(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    made = said("keys", "new", "k", "--root", "root-1.dsse")
    assert {**made, "key": ""} == {"key": "", "path": "k", "public": "k.pub", "root": "root-1.dsse"}
    added = said("keys", "new", "other")
    assert added["root"] is None and len(made["key"]) == 16
    words = ["keys", "rotate", "root-1.dsse", "--key", "k", "--add", "other.pub", "--out", "root-2.dsse"]
    assert said(*words) == {"version": 2, "path": "root-2.dsse", "threshold": 1}
    packed = said("bundle", "pack", str(run), "--key", "k", "--out", "c.akb", "--seq", "3", "--name", "c")
    assert packed["seq"] == 3 and packed["size_bytes"] > 1000 and packed["path"] == "c.akb" and not packed["calibrated"]
    assert said("bundle", "verify", "c.akb", "--root", "root-1.dsse") == {"path": "c.akb", "name": "c", "seq": 3}
    permit = said("bundle", "permit", "c.akb", "--key", "k", "--floor", "9", "--out", "back.dsse")
    assert permit == {"path": "back.dsse", "name": "c", "seq": 3, "floor": 9}


def test_a_rotation_keeps_how_many_keys_must_sign_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = [Key.new(Path(name)) for name in ("a", "b")]
    files.write_bytes(Path("root-1.dsse"), trust.first(held, 2).to_bytes())

    def rotated(out: str, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(
            app, ["keys", "rotate", "root-1.dsse", "--key", "a", "--key", "b", "--out", out, *words]
        )
        assert done.exit_code == 0, done.output
        return trust.Root.read(Path(out)).threshold, done.stderr.replace("\n", " ")

    kept, said = rotated("root-2.dsse")
    assert kept == 2 and "2 of its keys must sign" in said and "fewer" not in said
    fewer, said = rotated("root-2b.dsse", "--threshold", "1")
    assert fewer == 1 and "1 instead of 2" in said


def test_what_is_not_calibrated_is_said(
    run: Path, colours: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bundle", "pack", str(run), "--key", str(keys / "k"), "--out", str(tmp_path / "c.akb")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "was not calibrated" in done.stderr and f"agrikd calibrate {run}" in done.stderr
    calibrated = tmp_path / "calibrated"
    shutil.copytree(colours, calibrated)
    Run.open(calibrated).write_calibration(Calibration(1.5, *[0.5] * 6, 40, "val"))
    artefacts.export(calibrated, "fp32", 8)
    words[2] = str(calibrated)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "was not calibrated" not in done.stderr


def test_each_file_has_the_calibration_of_the_run(colours: Path, keys: Path, tmp_path: Path) -> None:
    folder, key = tmp_path / "run", Key.read(keys / "k")
    shutil.copytree(colours, folder)
    artefacts.export(folder, "fp16", 8)

    def refused() -> list[tuple[str, str]]:
        with pytest.raises(InputError, match="was exported with another calibration") as caught:
            pack.pack(folder, tmp_path / "c.akb", [key], Options())
        return [(one.where, one.mend) for one in caught.value.problems]

    half = str(folder / "model.fp16.onnx"), f"export it again: agrikd export fp16 {folder}"
    whole = str(folder / "model.onnx"), f"export it again: agrikd export onnx {folder}"
    Run.open(folder).write_calibration(Calibration(1.5, *[0.5] * 6, 40, "val"))
    assert refused() == [whole, half]
    artefacts.export(folder, "fp32", 8)
    assert refused() == [half]
    artefacts.export(folder, "fp16", 8)
    Run.open(folder).write_calibration(Calibration(2.5, *[0.5] * 6, 40, "val"))
    assert refused() == [whole, half]
    artefacts.export(folder, "fp16", 8)
    assert pack.pack(folder, tmp_path / "c.akb", [key], Options()).spec.calibration == Run.open(folder).calibration


def test_a_stranger_s_signature_is_exit_code_nine(run: Path, keys: Path, tmp_path: Path) -> None:
    Key.new(tmp_path / "stranger")
    pack.pack(run, tmp_path / "c.akb", [Key.read(tmp_path / "stranger")], Options(seq=1))
    done = CliRunner().invoke(app, ["bundle", "verify", str(tmp_path / "c.akb"), "--root", str(keys / "root.json")])
    assert done.exit_code == 9 and "0 trusted signatures" in done.stderr and "Traceback" not in done.stderr


def test_the_same_run_gives_the_same_bytes(
    run: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a.akb", "b.akb"):
        pack.pack(run, tmp_path / name, [Key.read(keys / "k")], Options())
    assert (tmp_path / "a.akb").read_bytes() == (tmp_path / "b.akb").read_bytes()
    with Bundle(tmp_path / "a.akb") as opened:
        assert opened.release.seq == 1700000000 and opened.release.version == "2023-11-14"


def test_the_probes_answer_as_recorded_and_cover_the_classes(run: Path, keys: Path, tmp_path: Path) -> None:
    made = pack.pack(run, tmp_path / "c.akb", [Key.read(keys / "k")], Options(seq=1))
    held = contents(tmp_path / "c.akb")
    photos = [image.decode(held[name], name) for name in made.probes]
    answers = {name: np.array(logits, np.float32) for name, logits in json.loads(held["answers.json"]).items()}
    assert len(photos) == 8 and set(answers) == {"fp32", "fp16"}
    assert set(answers["fp32"].argmax(axis=1)) == {0, 1, 2}
    for one in made.artefacts:
        (tmp_path / one.file).write_bytes(held[one.file])
        again = np.stack([said.logits for said in OrtPredictor(tmp_path / one.file)(photos)])
        np.testing.assert_allclose(again, answers[one.precision], atol=one.atol / 10)
        shuffled = again[:, [1, 2, 0]]
        assert np.abs(shuffled - answers[one.precision]).max() > 2 * one.atol


def test_what_was_changed_since_its_export_is_refused(run: Path, keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "model.fp16.onnx").unlink()
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError) as caught:
        pack.pack(folder, tmp_path / "c.akb", [Key.read(keys / "k")], Options())
    assert len(caught.value.problems) == 2 and "changed since it was exported" in str(caught.value)
    (folder / "artefacts.json").unlink()
    with pytest.raises(InputError, match="has no export"):
        pack.pack(folder, tmp_path / "c.akb", [Key.read(keys / "k")], Options())
    assert not (tmp_path / "c.akb").exists()


def test_all_labels_that_are_wrong_are_said_at_once(run: Path, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "l.yaml").write_text("es: {blight: x, weed: y}\nfr: {healthy: z, rust: w}\n")
    with pytest.raises(InputError) as caught:
        pack.pack(run, tmp_path / "c.akb", [Key.read(keys / "k")], Options(labels=tmp_path / "l.yaml"))
    said = str(caught.value)
    assert len(caught.value.problems) == 4 and "es: names weed" in said and "fr: lacks blight" in said


@pytest.mark.parametrize(("day", "wrong"), [("2026-01-01", "has gone by"), ("spring", "is no day"), ("", "is no day")])
def test_a_last_day_that_is_none_or_has_gone_by_is_refused(
    run: Path, keys: Path, tmp_path: Path, day: str, wrong: str
) -> None:
    words = ["bundle", "pack", str(run), "--key", str(keys / "k"), "--out", str(tmp_path / "c.akb"), "--expires", day]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and wrong in done.stderr and not (tmp_path / "c.akb").exists()


def test_a_net_that_cannot_tell_classes_apart_is_no_release(
    run: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_SLACK", {"fp32": 0.6, "fp16": 0.6})
    with pytest.raises(ParityError, match="get the same logits"):
        pack.pack(run, tmp_path / "c.akb", [Key.read(keys / "k")], Options())
    assert not (tmp_path / "c.akb").exists()
