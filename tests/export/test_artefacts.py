"""What is recorded of a Run's exports, by the verbs that make them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from agrikd import files, image, known
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import ParityError
from agrikd.export import artefacts, fp16, int8, lint
from agrikd.predict.ort import OrtPredictor
from agrikd.run import Run
from agrikd.types import Calibration


def agrikd(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, f"{words}: {done.output}"
    return done


@pytest.fixture
def run(colours: Path, tmp_path: Path) -> Path:
    shutil.copytree(colours, tmp_path / "run")
    return tmp_path / "run"


def test_each_precision_is_made_and_recorded(run: Path) -> None:
    half = json.loads(agrikd("export", "fp16", run, "--images", 12, "--json").stdout)
    assert half["why"] == "kept" and half["releases"] == list(lint.RELEASES)
    found = {one.precision: one for one in artefacts.artefacts(run)}
    assert list(found) == ["fp32", "fp16"], "FP32 comes first, and was made on the way"
    for one in found.values():
        assert one.file is not None and one.sha256 == files.sha256((run / one.file).read_bytes())
        assert one.size_bytes == (run / one.file).stat().st_size
    assert found["fp16"].size_bytes < 0.7 * found["fp32"].size_bytes
    for scales in ((), ("--fp16-scales",)):
        done = CliRunner().invoke(app, ["export", "int8", str(run), *scales])
        assert done.exit_code in (0, 5), done.output
    found = {one.precision: one for one in artefacts.artefacts(run)}
    assert list(found) == ["fp32", "fp16", "int8", "int8f16"]
    for precision in ("int8", "int8f16"):
        assert "of macro-F1 lost" in found[precision].found
        assert (found[precision].why == "kept") == (run / artefacts.FILES[precision]).exists()
    report = run / "report.html"
    agrikd("evaluate", run, "--split", "test", "--report", report)
    page = report.read_text()
    assert "What it was exported as" in page and page.count("model.fp16.onnx") == 1


def test_fp32_is_made_again_on_the_way_where_the_calibration_is_another(run: Path) -> None:
    artefacts.export(run, "fp16", 2)
    before = (run / "model.onnx").stat().st_ino
    artefacts.export(run, "fp16", 2)
    assert (run / "model.onnx").stat().st_ino == before
    seen = known.fit(np.random.default_rng(0).normal(size=(120, 50)).astype(np.float32), np.arange(120), 0).known
    calibration = Calibration(1.5, *[0.5] * 6, 40, "val", seen)
    Run.open(run).write_calibration(calibration)
    for _ in range(2):
        artefacts.export(run, "fp16", 2)
        said = [OrtPredictor(run / name).spec.calibration for name in ("model.onnx", "model.fp16.onnx")]
        assert said == [calibration] * 2
    assert (run / "model.onnx").stat().st_ino != before


def test_eight_bits_are_judged_by_the_manifest_s_groups(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Run.open(run).recipe
    manifest = manifests.read(recipe.data.manifest, recipe.data.root)
    rows = [dataclasses.replace(row, group=f"{row.split} {number // 4}") for number, row in enumerate(manifest.rows)]
    monkeypatch.setattr(manifests, "read", lambda *_: dataclasses.replace(manifest, rows=tuple(rows)))
    asked = []
    monkeypatch.setattr(int8, "export", lambda *words: asked.append(words) or "")
    artefacts._write(run, "int8", run / "model.int8.onnx", 2)
    judged = asked[0][4]
    assert judged.groups == [rows[row].group for row in manifest.indices("test", labelled=True)]
    assert len(judged.images) == len(judged.truth) == len(judged.groups) == 24


def test_photos_are_not_held_in_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, read = Run.open(run).recipe, list[str]()
    manifest = manifests.read(recipe.data.manifest, recipe.data.root)
    decode = image.decode
    monkeypatch.setattr(image, "decode", lambda data, where: read.append(where) or decode(data, where))
    some, spread = artefacts.photos(manifest, 8), artefacts._spread(manifest)
    assert (len(some), len(spread), read) == (8, 42, [])
    first = [next(i for i in manifest.indices("test") if manifest.rows[i].target == name) for name in manifest.classes]
    np.testing.assert_array_equal(some[1], manifest.photo(first[1]))
    np.testing.assert_array_equal(spread[-1], manifest.photo(manifest.indices("train")[-1]))
    assert len(read) == 4


def test_photos_are_of_all_classes_though_the_manifest_is_in_their_order(tmp_path: Path) -> None:
    rows = [Row(f"{name}/{n}.jpg", name, "test") for name in "abc" for n in range(50)]
    rows += [Row(f"v/{n}.jpg", "a", "val") for n in range(3)]
    seen: list[str] = []
    for number in (6, 151):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(artefacts.Photos, "at", lambda paths: seen.extend(f"{p.parent.name}{p.stem}" for p in paths))
            artefacts.photos(Manifest(tuple(rows), tmp_path), number)
    assert seen[:6] == ["a0", "b0", "c0", "a1", "b1", "c1"]
    assert len(set(seen[6:])) == 151 and seen[-1] == "v0"


def test_what_is_dropped_is_recorded_with_its_reason(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16, "LARGEST", 1.0)
    done = agrikd("export", "fp16", run, "--images", 2, code=5)
    assert "too little room" in done.stderr
    (one,) = [one for one in artefacts.artefacts(run) if one.precision == "fp16"]
    assert one.why == "dropped" and one.file is None and "too little room" in one.found and one.releases == ()


def test_what_no_release_would_read_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def everywhere(path: Path, releases: tuple[str, ...]) -> list[lint.Finding]:
        return [lint.Finding("opset", release, "graph", "opset 99") for release in releases]

    monkeypatch.setattr(lint, "lint", everywhere)
    with pytest.raises(ParityError, match="no release of TensorRT would read") as error:
        artefacts.export(run, "fp32", 2)
    assert "graph: opset 99 (opset; 8.6, 10.3, 10.13, 10.16, 11)" in str(error.value)
    assert not (run / "model.onnx").exists()


def test_a_file_is_checked_against_each_release(run: Path, tmp_path: Path) -> None:
    artefacts.export(run, "fp32", 2, tmp_path / "m.onnx")
    assert artefacts.artefacts(run) == [], "a file for elsewhere is no part of the Run"
    assert "reads it" in agrikd("export", "check", tmp_path / "m.onnx").stdout
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node.append(onnx.helper.make_node("Einsum", ["logits"], ["more"], equation="ij->ji"))
    model.graph.node.append(onnx.helper.make_node("Det", ["more"], ["det"]))
    onnx.save(model, tmp_path / "m.onnx")
    done = agrikd("export", "check", tmp_path / "m.onnx", code=5)
    assert "Det" in done.stderr and "findings" in done.stdout
