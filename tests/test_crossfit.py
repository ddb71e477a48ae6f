"""Out-of-fold predictions: what is judged has taught nothing, neither itself nor through another photo of its plant."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agrikd import crossfit
from agrikd.data.manifest import Manifest, Row
from agrikd.jobs import stratum_folds
from agrikd.tasks.classification import Classification

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
