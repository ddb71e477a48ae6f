"""Folders and tables as people have them, tidy and not: what becomes of them, and what is said about it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from agrikd import files
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data.manifest import NOT_A_PLANT, Manifest
from agrikd.data.sources import SPLIT_NAMES, from_csv, from_folder
from agrikd.data.start import start
from agrikd.errors import InputError
from agrikd.jobs import load, open_manifest
from agrikd.tasks import open_task


def picture(path: Path, seed: int | None = None) -> Path:
    """A tiny picture; one path, one content, unless the seed says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = files.sha256(str(path if seed is None else seed).encode())
    pixels = np.frombuffer(bytes.fromhex(digest), np.uint8)[:27].reshape(3, 3, 3)
    suffix = path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
    done, data = cv2.imencode(suffix, pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def fill(folder: Path, per_class: dict[str, int]) -> Path:
    for name, count in per_class.items():
        for number in range(count):
            picture(folder / name / f"{number}.png")
    return folder


def counts(manifest: Manifest) -> dict[str, dict[str | None, int]]:
    found: dict[str, Counter[str | None]] = {}
    for row in manifest.rows:
        found.setdefault(row.split, Counter())[row.target] += 1
    return {split: dict(counter) for split, counter in found.items()}


def told(said: list[str], text: str) -> bool:
    return any(text in sentence for sentence in said)


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        from_folder(folder)
    return [str(problem) for problem in caught.value.problems]


class TestFolders:
    def test_class_folders(self, tmp_path):
        made, said = from_folder(fill(tmp_path, {"rust": 10, "healthy": 20}))
        assert counts(made) == {"train": {"rust": 8, "healthy": 16}, "test": {"rust": 2, "healthy": 4}}
        assert made.root == tmp_path.resolve()
        assert told(said, "took the 2 sub-folders as classes: healthy, rust")
        assert told(said, "no test split given: put 20% of each class into test (seed 0)")
        assert told(said, "no val split (fewer than 50 photos of a class to learn from)")
        assert told(said, "no groups known: photos of one plant may stand in both train and test")
        assert not told(said, "skipped")

    def test_paths_and_digests_are_those_of_the_files(self, tmp_path):
        made, _ = from_folder(fill(tmp_path, {"a": 4, "b": 4}))
        assert [row.path for row in made.rows] == sorted(row.path for row in made.rows)
        for index, row in enumerate(made.rows):
            assert row.sha256 == files.sha256(made.file(index).read_bytes())
        manifests.write(made, tmp_path / "manifest.csv")
        assert manifests.read(tmp_path / "manifest.csv") == made

    def test_a_val_split_where_labels_are_many(self, tmp_path):
        made, said = from_folder(fill(tmp_path, {"a": 70, "b": 63}))
        assert counts(made) == {"train": {"a": 49, "b": 44}, "val": {"a": 7, "b": 6}, "test": {"a": 14, "b": 13}}
        assert told(said, "20% of each class into test and 10% into val (seed 0)")
        assert not told(said, "out-of-fold")

    def test_no_val_split_where_train_would_keep_too_few(self, tmp_path):
        made, said = from_folder(fill(tmp_path, {"a": 70, "b": 62}))  # 80 % of 62 are fewer than 50
        assert set(counts(made)) == {"train", "test"}
        assert told(said, "no val split (fewer than 50 photos of a class to learn from)")

    def test_the_seed_draws_the_test_split(self, tmp_path):
        fill(tmp_path, {"a": 10, "b": 10})
        one, same, other = (from_folder(tmp_path, seed)[0] for seed in (1, 1, 2))
        assert one == same != other

    @pytest.mark.parametrize("val", [None, "val", "valid", "validation"])
    def test_given_splits_are_kept(self, tmp_path, val):
        for name, count in (("Train", 60), ("test", 3), *([(val, 2)] if val else [])):
            fill(tmp_path / name, {"a": count, "b": count})
        made, said = from_folder(tmp_path)
        expected = {"train": {"a": 60, "b": 60}, "test": {"a": 3, "b": 3}} | ({"val": {"a": 2, "b": 2}} if val else {})
        assert counts(made) == expected
        assert told(said, "and kept them as splits")
        assert told(said, "no val split (none given)") == (val is None)

    def test_without_a_test_folder_it_comes_out_of_train(self, tmp_path):
        fill(tmp_path / "train", {"a": 10, "b": 10})
        fill(tmp_path / "val", {"a": 2, "b": 2})
        made, said = from_folder(tmp_path)
        assert counts(made) == {"train": {"a": 8, "b": 8}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
        assert told(said, "no test split given")

    def test_a_test_folder_alone_is_a_test(self, tmp_path):
        assert counts(from_folder(fill(tmp_path, {"test/a": 2, "test/b": 2}))[0]) == {"test": {"a": 2, "b": 2}}

    def test_photos_without_folders_have_no_label(self, tmp_path):
        for number in range(3):
            picture(tmp_path / f"{number}.JPG")
        made, said = from_folder(tmp_path)
        assert counts(made) == {"train": {None: 3}}
        assert said == ["3 photos have no label and stand in train"]

    @pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
    @pytest.mark.parametrize("at", ["", "train/"])
    def test_unlabelled_photos(self, tmp_path, name, at):
        per_class = {f"{split}/{c}": 5 for split in ("train", "test") for c in "ab"} if at else {"a": 5, "b": 5}
        made, said = from_folder(fill(tmp_path, {**per_class, f"{at}{name}": 4}))
        assert counts(made)["train"] == {"a": 5 if at else 4, "b": 5 if at else 4, None: 4}
        assert made.classes == ("a", "b")
        assert told(said, "4 photos have no label and stand in train")

    def test_unlabelled_photos_beside_given_splits(self, tmp_path):
        made, _ = from_folder(fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2, "unlabelled": 3}))
        assert counts(made)["train"] == {"a": 2, "b": 2, None: 3}

    def test_not_a_plant_only_judges(self, tmp_path):
        made, said = from_folder(fill(tmp_path, {"a": 5, "b": 5, "Not_a_plant": 4}))
        assert counts(made)["test"] == {"a": 1, "b": 1, NOT_A_PLANT: 4}
        assert NOT_A_PLANT not in counts(made)["train"]
        assert told(said, "took the 2 sub-folders as classes: a, b")

    def test_not_a_plant_beside_given_splits(self, tmp_path):
        given = {f"{split}/{name}": 2 for split in ("train", "test", "val") for name in "ab"}
        made, _ = from_folder(fill(tmp_path, {**given, NOT_A_PLANT: 4}))
        assert (counts(made)["val"][NOT_A_PLANT], counts(made)["test"][NOT_A_PLANT]) == (2, 2)

    def test_photos_in_folders_of_a_class_are_found(self, tmp_path):
        fill(tmp_path, {"a/2026/june": 5, "a": 5, "b": 10})
        made, _ = from_folder(tmp_path)
        assert sum(row.target == "a" for row in made.rows) == 10
        assert "a/2026/june/0.png" in {row.path for row in made.rows}

    def test_other_files_are_skipped_and_named(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5, ".cache": 2})
        for name in ("notes.txt", "a/Thumbs.db", "a/.DS_Store", "b/labels.csv"):
            (tmp_path / name).write_text("x")
        (tmp_path / "docs").mkdir()
        made, said = from_folder(tmp_path)
        assert len(made.rows) == 10
        assert told(said, "skipped 3 files that are no pictures: notes.txt, Thumbs.db, labels.csv")
        assert told(said, "skipped 2 hidden files or folders")
        assert told(said, "left out the folders without pictures: docs")

    def test_links_in_a_loop_end(self, tmp_path):
        fill(tmp_path, {"a": 5, "b/deep": 5})
        (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "b" / "deep" / "self").symlink_to(tmp_path / "b" / "deep", target_is_directory=True)
        (tmp_path / "b" / "ring").symlink_to(tmp_path / "b" / "ring")
        made, said = from_folder(tmp_path)
        assert len(made.rows) == 10
        assert told(said, "skipped 2 links back into a folder already seen")

    def test_a_linked_class_folder_is_followed(self, tmp_path):
        fill(tmp_path / "elsewhere", {"a": 5})
        fill(tmp_path / "photos", {"b": 5})
        (tmp_path / "photos" / "a").symlink_to(tmp_path / "elsewhere" / "a", target_is_directory=True)
        made, _ = from_folder(tmp_path / "photos")
        assert made.classes == ("a", "b")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_named_like_a_photo_does_not_hang(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5})
        os.mkfifo(tmp_path / "a" / "pipe.jpg")
        assert len(from_folder(tmp_path)[0].rows) == 10


