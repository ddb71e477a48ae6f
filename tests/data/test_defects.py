"""Planted defects: each is there as often as asked for, by the bytes, and the truth says so."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("cv2", reason="pip install 'agrikd[check]'")
pytest.importorskip("PIL", reason="pip install 'agrikd[check]'")

import cv2
import PIL
from PIL import Image as Pillow

from agrikd import image
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data.defects import BROKEN, NEAR, DefectConfig, plant, write_spoilt
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row
from agrikd.data.synthetic import SyntheticConfig, write_dataset
from agrikd.errors import InputError, MissingExtraError

LEAVES = SyntheticConfig(size=96, train_per_class=8, unlabelled=20, val_per_class=2, test_per_class=8, non_plant=3)
CONFIG = DefectConfig(seed=5, broken=2, exact=3, exact_across=4, near=2, near_across=3, label_errors=0.1, groups=3)


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("clean") / "leaves", LEAVES)


@pytest.fixture(scope="module")
def spoilt(leaves: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return plant(leaves, tmp_path_factory.mktemp("spoilt") / "set", CONFIG)


@pytest.fixture(scope="module")
def truth(spoilt: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((spoilt.root / "defects.json").read_text())
    return found


def row_of(manifest: Manifest) -> dict[str, Row]:
    return {row.path: row for row in manifest.rows}


def origin(leaves: Manifest, path: str) -> Path:
    """The clean photo, whose name keeps its stem."""
    (found,) = leaves.root.glob(str(Path(path).with_suffix(".*")))
    return found


def listing(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_holds_the_photos_the_manifest_and_the_truth(spoilt: Manifest) -> None:
    assert manifests.load(spoilt.root / "manifest.csv").rows == spoilt.rows
    names = {row.path for row in spoilt.rows} | {"manifest.csv", "defects.json", "README.txt"}
    assert listing(spoilt.root).keys() == names
    readme = (spoilt.root / "README.txt").read_text()
    assert readme.startswith("SPOILT ON PURPOSE") and "no real plant" in " ".join(readme.split())


def test_sha256_is_that_of_the_bytes_as_written(spoilt: Manifest) -> None:
    for row in spoilt.rows:
        data = (spoilt.root / row.path).read_bytes()
        assert row.sha256 == (hashlib.sha256(data).hexdigest() if data else "")


def test_files_are_broken_as_often_as_asked(truth: dict[str, Any]) -> None:
    assert Counter(truth["files"].values()) == dict.fromkeys(BROKEN, 2)


def test_each_broken_file_is_what_the_truth_says(leaves: Manifest, spoilt: Manifest, truth: dict[str, Any]) -> None:
    for path, kind in truth["files"].items():
        data, clean = (spoilt.root / path).read_bytes(), image.read(origin(leaves, path))
        assert path.endswith({"16-bit": ".png", "animated": ".webp"}.get(kind, ".jpg"))
        if kind in ("empty", "truncated", "unreadable"):
            said = {"empty": "is empty", "truncated": "is cut short", "unreadable": "cannot be decoded"}[kind]
            with pytest.raises(InputError, match=said):
                image.decode(data, path)
            if kind == "truncated":
                assert data == (whole := image.encode_jpeg(clean))[: int(len(whole) * 0.6)]
            continue
        opened = Pillow.open(io.BytesIO(data))
        if kind == "tiny":
            assert (opened.format, opened.size) == ("JPEG", (8, 8))
            continue
        assert np.abs(image.decode(data, path).astype(int) - clean).mean() < 12, kind
        if kind == "cmyk":
            assert (opened.format, opened.mode) == ("JPEG", "CMYK")
        elif kind == "16-bit":
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert (opened.format, raw.dtype, raw.shape) == ("PNG", np.uint16, clean.shape)
        elif kind == "animated":
            assert (opened.format, opened.n_frames) == ("WEBP", 2)
        elif kind == "misnamed":
            assert opened.format == "PNG"
        else:
            assert (kind, opened.format, opened.getexif()[0x0112]) == ("turned", "JPEG", 6)
            assert np.abs(np.rot90(np.asarray(opened), -1).astype(int) - clean).mean() < 12


def test_exact_copies_are_equal_within_a_split_and_across(spoilt: Manifest, truth: dict[str, Any]) -> None:
    rows, splits = row_of(spoilt), []
    for one, other in truth["exact"]:
        assert (spoilt.root / one).read_bytes() == (spoilt.root / other).read_bytes()
        assert rows[one].sha256 == rows[other].sha256 and rows[one].target == rows[other].target
        splits.append((rows[one].split, rows[other].split))
    assert splits[:4] == [("train", "test")] * 4
    assert len(splits) == 7 and all(one == other for one, other in splits[4:])
    # No others are equal.
    repeated = Counter(row.sha256 for row in spoilt.rows if row.sha256)
    assert sum(n == 2 for n in repeated.values()) == 7 and max(repeated.values()) == 2


def test_near_copies_show_the_same_within_a_split_and_across(spoilt: Manifest, truth: dict[str, Any]) -> None:
    rows, splits = row_of(spoilt), defaultdict(list)
    for one, other, how in truth["near"]:
        assert rows[one].sha256 != rows[other].sha256 and rows[one].target == rows[other].target
        splits[how].append((rows[one].split, rows[other].split))
        before, after = (image.read(spoilt.root / path).astype(int) for path in (one, other))
        if how == "half":
            assert after.shape == (48, 48, 3)
            assert np.abs(image.resize(before.astype(np.uint8), (48, 48)) - after).mean() < 6
        elif how == "crop":
            assert after.shape == (86, 86, 3)
            apart = [np.abs(before[y : y + 86, x : x + 86] - after).mean() for y in range(11) for x in range(11)]
            assert min(apart) < 6
        elif how == "brightness":
            apart = [np.abs(np.clip(before * factor, 0, 255) - after).mean() for factor in (0.8, 1.2)]
            assert min(apart) < 6 < max(apart)
        else:
            assert (spoilt.root / other).read_bytes() == image.encode_jpeg(before.astype(np.uint8), 50)
    assert splits.keys() == set(NEAR)
    for pairs in splits.values():
        assert pairs[:3] == [("train", "test")] * 3
        assert len(pairs) == 5 and all(one == other for one, other in pairs[3:])


def test_labels_are_wrong_as_often_as_asked(leaves: Manifest, spoilt: Manifest, truth: dict[str, Any]) -> None:
    clean, rows = row_of(leaves), row_of(spoilt)
    changed = {path: row.target for path, row in clean.items() if path in rows and rows[path].target != row.target}
    assert truth["labels"] == changed
    assert len(changed) == 4  # a tenth of 40
    assert all(rows[path].split == "train" and rows[path].target in leaves.classes for path in changed)


def test_groups_straddle_as_often_as_asked(spoilt: Manifest, truth: dict[str, Any]) -> None:
    splits = defaultdict(list)
    for row in spoilt.rows:
        splits[row.group].append(row.split)
    straddling = {name for name, seen in splits.items() if name and len(set(seen)) > 1}
    assert straddling == set(truth["groups"])
    assert [sorted(splits[name]) for name in truth["groups"]] == [["test", "train"]] * 3


def test_no_photo_has_two_defects_and_the_rest_is_as_it_was(
    leaves: Manifest, spoilt: Manifest, truth: dict[str, Any]
) -> None:
    rows = row_of(spoilt)
    touched = [*truth["files"], *truth["labels"]]
    touched += [path for path, row in rows.items() if row.group in truth["groups"]]
    touched += [path for pair in truth["exact"] + truth["near"] for path in pair[:2]]
    assert len(touched) == len(set(touched)) == 18 + 4 + 6 + 2 * (7 + 20)
    assert set(touched) <= rows.keys()
    for row in leaves.rows:
        if row.path not in touched and row.path in rows:
            assert rows[row.path] == row
            assert (spoilt.root / row.path).read_bytes() == (leaves.root / row.path).read_bytes()
    assert len(rows) == len(leaves.rows) + 7 + 20


def test_names_do_not_tell_the_defect(spoilt: Manifest, truth: dict[str, Any]) -> None:
    assert len({path for path in row_of(spoilt) if path.startswith("more/")}) == 27
    words = (*BROKEN, *NEAR, "copy", "wrong")
    assert not [row for row in spoilt.rows for word in words if word in row.path + row.group]


def test_the_same_config_gives_the_same_files_and_another_seed_others(
    leaves: Manifest, spoilt: Manifest, tmp_path: Path
) -> None:
    again = plant(leaves, tmp_path / "again", CONFIG)
    assert listing(again.root) == listing(spoilt.root)
    other = plant(leaves, tmp_path / "other", replace(CONFIG, seed=6))
    assert other.digest != spoilt.digest


def test_nothing_asked_for_is_a_copy(leaves: Manifest, tmp_path: Path) -> None:
    none = DefectConfig(0, 0, 0, 0, 0, 0, 0.0, 0)
    made = plant(leaves, tmp_path / "same", none)
    assert made.rows == leaves.rows
    assert manifests.read(made.root / "manifest.csv").digest == leaves.digest


def test_photos_of_any_kind_and_name(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        for suffix in (".png", ".jpg"):
            pixels = rng.integers(0, 255, (40, 30, 3), np.uint8)
            path = tmp_path / "photos" / f"{number}{suffix}"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), pixels)
            rows.append(Row(path.name, "ab"[number % 2], "train" if number % 3 else "test"))
    rows.append(replace(rows[0], path="copy.png", sha256="same"))
    rows[0] = replace(rows[0], sha256="same")
    (tmp_path / "photos" / "copy.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    source = Manifest(tuple(rows), tmp_path / "photos")
    few = DefectConfig(1, broken=2, exact=0, exact_across=1, near=0, near_across=0, label_errors=0, groups=2)
    made = plant(source, tmp_path / "set", few)
    told = json.loads((made.root / "defects.json").read_text())
    assert Counter(told["files"].values()) == dict.fromkeys(BROKEN, 2)
    assert len({row.path for row in made.rows}) == len(made.rows) == 26
    # What was a copy before is left alone.
    assert {"0.png", "copy.png"} <= row_of(made).keys()
    assert row_of(made)["0.png"].sha256 == row_of(made)["copy.png"].sha256
    touched = {path for pair in told["exact"] for path in pair} | told["files"].keys()
    assert not touched & {"0.png", "copy.png"}


class TestRefused:
    def test_a_source_too_small_is_one_error_that_says_all(self, leaves: Manifest, tmp_path: Path) -> None:
        many = DefectConfig(broken=50, exact_across=30, groups=41)
        with pytest.raises(InputError) as caught:
            plant(leaves, tmp_path / "set", many)
        assert [problem.wrong for problem in caught.value.problems] == [
            "has 40 labelled photos of train, too few: 81 are needed",
            "has 40 labelled photos of test, too few: 41 are needed",
            "has 116 photos, too few: 583 are needed",
        ]
        assert list(tmp_path.iterdir()) == []

    def test_one_class_has_no_wrong_label(self, leaves: Manifest, tmp_path: Path) -> None:
        one = [replace(row, target="rust") if row.target not in (None, NOT_A_PLANT) else row for row in leaves.rows]
        with pytest.raises(InputError, match="has 1 classes, too few: 2 are needed"):
            plant(Manifest(tuple(one), leaves.root), tmp_path / "set", CONFIG)

    def test_an_absent_photo(self, leaves: Manifest, tmp_path: Path) -> None:
        rows = (*leaves.rows, Row("gone.jpg", "rust", "train"))
        with pytest.raises(InputError, match=r"gone.jpg is not there"):
            plant(Manifest(rows, leaves.root), tmp_path / "set", CONFIG)
        assert list(tmp_path.iterdir()) == []

    def test_a_photo_that_cannot_be_read_leaves_nothing(self, leaves: Manifest, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        for row in leaves.rows:
            (photos / row.path).parent.mkdir(parents=True, exist_ok=True)
            (photos / row.path).write_bytes(b"no picture" + row.path.encode())
        rows = tuple(replace(row, sha256="") for row in leaves.rows)
        with pytest.raises(InputError, match="cannot be decoded"):
            plant(Manifest(rows, photos), tmp_path / "set", CONFIG)
        assert [path.name for path in tmp_path.iterdir()] == ["photos"]

    def test_a_folder_in_use(self, leaves: Manifest, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        for place in (tmp_path, tmp_path / "mine.txt"):
            with pytest.raises(InputError, match=r"not empty|a file, not a folder"):
                plant(leaves, place, CONFIG)
            with pytest.raises(InputError, match=r"not empty|a file, not a folder"):
                write_spoilt(place, LEAVES, CONFIG)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_counts_that_cannot_be(self) -> None:
        with pytest.raises(InputError) as caught:
            DefectConfig(seed=-1, near=-2, label_errors=1.5)
        assert [p.where for p in caught.value.problems] == ["defects.seed", "defects.near", "defects.label_errors"]

    def test_without_pillow_the_extra_is_named(
        self, leaves: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(PIL, "Image", raising=False)
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(MissingExtraError, match="Pillow is not installed"):
            plant(leaves, tmp_path / "set", CONFIG)
        assert list(tmp_path.iterdir()) == []


class TestVerb:
    line = ("data", "synth", "--size", "64", "--per-class", "5", "--unlabelled", "9", "--test-per-class", "4")

    def test_leaves_are_drawn_and_spoilt(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, [*self.line, str(tmp_path / "set"), "--defects", "--json"])
        assert done.exit_code == 0, done.output
        assert [path.name for path in tmp_path.iterdir()] == ["set"]
        made = manifests.load(tmp_path / "set" / "manifest.csv")
        said = json.loads(done.stdout)
        assert said["test"] == sum(row.split == "test" for row in made.rows)
        told = json.loads((tmp_path / "set" / "defects.json").read_text())
        assert len(told["files"]) == 2 * len(BROKEN) and len(told["near"]) == 16 and len(told["groups"]) == 2
        with pytest.raises(InputError, match="stands in"):
            manifests.read(tmp_path / "set" / "manifest.csv")

    def test_too_few_leaves_are_a_message_and_leave_nothing(self, tmp_path: Path) -> None:
        line = [*self.line[:5], "1", *self.line[6:]]
        done = CliRunner().invoke(app, [*line, str(tmp_path / "set"), "--defects"])
        assert done.exit_code == 2
        assert "too few" in done.stderr
        assert list(tmp_path.iterdir()) == []
