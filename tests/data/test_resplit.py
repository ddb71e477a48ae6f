"""New splits for a manifest: what is written, what is said, and every mistake in one report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row
from agrikd.data.resplit import SplitConfig, draw, read_pairs, resplit
from agrikd.errors import InputError, Problem


def rows() -> list[Row]:
    """Two classes in three seasons, ten photos each in plants of two, and five photos without a label."""
    found = [
        Row(f"{season}/{name}{i}.jpg", name, "train", f"{season}{name}{i // 2}", season, f"{season}{name}{i}")
        for season in ("2024", "2025", "2026")
        for name in ("healthy", "rust")
        for i in range(10)
    ]
    return found + [Row(f"no{i}.jpg", None, "train", sha256=f"no{i}") for i in range(5)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path, rows())


def saved(folder: Path, rows: list[Row]) -> Path:
    path = folder / "manifest.csv"
    manifests.save(Manifest(tuple(rows), folder), path)
    return path


def findings(folder: Path, pairs: list[list[str]]) -> Path:
    path = folder / "findings.json"
    path.write_text(json.dumps({"photos": 65, "duplicates": [{"paths": pair, "kind": "near"} for pair in pairs]}))
    return path


def refused(*given: Any) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        resplit(*given)
    return caught.value.problems


def wheres(*given: Any) -> list[str]:
    return [problem.where for problem in refused(*given)]


class TestWritten:
    def test_a_new_manifest_beside_the_old_one(self, source: Path) -> None:
        before = source.read_bytes()
        made = resplit(source, SplitConfig())
        assert source.read_bytes() == before
        assert made.manifest == source.with_name("manifest-split.csv")
        found = manifests.read(made.manifest)
        assert [row.path for row in found.rows] == [row.path for row in rows()]
        assert made.counts == {
            "healthy": {"train": 20, "val": 4, "test": 6},
            "rust": {"train": 20, "val": 4, "test": 6},
            "no label": {"train": 5, "val": 0, "test": 0},
        }
        assert Counter(row.split for row in found.rows if row.target) == {"train": 40, "val": 8, "test": 12}
        assert made.rows[0] == ("healthy", "20", "4", "6")

    def test_the_rows_and_the_seed_decide(self, source: Path, tmp_path: Path) -> None:
        first = manifests.read(resplit(source, SplitConfig(seed=1)).manifest).rows
        (tmp_path / "again").mkdir()
        turned = saved(tmp_path / "again", rows()[::-1])
        assert sorted(manifests.read(resplit(turned, SplitConfig(seed=1)).manifest).rows, key=str) == sorted(
            first, key=str
        )
        other = resplit(source, SplitConfig(seed=2), tmp_path / "two.csv").manifest
        assert manifests.read(other).rows != first

    def test_contradictions_of_the_old_splits_are_mended(self, tmp_path: Path) -> None:
        torn = [replace(row, split="test") if row.target and i % 2 else row for i, row in enumerate(rows())]
        source = saved(tmp_path, torn)
        with pytest.raises(InputError, match="stands in test and train"):
            manifests.read(source)
        assert manifests.read(resplit(source, SplitConfig()).manifest).rows

    def test_over_the_old_one_only_where_out_says_so(self, source: Path) -> None:
        assert resplit(source, SplitConfig(), source).manifest == source
        assert "test" in {row.split for row in manifests.read(source).rows}
        resplit(source, SplitConfig())
        (problem,) = refused(source, SplitConfig())
        assert (problem.where, problem.wrong) == (str(source.with_name("manifest-split.csv")), "is there already")

    def test_by_season(self, source: Path) -> None:
        made = resplit(source, SplitConfig("season", test_seasons=("2026",), val=0.2))
        assert made.counts["rust"] == {"train": 16, "val": 4, "test": 10}
        assert made.assumptions[0].endswith("season 2026 is test, whole; of the rest 80% train, 20% val (seed 0)")
        seasons = SplitConfig("season", test_seasons=("2026",), val_seasons=("2025",))
        assert draw(manifests.load(source), seasons).indices("val", labelled=True) == tuple(range(20, 40))

    def test_by_group(self, source: Path, tmp_path: Path) -> None:
        made = resplit(source, SplitConfig("group"))
        assert made.counts == resplit(source, SplitConfig(), tmp_path / "same.csv").counts
        bare = [replace(row, group="") if row.path.endswith(("t3.jpg", "t4.jpg")) else row for row in rows()]
        (problem,) = refused(saved(tmp_path, bare), SplitConfig("group"), tmp_path / "new.csv")
        some = "2024/rust3.jpg, 2024/rust4.jpg, 2025/rust3.jpg, …"
        assert problem.wrong == f"6 of 60 labelled photos have no group: {some}"
        assert "fill the column group" in problem.mend

    def test_duplicates_stay_together(self, source: Path, tmp_path: Path) -> None:
        pairs = [[f"2024/rust{i}.jpg", f"2025/rust{i}.jpg"] for i in range(10)]
        kept = findings(tmp_path, [*pairs, ["gone.jpg", "no1.jpg"]])
        made = resplit(source, SplitConfig(), None, kept)
        split_of = {row.path: row.split for row in manifests.read(made.manifest).rows}
        assert all(split_of[one] == split_of[other] for one, other in pairs)
        assert made.assumptions[-2] == f"10 pairs of duplicates in {kept} stay together"
        assert made.assumptions[-1].startswith(f"1 photos named in {kept} are not in the manifest")
        assert not any("not looked for" in text for text in made.assumptions)

    def test_what_was_assumed_is_said(self, tmp_path: Path) -> None:
        some = [replace(row, group="", sha256="") for row in rows()]
        some += [Row("n.jpg", NOT_A_PLANT, "test", season="2025"), Row("x.jpg", "rust", "train")]
        some += [Row("t.jpg", "rust", "train", "g", "2026"), Row("u.jpg", None, "train", "g")]
        out = tmp_path / "elsewhere" / "new.csv"
        (tmp_path / "n.jpg").touch()
        made = resplit(saved(tmp_path, some), SplitConfig("season", test_seasons=("2026",)), out)
        said = "\n".join(made.assumptions)
        for text in (
            "1 labelled photos have no season: they train",
            "61 labelled photos have no group",
            "69 photos have no sha256",
            "left out 1 photos without a label whose group, copy or season judges",
            "left out 1 pictures of no plant",
            f"duplicates were not looked for: agrikd data check {tmp_path / 'manifest.csv'}",
            f"the photos' paths still start from {tmp_path}: name it as data.root",
        ):
            assert text in said, text
        bare = [replace(row, group="") for row in rows() if row.season != "2026" or row.target != "rust"]
        (tmp_path / "bare").mkdir()
        made = resplit(saved(tmp_path / "bare", bare), SplitConfig("season", test_seasons=("2026",)))
        assert "test holds no photo of rust" in made.assumptions
        assert "no groups known: photos of one plant may stand in both train and test" in made.assumptions


class TestMistakes:
    def test_all_of_them_come_at_once(self, source: Path, tmp_path: Path) -> None:
        out = tmp_path / "taken.csv"
        out.write_text("mine")
        wrong = SplitConfig("season", train=0.5, val=1.5, test_seasons=("2027", "2026"), val_seasons=("2026",))
        assert wheres(source, wrong, out, tmp_path / "none.json") == [
            "--val",
            "--train",
            "--val --val-season",
            "season '2026'",
            str(out),
            str(tmp_path / "none.json"),
            "season '2027'",
        ]
        assert out.read_text() == "mine"

    def test_no_manifest(self, tmp_path: Path) -> None:
        given = tmp_path / "none.csv", SplitConfig(train=0.9)
        assert wheres(*given) == ["--train --val --test", str(tmp_path / "none.csv")]

    @pytest.mark.parametrize(
        ("config", "where", "wrong"),
        [
            (SplitConfig("plot"), "--by", "is 'plot'"),
            (SplitConfig(test=0.3), "--train --val --test", "0.7 + 0.1 + 0.3 is 1.1, not 1"),
            (SplitConfig(train=0, val=0.5, test=0.5), "--train", "is left no share: nothing would be learnt from"),
            (SplitConfig("season", val=1, test_seasons=("2026",)), "--train", "is left no share"),
            (SplitConfig(val=float("nan")), "--val", "is nan"),
            (SplitConfig(test_seasons=("2026",)), "--test-season", "is for seasons alone"),
            (SplitConfig("group", val_seasons=("2026",)), "--val-season", "is for seasons alone"),
            (SplitConfig("season"), "--test-season", "is missing"),
            (SplitConfig("season", test=0.2, test_seasons=("2026",)), "--test", "has no meaning by season"),
        ],
    )
    def test_a_config_that_cannot_be(self, source: Path, config: SplitConfig, where: str, wrong: str) -> None:
        (problem,) = refused(source, config)
        assert problem.where == where
        assert problem.wrong.startswith(wrong) and problem.mend
        with pytest.raises(InputError, match=where):
            draw(manifests.load(source), config)
        assert not source.with_name("manifest-split.csv").exists()

    def test_what_no_split_mends_is_named(self, tmp_path: Path) -> None:
        two = [*rows(), Row("copy.jpg", "healthy", "test", sha256="2024rust0")]
        (problem,) = refused(saved(tmp_path, two), SplitConfig())
        assert "is labelled healthy and rust" in problem.wrong
        (problem,) = refused(saved(tmp_path, [row for row in rows() if not row.target]), SplitConfig())
        assert problem.wrong == "no photo has a label: there is nothing to split"

    def test_a_class_with_too_few_photos_is_named(self, tmp_path: Path) -> None:
        few = [*rows(), Row("a.jpg", "blight", "train"), Row("b.jpg", "blight", "train")]
        (problem,) = refused(saved(tmp_path, few), SplitConfig())
        assert problem.where == "class 'blight'"

    @pytest.mark.parametrize(
        "text", ["[]", "{}", '{"duplicates": 3}', '{"duplicates": [{"paths": ["a"]}]}', '{"duplicates": [["a", "b"]]}']
    )
    def test_a_file_that_holds_no_findings(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "findings.json"
        path.write_text(text)
        with pytest.raises(InputError, match="holds no list of duplicates") as caught:
            read_pairs(path)
        assert "agrikd data check" in str(caught.value)


class TestVerb:
    def test_it_prints_the_counts_and_says_what_it_assumed(self, source: Path) -> None:
        done = CliRunner().invoke(app, ["data", "split", str(source), "--by", "season", "--test-season", "2026"])
        assert done.exit_code == 0, done.output
        assert "season 2026 is test, whole" in done.stderr
        assert [word for word in ("healthy", "rust", "no label") if word not in done.stdout] == []

    def test_as_json(self, source: Path, tmp_path: Path) -> None:
        line = ["data", "split", str(source), "--test", "0.3", "--train", "0.6", "--seed", "3", "--json"]
        kept = findings(tmp_path, [["2024/rust1.jpg", "2026/rust1.jpg"]])
        done = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "n.csv"), "--keep-together", str(kept)])
        said = json.loads(done.stdout)
        assert said["manifest"] == str(tmp_path / "n.csv")
        assert said["counts"]["rust"]["test"] in (8, 9, 10)
        assert said["assumptions"][-1].startswith("1 pairs of duplicates")

    def test_photos_that_lie_elsewhere(self, source: Path, tmp_path: Path) -> None:
        """Without --root nothing is claimed about where they are; with it, they stay there."""
        said = " ".join(resplit(source, SplitConfig()).assumptions)
        assert f"no photo is in {tmp_path}: name the folder" in said and "data.root" not in said
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "no1.jpg").touch()
        words = ["data", "split", source, "--root", tmp_path / "photos", "--out", tmp_path / "n.csv", "--json"]
        done = CliRunner().invoke(app, [str(word) for word in words])
        said = " ".join(json.loads(done.stdout)["assumptions"])
        assert f"the photos' paths still start from {tmp_path / 'photos'}: name it as data.root" in said

    def test_a_mistake_is_a_message(self, source: Path) -> None:
        done = CliRunner().invoke(app, ["data", "split", str(source), "--by", "season", "--val-season", "2025"])
        assert done.exit_code == 2
        assert "--test-season: is missing" in done.stderr


def test_numbers_are_split_over_all_of_their_range(tmp_path: Path) -> None:
    """A fifth of the leaves have nothing at all, as on a real field; a plant's leaves stay together."""
    values = [0.0] * 20 + [round(0.3 * n, 1) for n in range(1, 81)]
    photos = [Row(f"{n}.jpg", f"{value:g}", "train", f"plant {n // 2}") for n, value in enumerate(values)]
    made = resplit(saved(tmp_path, photos), SplitConfig(train=0.6, val=0.2, test=0.2))
    after = manifests.load(made.manifest)
    assert made.assumptions[0].startswith("the labels are taken as numbers, not as names of classes")
    assert {row.path: row.target for row in after.rows} == {row.path: row.target for row in photos}
    of = {split: [float(str(row.target)) for row in after.rows if row.split == split] for split in ("train", "test")}
    assert len(of["test"]) == 20 and max(of["test"]) > 20 and of["test"].count(0) in (3, 4, 5)
    assert abs(sum(of["train"]) / 60 - sum(of["test"]) / 20) < 1.5
    assert len({(row.group, row.split) for row in after.rows}) == 50
    assert all(" to " in name for name, *_ in made.rows) and 4 <= len(made.rows) <= 5
