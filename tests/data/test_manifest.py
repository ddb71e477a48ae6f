"""The manifest: what is written is read back, and every mistake is found in one look, with its line."""

from __future__ import annotations

import csv
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd.data import manifest as manifests
from agrikd.data.manifest import COLUMNS, NOT_A_PLANT, SPLITS, Manifest, Row
from agrikd.errors import InputError, Problem

QUICK = settings(max_examples=50, deadline=None, derandomize=True)
ROOT = Path("/nowhere")
PLAIN = Row("a.jpg", "rust", "train")


def written(folder: Path, *lines: str, header: str = "path,target,split") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join((header, *lines, "")), encoding="utf-8")
    return path


def refused(path: Path) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        manifests.read(path)
    return caught.value.problems


def only(path: Path) -> Problem:
    (problem,) = refused(path)
    return problem


def made(*rows: Row) -> Manifest:
    return Manifest(rows, ROOT)


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(",;\"'\n"), max_size=12)
clean = text.map(str.strip)
named = clean.filter(bool)


@st.composite
def valid(draw: st.DrawFn) -> Manifest:
    """Rows without a contradiction: a group, a sha256 and its label belong to one split."""
    rows = []
    for number in range(draw(st.integers(1, 8))):
        split = draw(st.sampled_from(SPLITS))
        target = draw(st.none() | named) if split == "train" else draw(named | st.just(NOT_A_PLANT))
        path = draw(named.filter(lambda value: not value.startswith("/") and ".." not in value))
        group, sha256 = draw(clean), draw(clean).lower()
        rows.append(
            Row(
                PurePosixPath(f"{number}/{path}").as_posix(),
                None if target == NOT_A_PLANT and split == "train" else target,
                split,
                group and f"{split}{group}",
                draw(clean),
                sha256 and f"{number}{sha256}",
                draw(clean),
            )
        )
    return made(*rows)


