"""Seasons that become one, and what may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agrikd import files, jobs
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data.join import join
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import InputError


def season(folder: Path, year: str, **targets: str) -> Path:
    """A manifest of photos that hold what they are called; a target may name its split after a slash.

    After another slash it may name its season, from which its group has its name: "none" for neither.
    """
    rows = []
    for name, said in targets.items():
        target, split, other = [*said.split("/"), "", ""][:3]
        own = {"group": f"{other or year} {name}", "season": other or year} if other != "none" else {}
        own["sha256"] = files.sha256(name.encode())
        files.write_bytes(folder / f"{name}.jpg", name.encode())
        rows.append(Row(f"{name}.jpg", target or None, split or "train", **own))
    manifests.save(Manifest(tuple(rows), folder), folder / "manifest.csv")
    return folder / "manifest.csv"


def refused(*sources: Path, out: Path) -> str:
    with pytest.raises(InputError) as caught:
        join(sources, out)
    assert not out.exists() and not out.with_suffix(".yaml").exists()
    return "\n".join(str(problem) for problem in caught.value.problems)


def test_two_seasons_are_one(tmp_path: Path) -> None:
    """A photo that is in both is taken once, with the label that one of them has."""
    first = season(tmp_path / "last", "2026", a="rust", b="healthy/test", c="//none")
    second = season(tmp_path / "more" / "2027", "2027", c="healthy", d="mildew", b="healthy/test/2026")
    made = join([first, second], tmp_path / "both.csv")
    both = manifests.read(made.manifest)
    manifests.require_files(both, "both")
    assert {(row.path, row.target, row.split, row.season) for row in both.rows} == {
        ("last/a.jpg", "rust", "train", "2026"),
        ("last/b.jpg", "healthy", "test", "2026"),
        ("more/2027/c.jpg", "healthy", "train", "2027"),
        ("more/2027/d.jpg", "mildew", "train", "2027"),
    }
    said = "\n".join(made.assumptions)
    assert "2 photos stand in several" in said
    assert f"{first} holds no photo of mildew" in said and f"{second} holds no photo of rust" in said
    assert made.counts["2026"] == {"train": 1, "val": 0, "test": 1}
    recipe = jobs.load(made.recipe)
    assert recipe.name == "both" and jobs.open_manifest(recipe).rows == both.rows


def test_what_one_of_them_knows_is_kept(tmp_path: Path) -> None:
    """Of one photo the first knows the label alone, of another the group and season alone."""
    first = season(tmp_path / "last", "2026", a="rust//none", b="")
    second = season(tmp_path / "next", "2026", a="", b="healthy//none")
    both = manifests.read(join([first, second], tmp_path / "both.csv").manifest)
    assert [(row.path, row.target, row.group, row.season) for row in both.rows] == [
        ("last/a.jpg", "rust", "2026 a", "2026"),
        ("next/b.jpg", "healthy", "2026 b", "2026"),
    ]


def test_contradictions_name_both_files(tmp_path: Path) -> None:
    first = season(tmp_path / "last", "2026", a="rust", b="healthy")
    second = season(tmp_path / "next", "2027", a="healthy", b="healthy/test")
    said = refused(first, second, out=tmp_path / "both.csv")
    assert said.count(f"{first} and {second}: one photo has two") == 6
    assert "groups: last/a.jpg (2026 a) and next/a.jpg (2027 a)" in said
    assert "seasons: last/b.jpg (2026) and next/b.jpg (2027)" in said
    assert "targets: last/a.jpg (rust) and next/a.jpg (healthy)" in said
    assert "splits: last/b.jpg (train) and next/b.jpg (test)" in said


def test_one_class_under_two_names_is_refused(tmp_path: Path) -> None:
    first = season(tmp_path / "last", "2026", a="Rust", b="healthy", c="tach\u00e9e")
    second = season(tmp_path / "next", "2027", d="rust", e="healthy", f="tache\u0301e")
    said = refused(first, second, out=tmp_path / "both.csv")
    assert f"{first} and {second}: the classes Rust, rust differ only in capitals" in said
    assert said.count("how an accent is stored") == 2


def test_numbers_make_a_recipe_for_numbers(tmp_path: Path) -> None:
    """Two ways of writing one number are no two classes."""
    first = season(tmp_path / "last", "2026", **{f"a{n}": f"{n / 2}" for n in range(15)}, x="1e1")
    second = season(tmp_path / "next", "2027", **{f"b{n}": f"{n}.25" for n in range(15)}, y="1E1")
    made = join([first, second], tmp_path / "both.csv")
    task = jobs.load(made.recipe).task
    assert (task.name, task.low, task.high) == ("regression", 0, 14.25)


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    first, second = season(tmp_path / "last", "2026", a="rust"), season(tmp_path / "next", "2026", b="healthy/test")
    for path in (first, second):
        held = manifests.read(path)
        manifests.save(Manifest(tuple(replace(row, group="plant 1") for row in held.rows), held.root), path)
    assert f"{first} and {second}: group 'plant 1'" in refused(first, second, out=tmp_path / "both.csv")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    first, second = season(tmp_path / "last", "2026", a="rust"), season(tmp_path / "next", "2027", b="healthy")
    (tmp_path / "next" / "b.jpg").unlink()
    said = refused(first, second, tmp_path / "nowhere.csv", out=tmp_path / "elsewhere" / "both.csv")
    assert f"choose an --out in {tmp_path}" in said and "b.jpg is not there" in said and "nowhere.csv: there is" in said
    assert "name two or more" in refused(first, out=tmp_path / "both.csv")
    assert "does not end with .csv" in refused(first, second, out=tmp_path / "both")
    (tmp_path / "both.yaml").touch()
    with pytest.raises(InputError, match=r"both[.]yaml: is there already"):
        join([first, second], tmp_path / "both.csv")


def test_photos_away_from_their_manifest(tmp_path: Path) -> None:
    photos, other = season(tmp_path / "photos", "2026", a="rust").parent, season(tmp_path / "b", "2027", b="healthy")
    (tmp_path / "season").mkdir()
    moved = (photos / "manifest.csv").rename(tmp_path / "season" / "manifest.csv")
    assert "--root" in refused(moved, other, out=tmp_path / "both.csv")
    words = ["data", "join", moved, other, "--root", photos, "--root", other.parent, "--out", tmp_path / "a b.csv"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0 and f"next: agrikd teach '{tmp_path / 'a b.yaml'}'" in " ".join(done.stderr.split())
    assert [row.path for row in manifests.read(tmp_path / "a b.csv").rows] == ["photos/a.jpg", "b/b.jpg"]