class TestCopies:
    def test_copies_of_one_class_are_kept_once(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5})
        shutil.copy(tmp_path / "a" / "0.png", tmp_path / "a" / "copy.png")
        made, said = from_folder(tmp_path)
        assert len(made.rows) == 10
        assert told(said, "left out 1 byte-identical copies of other photos: a/copy.png")

    def test_a_label_wins_over_none(self, tmp_path):
        fill(tmp_path, {"x": 5, "y": 5})
        for name in ("x", "y"):
            shutil.copytree(tmp_path / name, tmp_path / "unlabelled" / name)
        made, _ = from_folder(tmp_path)
        assert counts(made) == {"train": {"x": 4, "y": 4}, "test": {"x": 1, "y": 1}}
        assert not any(row.path.startswith("unlabelled") for row in made.rows)

    def test_every_copy_across_splits_is_named(self, tmp_path):
        fill(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 3, "test/b": 3})
        for name in ("a", "b"):
            shutil.copy(tmp_path / "train" / name / "1.png", tmp_path / "test" / name / "leak.png")
        found = problems_of(tmp_path)
        assert len(found) == 2
        assert "one photo has two splits: test/a/leak.png (test) and train/a/1.png (train)" in found[0]
        assert "test/b/leak.png (test) and train/b/1.png (train)" in found[1]

    def test_an_unlabelled_photo_of_train_may_not_stand_in_test(self, tmp_path):
        fill(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 3, "test/b": 3})
        (tmp_path / "train" / "unlabelled").mkdir()
        shutil.copy(tmp_path / "test" / "a" / "1.png", tmp_path / "train" / "unlabelled" / "x.png")
        assert "two splits" in problems_of(tmp_path)[0]

    def test_one_photo_under_two_classes(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5})
        shutil.copy(tmp_path / "a" / "0.png", tmp_path / "b" / "same.png")
        (found,) = problems_of(tmp_path)
        assert "one photo has two targets: a/0.png (a) and b/same.png (b)" in found