class TestRoundTrip:
    @QUICK
    @given(manifest=valid())
    def test_what_is_written_is_read_back(self, tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
        path = tmp_path_factory.getbasetemp() / "round.csv"
        manifests.write(manifest, path)
        again = manifests.read(path)
        assert again.rows == manifest.rows
        assert again.root == path.parent.resolve()
        assert again.digest == manifest.digest

    def test_a_spreadsheets_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "manifest.csv"
        lines = ["split,target,path,season", "train, rust ,Blätter/1.jpg,2025", "", "test,leaf spot,2.jpg ,"]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
        assert manifests.read(path).rows == (
            Row("Blätter/1.jpg", "rust", "train", season="2025"),
            Row("2.jpg", "leaf spot", "test"),
        )

    def test_the_columns_are_written_in_order(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "manifest.csv"
        manifests.write(made(PLAIN, replace(PLAIN, path="b,.jpg", target=None)), path)
        with path.open(newline="") as opened:
            rows = list(csv.reader(opened))
        assert rows == [list(COLUMNS), ["a.jpg", "rust", "train", *[""] * 4], ["b,.jpg", "", "train", *[""] * 4]]

    def test_paths_start_from_the_root(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.jpg,rust,train")
        assert manifests.read(path).file(0) == tmp_path.resolve() / "a.jpg"
        assert manifests.read(path, tmp_path / "photos").file(0) == tmp_path.resolve() / "photos" / "a.jpg"

    def test_a_sha256_in_capitals_is_the_same(self, tmp_path: Path) -> None:
        path = written(tmp_path, f"a.jpg,rust,train,{'AB' * 32}", header="path,target,split,sha256")
        assert manifests.read(path).rows[0].sha256 == "ab" * 32

    def test_a_contradiction_is_not_written(self, tmp_path: Path) -> None:
        path = tmp_path / "manifest.csv"
        with pytest.raises(InputError, match="stands 2 times"):
            manifests.write(made(PLAIN, PLAIN), path)
        assert not path.exists()

    def test_a_path_has_one_form(self, tmp_path: Path) -> None:
        path = written(tmp_path, "./b//a.jpg,rust,train", "b/a.jpg,rust,test")
        with pytest.raises(InputError, match=r"the path b/a\.jpg stands 2 times"):
            manifests.read(path)


class TestFile:
    @pytest.mark.parametrize("missing", ["path", "target", "split"])
    def test_a_missing_column(self, tmp_path: Path, missing: str) -> None:
        columns = [name for name in COLUMNS if name != missing]
        problem = only(written(tmp_path, header=",".join(columns)))
        assert (problem.where, problem.wrong) == (f"{tmp_path / 'manifest.csv'}:1", f"lacks the column {missing!r}")
        assert problem.mend == f"the columns are {', '.join(COLUMNS)}"

    def test_unknown_columns(self, tmp_path: Path) -> None:
        problems = refused(written(tmp_path, "a,b,train,c,d", header="path,target,split,label,Group"))
        assert [p.wrong for p in problems] == ["has an unknown column 'label'", "has an unknown column 'Group'"]

    def test_columns_of_one_name(self, tmp_path: Path) -> None:
        problem = only(written(tmp_path, "a.jpg,rust,train,spot", header="path,target,split,target"))
        assert problem.wrong == "has the column 'target' 2 times"

    def test_semicolons_are_no_commas(self, tmp_path: Path) -> None:
        problems = refused(written(tmp_path, "a.jpg;rust;train", header="path;target;split"))
        assert problems[-1].wrong == "has an unknown column 'path;target;split'"

    @pytest.mark.parametrize("line", ["a.jpg,rust", "a.jpg,rust,train,more"])
    def test_a_line_with_another_number_of_fields(self, tmp_path: Path, line: str) -> None:
        problem = only(written(tmp_path, line))
        assert (problem.where, problem.wrong) == (
            f"{tmp_path / 'manifest.csv'}:2",
            "does not have the header's 3 fields",
        )

    def test_a_quote_that_is_never_closed(self, tmp_path: Path) -> None:
        problem = only(written(tmp_path, '"a.jpg,rust,train', *["b.jpg,rust,train"] * 10_000))
        assert "is not CSV" in problem.wrong
        assert problem.mend == "look for a quote that is never closed"

    def test_no_rows(self, tmp_path: Path) -> None:
        assert only(written(tmp_path)).wrong == "has no rows"

    def test_no_header(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.csv").write_text("")
        assert len(refused(tmp_path / "manifest.csv")) == 3

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        assert only(tmp_path / "absent.csv").wrong == "there is no such file"
        (tmp_path / "latin.csv").write_bytes(b"path,target,split\nBl\xe4tter/1.jpg,rust,train\n")
        assert only(tmp_path / "latin.csv").wrong == "is not UTF-8 text (byte 20)"


ROW_MISTAKES = {
    ",rust,train": "has no path",
    "a.jpg,rust,trian": "the split is 'trian'",
    "a.jpg,rust,TRAIN": "the split is 'TRAIN'",
    "a.jpg,rust,": "the split is ''",
    "a.jpg,,val": "a row of val has no label",
    "a.jpg,,test": "a row of test has no label",
    f"a.jpg,{NOT_A_PLANT},train": f"the target '{NOT_A_PLANT}' stands in train",
    "/photos/a.jpg,rust,train": "the path '/photos/a.jpg' leaves the manifest's folder",
    "../a.jpg,rust,train": "the path '../a.jpg' leaves the manifest's folder",
    "b/../../a.jpg,rust,train": "the path 'b/../../a.jpg' leaves the manifest's folder",
    "..,rust,train": "the path '..' leaves the manifest's folder",
}


class TestRows:
    @pytest.mark.parametrize("line", ROW_MISTAKES)
    def test_a_mistake_is_named_with_its_line(self, tmp_path: Path, line: str) -> None:
        problem = only(written(tmp_path, "good.jpg,rust,train", "", line))
        assert (problem.where, problem.wrong) == (f"{tmp_path / 'manifest.csv'}:4", ROW_MISTAKES[line])

    def test_two_dots_in_a_name_leave_nothing(self, tmp_path: Path) -> None:
        assert manifests.read(written(tmp_path, "a..jpg,rust,train", "..b/c...jpg,rust,train")).rows

    def test_a_train_row_needs_no_label_and_others_may_show_no_plant(self, tmp_path: Path) -> None:
        lines = ["a,,train", "b,rust,train", f"c,{NOT_A_PLANT},val", f"d,{NOT_A_PLANT},test", "e,rust,val"]
        assert len(manifests.read(written(tmp_path, *lines)).rows) == 5

    def test_all_mistakes_come_at_once(self, tmp_path: Path) -> None:
        lines = [
            "a.jpg,rust,train,g1,s1",
            "../b.jpg,,val,g1,",
            'c.jpg,"two\nlines",trian,,s1',
            "d.jpg,rust",
            f"a.jpg,{NOT_A_PLANT},train,,",
        ]
        path = written(tmp_path, *lines, header="path,target,split,group,sha256")
        assert {(problem.where.removeprefix(str(path)), problem.wrong) for problem in refused(path)} == {
            (":3", "the path '../b.jpg' leaves the manifest's folder"),
            (":3", "a row of val has no label"),
            (":5", "the split is 'trian'"),
            (":6", "does not have the header's 5 fields"),
            (":7", f"the target '{NOT_A_PLANT}' stands in train"),
            ("", "the path a.jpg stands 2 times"),
            ("", "group 'g1' stands in train and val"),
            ("", "sha256 's1' stands in train and trian"),
            ("", "the same photo (sha256 s1…) is labelled rust and two\nlines"),
        }

    def test_many_mistakes_are_counted_not_listed(self, tmp_path: Path) -> None:
        path = written(tmp_path, *[f"{n}.jpg,rust,nowhere" for n in range(100)])
        with pytest.raises(InputError, match="and 88 more like these") as caught:
            manifests.read(path)
        assert len(caught.value.problems) == 100


class TestCheck:
    @staticmethod
    def wrong(*rows: Row) -> list[str]:
        return [problem.wrong for problem in manifests.check(made(*rows), "m.csv")]

    def test_nothing_to_say(self) -> None:
        assert self.wrong(PLAIN, Row("b.jpg", "rust", "train", "g", sha256="s"), Row("c.jpg", "spot", "test")) == []

    def test_a_group_in_two_splits(self) -> None:
        rows = [Row("a", "x", "train", "plant 7"), Row("b", "x", "test", "plant 7"), Row("c", "y", "val", "plant 7")]
        assert self.wrong(*rows) == ["group 'plant 7' stands in test and train and val"]
        (problem,) = manifests.check(made(*rows), "m.csv")
        assert problem.mend == "a plant or photo may be in one split only; see a and b and c"
        assert self.wrong(*(replace(row, split="train") for row in rows)) == []

    def test_a_photo_in_two_splits(self) -> None:
        rows = [Row("a", "x", "train", sha256="s"), Row("b", "x", "test", sha256="s")]
        assert self.wrong(*rows) == ["sha256 's' stands in test and train"]

    def test_a_photo_with_two_labels(self) -> None:
        rows = [Row("a", "x", "train", sha256="f" * 64), Row("b", "y", "train", sha256="f" * 64)]
        assert self.wrong(*rows) == ["the same photo (sha256 ffffffffffff…) is labelled x and y"]

    def test_a_copy_without_a_label_contradicts_nothing(self) -> None:
        assert self.wrong(Row("a", "x", "train", sha256="s"), Row("b", None, "train", sha256="s")) == []

    def test_a_path_that_stands_twice(self) -> None:
        assert self.wrong(PLAIN, PLAIN, PLAIN) == ["the path a.jpg stands 3 times"]

    def test_an_empty_group_and_sha256_join_nothing(self) -> None:
        assert self.wrong(Row("a", "x", "train"), Row("b", "y", "test")) == []


class TestManifest:
    ROWS = made(
        Row("a", "rust", "train"),
        Row("b", None, "train"),
        Row("c", "blight", "train"),
        Row("d", "rust", "val"),
        Row("e", NOT_A_PLANT, "test"),
        Row("f", "rust", "test"),
    )

    def test_classes_are_sorted_and_leave_the_reserved_one_out(self) -> None:
        assert self.ROWS.classes == ("blight", "rust")

    def test_indices(self) -> None:
        assert self.ROWS.indices("train") == (0, 1, 2)
        assert self.ROWS.indices("train", labelled=True) == (0, 2)
        assert self.ROWS.indices("train", labelled=False) == (1,)
        assert self.ROWS.indices("test", labelled=True) == (5,)
        assert self.ROWS.others("test") == (4,)
        assert self.ROWS.others("val") == ()

    def test_the_digest_changes_with_every_field_and_not_with_the_folder(self) -> None:
        changed = {"target": "spot", "split": "val", "group": "g", "season": "2025", "sha256": "s", "source": "me"}
        digests = {made(PLAIN).digest, made(replace(PLAIN, path="b.jpg")).digest}
        digests |= {made(replace(PLAIN, **{name: value})).digest for name, value in changed.items()}
        assert len(digests) == len(asdict(PLAIN)) + 1
        assert Manifest((PLAIN,), Path("/elsewhere")).digest == made(PLAIN).digest

    def test_every_absent_photo_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"x")
        (tmp_path / "folder.jpg").mkdir()
        (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing")
        names = ["a.jpg", "b.jpg", "folder.jpg", "broken.jpg"]
        manifest = Manifest(tuple(Row(name, "x", "train") for name in names), tmp_path)
        with pytest.raises(InputError) as caught:
            manifests.require_files(manifest, "m.csv")
        assert [problem.wrong for problem in caught.value.problems] == [
            f"the photo {name} is not there" for name in names[1:]
        ]
        manifests.require_files(Manifest(manifest.rows[:1], tmp_path), "m.csv")
