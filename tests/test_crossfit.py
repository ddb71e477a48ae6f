"""Out-of-fold predictions: what is judged has taught nothing, neither itself nor through another photo of its plant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agrikd import crossfit, files, train
from agrikd.data.manifest import Manifest, Row
from agrikd.jobs import stratum_folds
from agrikd.recipe import Recipe, parse
from agrikd.run import Run
from agrikd.tasks.classification import Classification

Tiny = Callable[..., dict[str, Any]]
CLASSES = ("blight", "rust")


def leaves(folder: Path) -> Manifest:
    """Of each class eight plants; of each plant a labelled photo, its copy by another name and an unlabelled photo."""
    rows = [
        row
        for plant in range(16)
        for name, same in [(CLASSES[plant % 2], f"{plant:064x}")]
        for row in (
            Row(f"{plant}.jpg", name, "train", f"plant {plant}", sha256=same),
            Row(f"{plant}-copy.jpg", name, "train", sha256=same),
            Row(f"{plant}-other.jpg", None, "train", f"plant {plant}", sha256=f"{plant + 100:064x}"),
        )
    ]
    return Manifest((*rows, Row("alone.jpg", None, "train")), folder)


def test_copies_and_photos_of_a_plant_are_judged_together(tmp_path: Path) -> None:
    manifest = leaves(tmp_path)
    rows = manifest.indices("train", labelled=True)
    fold = stratum_folds(Classification(CLASSES), manifest, rows, 4, 0)
    assert np.bincount(fold).tolist() == [8] * 4
    assert (fold[::2] == fold[1::2]).all(), "a photo and its copy"


def test_no_photo_of_a_judged_plant_is_left_to_learn_from(tmp_path: Path) -> None:
    manifest = leaves(tmp_path)
    left = crossfit._without(manifest, (0, 4))
    out = {row.path for row in left.rows if row.split != "train"}
    assert out == {f"{plant}{name}.jpg" for plant in (0, 1) for name in ("", "-copy", "-other")}
    assert len(left.indices("train", labelled=False)) == 14 + 1
    assert left.classes == manifest.classes


@pytest.fixture
def without_val(tiny: Tiny, tiny_photos: Path, tmp_path: Path) -> Run:
    lines = (tiny_photos / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text("\n".join(line for line in lines if ",val," not in line) + "\n")
    raw = tiny(data={"manifest": str(tmp_path / "manifest.csv"), "root": str(tiny_photos)})
    return train.fit(parse({**raw, "optim": {"steps": 2, "batch": 8}}, "test"), tmp_path / "run")


def test_folds_cut_short_do_not_stand_in_the_way_of_another_number(
    without_val: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []

    def fit(recipe: Recipe, folder: Path, **options: Any) -> Run:
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(folder.name)
        return train.fit(recipe, folder, **options)

    monkeypatch.setattr(crossfit, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        crossfit.held_out(without_val, 2)
    monkeypatch.setattr(crossfit, "fit", train.fit)
    assert crossfit.held_out(without_val, 4).logits.shape == (24, 3)
    kept = {path.name for path in (without_val.folder / "folds").iterdir()}
    assert fitted == ["2-0"] and kept == {"2-0", "4-0", "4-1", "4-2", "4-3"}


def test_a_fold_of_other_photos_is_begun_anew(without_val: Run) -> None:
    crossfit.held_out(without_val, 2)
    (without_val.folder / "held_out.npz").unlink()
    record = without_val.folder / "folds" / "2-0" / "run.json"
    files.write_json(record, {**files.read_json(record), "data_digest": "of an earlier version"})
    kept = (without_val.folder / "folds" / "2-1" / "run.json").stat().st_mtime_ns
    assert crossfit.held_out(without_val, 2).logits.shape == (24, 3)
    assert files.read_json(record)["data_digest"] != "of an earlier version"
    assert (without_val.folder / "folds" / "2-1" / "run.json").stat().st_mtime_ns == kept


def test_another_number_of_folds_is_trained_and_none_keeps_what_is_stored(
    without_val: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def crossfitted(run: Run, manifest: Manifest, count: int) -> Any:
        asked.append(count)
        return np.zeros(6, np.int64), np.full((6, 3), count, np.float32)

    monkeypatch.setattr(crossfit, "_crossfit", crossfitted)
    for count, of in ((None, 3), (None, 3), (3, 3), (5, 5), (None, 5), (5, 5)):
        assert crossfit.held_out(without_val, count).logits[0, 0] == of == without_val.folds()
    assert asked == [3, 5]
    assert capsys.readouterr().err.count("are of 3 folds: 5 are trained now") == 1


def test_predictions_of_an_unknown_number_of_folds_are_kept_and_said(
    without_val: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher's are: they are of its own folds."""
    without_val.write_held_out(np.zeros(6, np.int64), np.ones((6, 3), np.float32))
    assert crossfit.held_out(without_val).logits.shape == (6, 3)
    assert "does not say" not in capsys.readouterr().err
    assert crossfit.held_out(without_val, 5).logits.shape == (6, 3)
    assert "does not say of how many folds it is" in " ".join(capsys.readouterr().err.split())