class TestProblems:
    def test_all_at_once(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5, "B": 5})
        (tmp_path / "a" / "empty.jpg").touch()
        (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
        picture(tmp_path / "a" / "line\nbreak.png")
        picture(tmp_path / " a" / "0.png")
        found = "\n".join(problems_of(tmp_path))
        assert "empty.jpg: is empty (0 bytes)" in found
        assert "gone.jpg: there is no such file" in found
        assert found.count("holds what a CSV cannot") == 3  # the two paths, and the class ' a'
        assert "the classes B, b differ only in capitals" in found

    def test_a_name_that_is_not_utf8(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5})
        try:
            shutil.copy(tmp_path / "a" / "0.png", os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png"))
        except OSError:
            pytest.skip("this file system has only UTF-8 names")
        (tmp_path / "a" / "0.png").unlink()
        (found,) = problems_of(tmp_path)
        assert "holds what a CSV cannot" in found.encode().decode()

    def test_one_name_stored_in_two_ways(self, tmp_path):
        """A Mac may store an accent as a letter of its own."""
        fill(tmp_path, {"tach\u00e9e": 5, "tache\u0301e": 5, "saine": 5})
        if len(list(tmp_path.iterdir())) < 3:
            pytest.skip("this file system knows one of the names only")
        (found,) = problems_of(tmp_path)
        assert "differ only in capitals, or in how an accent is stored" in found

    def test_no_folder(self, tmp_path):
        assert "there is no such folder" in problems_of(tmp_path / "nowhere")[0]

    def test_no_photos(self, tmp_path):
        (tmp_path / "a").mkdir()
        (found,) = problems_of(tmp_path)
        assert "holds no photos" in found and ".jpg" in found

    def test_one_class_only(self, tmp_path):
        (found,) = problems_of(fill(tmp_path, {"images": 5}))
        assert "has one class only, 'images'" in found and "'unlabelled'" in found

    def test_a_class_too_small_to_split(self, tmp_path):
        (found,) = problems_of(fill(tmp_path, {"a": 5, "b": 1}))
        assert "class 'b': has 1 labelled row: too few for train, test" in found

    def test_broken_photos_and_a_small_class_at_once(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 1})
        whole = picture(tmp_path / "a" / "cut.jpg").read_bytes()
        (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "a" / "noise.jpg").write_bytes(b"no picture at all")
        found = "\n".join(problems_of(tmp_path))
        assert "cut.jpg: is cut short" in found and "noise.jpg: cannot be decoded as a picture" in found
        assert "class 'b': has 1 labelled row: too few" in found

    def test_photos_beside_class_folders(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5})
        picture(tmp_path / "stray.png")
        (found,) = problems_of(tmp_path)
        assert "stray.png: lies beside the class folders" in found

    def test_classes_beside_splits(self, tmp_path):
        fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2, "c": 2})
        (tmp_path / "annotations").mkdir()
        (found,) = problems_of(tmp_path)
        assert "c: stands beside test, train" in found

    def test_datasets_in_place_of_classes(self, tmp_path):
        fill(tmp_path, {f"{season}/train/{name}": 2 for season in ("2025", "2026") for name in "ab"})
        found = problems_of(tmp_path)
        assert len(found) == 2 and all("it is a dataset, not a class" in text for text in found)
        assert "point to" in found[0]

    def test_a_class_that_only_test_knows(self, tmp_path):
        fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2, "test/c": 2})
        (found,) = problems_of(tmp_path)
        assert "train holds no photo of c" in found

    @pytest.mark.parametrize("name", ["test", "val"])
    def test_a_test_without_labels(self, tmp_path, name):
        fill(tmp_path, {"train/a": 2, "train/b": 2, f"{name}/unlabelled": 1})
        picture(tmp_path / name / "loose.png")
        assert any(f"0.png: has no label and stands in {name}" in text for text in problems_of(tmp_path))

    def test_not_a_plant_in_train(self, tmp_path):
        fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2, f"train/{NOT_A_PLANT}": 1})
        (found,) = problems_of(tmp_path)
        assert "is not_a_plant and stands in train" in found


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


class TestTables:
    @pytest.mark.parametrize("header", ["path,label", "File;Class", "filename\ttarget", "image,label"])
    def test_common_names_and_delimiters(self, tmp_path, header):
        fill(tmp_path, {"a": 5, "b": 5})
        delimiter = next(sign for sign in ",;\t" if sign in header)
        lines = [delimiter.join((f"{name}/{n}.png", name)) for name in "ab" for n in range(5)]
        made, said = from_csv(table(tmp_path, "\n".join([header, *lines])))
        assert counts(made) == {"train": {"a": 4, "b": 4}, "test": {"a": 1, "b": 1}}
        first, second = header.split(delimiter)
        assert told(said, f"took the columns {first!r} as path, {second!r} as target")
        assert told(said, "took the 2 labels as classes: a, b")

    def test_everything_a_table_can_say(self, tmp_path):
        fill(tmp_path, {"x": 6})
        lines = [
            "file,label,split,plant,season,note",
            "x/0.png,a,train,p1,2025,",
            "x/1.png,b,Training,p2,2025,hm",
            "x/2.png,a,valid,p3,2025,",
            "x/3.png,b,test,p4,2026,",
            "x/4.png,,,p1,2025,",
            "x/5.png,not_a_plant,test,,,",
        ]
        made, said = from_csv(table(tmp_path, "\n".join(lines)))
        assert counts(made) == {
            "train": {"a": 1, "b": 1, None: 1},
            "val": {"a": 1},
            "test": {"b": 1, NOT_A_PLANT: 1},
        }
        assert [row.group for row in made.rows] == ["p1", "p2", "p3", "p4", "p1", ""]
        assert [row.season for row in made.rows] == ["2025", "2025", "2025", "2026", "2025", ""]
        assert told(said, "'plant' as group") and told(said, "left out the columns note")
        assert not told(said, "no groups known")

    @pytest.mark.parametrize(
        "place", ["images/path", "split/class/path", "class/path", "split/path", "season/split/class/path"]
    )
    def test_photos_are_found_in_their_folders(self, tmp_path, place):
        lines = ["season,split,class,file"]
        for number, (split, name) in enumerate((split, name) for split in ("train", "test") for name in "ab"):
            folders = {"images": "images", "season": "wet", "split": split, "class": name, "path": f"{number}.png"}
            picture(tmp_path.joinpath(*(folders[part] for part in place.split("/"))))
            lines.append(f"wet,{split},{name},{number}.png")
        made, said = from_csv(table(tmp_path, "\n".join(lines)))
        assert counts(made) == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
        assert told(said, f"found 4 photos as {place}")

    def test_a_column_of_ones_own(self, tmp_path):
        fill(tmp_path, {"x": 10})
        path = table(tmp_path, "file,stress\n" + "\n".join(f"x\\{n}.png,s{n % 2}" for n in range(10)))
        with pytest.raises(InputError, match="has no column for the target"):
            from_csv(path)
        assert from_csv(path, columns={"target": "stress"})[0].classes == ("s0", "s1")
        with pytest.raises(InputError, match="has no column 'strss'"):
            from_csv(path, columns={"target": "strss"})
        with pytest.raises(InputError, match="'label' is nothing that a column says"):
            from_csv(path, columns={"label": "stress"})

    def test_groups_stay_together(self, tmp_path):
        fill(tmp_path, {"x": 60})
        lines = [f"x/{n}.png,{'ab'[n % 2]},plant {n // 6}" for n in range(60)]
        made, said = from_csv(table(tmp_path, "\n".join(["file,label,plant", *lines])))
        judged = {row.group for row in made.rows if row.split == "test"}
        assert judged and not judged & {row.group for row in made.rows if row.split == "train"}
        assert not told(said, "no groups known")

    def test_unlabelled_photos_of_a_test_plant_are_left_out(self, tmp_path):
        fill(tmp_path, {"x": 20})
        lines = [f"x/{n}.png,{'ab'[n % 2] if n < 10 else ''},p{n % 10}" for n in range(20)]
        made, said = from_csv(table(tmp_path, "\n".join(["file,label,plant", *lines])))
        assert counts(made) == {"train": {"a": 4, "b": 4, None: 8}, "test": {"a": 1, "b": 1}}
        assert told(said, "left out 2 unlabelled photos whose group is in val or test")

    def test_the_same_where_the_test_is_given(self, tmp_path):
        fill(tmp_path, {"x": 6})
        lines = ["0.png,a,train,p", "1.png,b,train,q", "2.png,a,test,r", "3.png,b,test,s", "4.png,,,r", "5.png,,,p"]
        made, said = from_csv(table(tmp_path, "\n".join(["file,label,split,plant", *(f"x/{line}" for line in lines)])))
        assert counts(made) == {"train": {"a": 1, "b": 1, None: 1}, "test": {"a": 1, "b": 1}}
        assert told(said, "left out 1 unlabelled photos")

    def test_all_problems_at_once_with_their_lines(self, tmp_path):
        fill(tmp_path, {"x": 3})
        (tmp_path / "x" / "note.txt").write_text("x")
        (tmp_path / "x" / "empty.png").touch()
        lines = [
            "file,label,split",
            "x/0.png,a,train",
            "x/1.png,b,tarin",
            "x/9.png,a,train",
            "../out.png,a,test",
            "x/note.txt,b,train",
            "x/2.png,b",
            ",b,train",
            "x/2.png,,test",
            "x/empty.png,b,train",
        ]
        path = table(tmp_path, "\n".join(lines))
        with pytest.raises(InputError) as caught:
            from_csv(path)
        found = {
            problem.where.removeprefix(f"{tmp_path.resolve()}/"): problem.wrong for problem in caught.value.problems
        }
        assert found == {
            "labels.csv:3": "the split is 'tarin'",
            "labels.csv:4": "the photo 'x/9.png' is not there",
            "labels.csv:5": "the photo '../out.png' is not there",
            "labels.csv:6": "'x/note.txt' is no picture file",
            "labels.csv:7": "does not have the header's 3 fields",
            "labels.csv:8": "the photo '' is not there",
            "x/2.png": "has no label and stands in test",
            "x/empty.png": "is empty (0 bytes)",
        }

    def test_a_spreadsheets_empty_lines_are_none(self, tmp_path):
        fill(tmp_path, {"a": 5, "b": 5})
        lines = ["file,label", *(f"{name}/{n}.png,{name}" for name in "ab" for n in range(5)), ", ", ",,,"]
        assert len(from_csv(table(tmp_path, "\n".join(lines)))[0].rows) == 10

    def test_columns_of_one_name(self, tmp_path):
        with pytest.raises(InputError) as caught:
            from_csv(table(tmp_path, "label,label,note,note,note,,\n"))
        assert [problem.wrong for problem in caught.value.problems] == [
            "has the column 'label' 2 times",
            "has the column 'note' 3 times",
            "has no column for the path",
        ]

    @pytest.mark.parametrize("lines", [['"file,label'], ["file,label", "x/9.png,a", '"x/0.png,a']])
    def test_a_quote_that_is_never_closed(self, tmp_path, lines):
        """In the header, and below a line that is wrong too."""
        with pytest.raises(InputError) as caught:
            from_csv(table(tmp_path, "\n".join([*lines, *["x/1.png,b"] * 15_000])))
        assert sum("is not CSV" in problem.wrong for problem in caught.value.problems) == 1
        assert sum("'x/9.png' is not there" in problem.wrong for problem in caught.value.problems) == len(lines) // 2

    def test_a_photo_listed_twice(self, tmp_path):
        fill(tmp_path, {"x": 8})
        lines = ["file,label", *(f"x/{n}.png,{'ab'[n % 2]}" for n in range(8))]
        made, said = from_csv(table(tmp_path, "\n".join([*lines, "x/3.png,b"])))
        assert len(made.rows) == 8 and told(said, "left out 1 byte-identical copies")
        with pytest.raises(InputError, match=r"two targets: x/3.png \(a\) and x/3.png \(b\)"):
            from_csv(table(tmp_path, "\n".join([*lines, "x/3.png,a"])))

    @pytest.mark.parametrize(
        ("column", "says"), [("plant", r"two groups: x/0.png \(p\) and x/1.png \(q\)"), ("season", "two seasons")]
    )
    def test_copies_that_contradict_each_other(self, tmp_path, column, says):
        picture(tmp_path / "x" / "0.png", seed=1)
        picture(tmp_path / "x" / "1.png", seed=1)
        with pytest.raises(InputError, match=says):
            from_csv(table(tmp_path, f"file,label,{column}\nx/0.png,a,p\nx/1.png,a,q"))

    def test_a_group_in_two_given_splits(self, tmp_path):
        fill(tmp_path, {"x": 4})
        lines = ["x/0.png,a,train,p", "x/1.png,b,train,q", "x/2.png,a,test,p", "x/3.png,b,test,s"]
        with pytest.raises(InputError, match="group 'p' stands in test and train"):
            from_csv(table(tmp_path, "\n".join(["file,label,split,plant", *lines])))

    @pytest.mark.parametrize("text", ["", "file,label\n", '"', "\n\n", f"file,label\n{'x' * 300}.png,a\n"])
    def test_nothing_in_it(self, tmp_path, text):
        with pytest.raises(InputError):
            from_csv(table(tmp_path, text))

    def test_no_file(self, tmp_path):
        with pytest.raises(InputError, match="there is no such file"):
            from_csv(tmp_path / "none.csv")

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=200))
    def test_any_text_is_an_input_error(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "any.csv"
        path.write_bytes(f"file,label\n{text}".encode(errors="surrogatepass"))
        with pytest.raises(InputError):
            from_csv(path)


class TestNumbers:
    VALUES = tuple(0.37 * n for n in range(60))

    def severity(self, folder: Path, split: str = "") -> Path:
        for number in range(60):
            picture(folder / f"{number}.png", number)
        lines = [f"{n}.png,{value:.2f},{split and ('train', split)[n % 5 == 0]}" for n, value in enumerate(self.VALUES)]
        return table(folder, "\n".join([f"file,severity{',split' if split else ',note'}", *lines]))

    def test_each_range_of_them_is_split(self, tmp_path):
        made, said = from_csv(self.severity(tmp_path), columns={"target": "severity"})
        assert sorted(float(row.target) for row in made.rows) == [round(value, 2) for value in self.VALUES]
        judged = [float(row.target) for row in made.rows if row.split == "test"]
        assert Counter(int(value / 4.37) for value in judged) == dict.fromkeys(range(5), len(judged) // 5)
        assert told(said, "took the 60 labels as numbers") and told(said, "20% of each range into test (seed 0)")
        assert told(said, "the labels are taken as numbers, not as names of classes")

    def test_given_splits_need_not_teach_each_number(self, tmp_path):
        made, _ = from_csv(self.severity(tmp_path, "test"), columns={"target": "severity"})
        assert (len(made.indices("train")), len(made.indices("test"))) == (48, 12)

    def test_the_recipe_learns_numbers(self, tmp_path):
        said = start(self.severity(tmp_path), columns={"target": "severity"}).assumptions
        recipe = load(tmp_path / "recipe.yaml")
        assert (recipe.task.name, recipe.task.low, recipe.task.high) == ("regression", 0, 21.83)
        assert told(list(said), "the recipe's task is regression from 0 to 21.83, the least and the largest label")
        assert open_task(recipe.task, manifest := open_manifest(recipe)).encode(manifest)[1].all()

    def test_folders_named_by_numbers_are_classes(self, tmp_path):
        """As in Flowers-102: nobody sorts photos into a folder for each number that he measured."""
        for number in range(125):
            picture(tmp_path / f"{number % 25 + 1}" / f"{number}.png", number)
        made = start(tmp_path)
        recipe, manifest = load(made.recipe), manifests.read(made.manifest)
        assert recipe.task.name == "classification" and told(list(made.assumptions), "20% of each class into test")
        assert {row.target for row in manifest.rows if row.split == "test"} == set(manifest.classes)
        assert len(manifest.classes) == 25


class TestRealPhotos:
    def test_coffee_leaves_as_a_folder(self, datasets):
        made, said = from_folder(datasets / "cls-coffee-leaf")
        assert len(made.rows) == 544 and len(made.classes) == 5
        assert (len(made.indices("train")), len(made.indices("test"))) == (400, 144)
        assert manifests.check(made, "here") == []
        assert not {row.sha256 for row in made.rows if row.split == "train"} & {
            row.sha256 for row in made.rows if row.split == "test"
        }
        assert told(said, "skipped 3 files that are no pictures: LICENSE, README.md, metadata.csv")

    def test_the_table_beside_them_says_the_same(self, datasets):
        folder = datasets / "cls-coffee-leaf"
        assert from_csv(folder / "metadata.csv")[0] == from_folder(folder)[0]


def test_init_takes_a_table(tmp_path):
    fill(tmp_path / "season" / "images", {"": 20})
    lines = ["Filename,Label,Species", *(f"{n}.png,{n % 2},{('rust', 'healthy')[n % 2]}" for n in range(20))]
    written = table(tmp_path / "season", "\n".join(lines))
    run = CliRunner().invoke
    assert run(app, ["init", str(written), "--column", "Species"]).exit_code == 2
    assert "is no table" in run(app, ["init", str(tmp_path), "--column", "target=Species"]).stderr
    assert not list((tmp_path / "season").glob("*.yaml"))
    done = run(app, ["init", str(written), "--column", "target=Species"])
    assert done.exit_code == 0, done.stderr
    assert "found 20 photos as images/path" in done.stderr and "'Species' as target" in done.stderr
    recipe = load(tmp_path / "season" / "recipe.yaml")
    assert open_manifest(recipe).classes == ("healthy", "rust") and recipe.name == "season"


def test_the_next_command_can_be_pasted(tmp_path):
    photos = fill(tmp_path / "My photos", {"a": 5, "b": 5})
    done = CliRunner().invoke(app, ["init", str(photos)])
    assert f"agrikd teach '{photos}/recipe.yaml'" in " ".join(done.stderr.split())
    head = (photos / "recipe.yaml").read_text()
    assert f"agrikd distill '{photos}/recipe.yaml' --teacher '{photos}/runs/My-photos-teacher'\n" in head


def test_split_names_lead_to_splits():
    assert set(SPLIT_NAMES.values()) == set(manifests.SPLITS)
