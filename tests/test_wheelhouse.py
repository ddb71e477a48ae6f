"""A wheelhouse for boards, from a registry that these tests play: what is asked of pip, kept, refused and said."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from agrikd import files, wheelhouse
from agrikd.cli import app
from agrikd.errors import AgriKDError, InputError
from agrikd.wheelhouse import SUMS, Board

JP6, JP7 = Board("3.10", "manylinux_2_35_aarch64"), Board("3.12", "manylinux_2_35_aarch64")
NEEDS = {
    "agrikd": ("onnxruntime>=1.20; extra == 'edge'", "torch; extra == 'train'", "rich>=13"),
    "onnxruntime": ("numpy>=1.21", "colorama; platform_system == 'Windows'"),
    "rich": (f"backport>=2; python_version < '{sys.version_info[0]}.{sys.version_info[1]}'",),
}
"""rich wants a backport on Pythons older than this one: pip, which asks this one, leaves it out."""


class Registry:
    """Answers as pip would; `cut_after` downloads the link is gone."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.cut_after = 10**6
        self.hashes = True

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        words = command[4:]
        if self.cut_after == 0:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No route to the registry\n")
        self.asked.append(words)
        if words[0] == "install":
            self._resolve(words)
        else:
            self.cut_after -= 1
            url = words[-1].partition("#")[0]
            name = url.rpartition("/")[2]
            (Path(words[words.index("--dest") + 1]) / name).write_bytes(self.bytes(name))
        return subprocess.CompletedProcess(command, 0, "", "")

    def bytes(self, name: str) -> bytes:
        return f"the wheel {name}".encode()

    def _resolve(self, words: list[str]) -> None:
        python = words[words.index("--abi") + 1]
        last = len(words) - words[::-1].index("--platform") + 1
        found: dict[str, dict[str, Any]] = {}
        todo = ["agrikd", *(Requirement(word).name for word in words[last + 1 :])]
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found[name] = self._entry(name, python)
            needs = [Requirement(text) for text in NEEDS.get(name, ())]
            todo += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": "edge"})]
        report = Path(words[words.index("--report") + 1])
        report.write_text(json.dumps({"install": list(found.values())}))

    def _entry(self, name: str, python: str) -> dict[str, Any]:
        tag = f"{python}-{python}-manylinux_2_28_aarch64" if name in ("numpy", "onnxruntime") else "py3-none-any"
        version = {"numpy": "1.26.4", "backport": "2.1"}.get(name, "20.0")
        file = f"{name}-{version}-{tag}.whl"
        known = {"hashes": {"sha256": files.sha256(self.bytes(file))}} if self.hashes else {}
        about = {"name": name, "version": version, "requires_dist": list(NEEDS.get(name, ()))}
        return {"metadata": about, "download_info": {"url": f"https://registry.example/{file}", "archive_info": known}}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(wheelhouse.subprocess, "run", made.run)
    return made


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "agrikd-0.1.0-py3-none-any.whl"
    path.write_bytes(b"agrikd's own")
    return path


def checked(out: Path) -> set[str]:
    """The files of a wheelhouse, each held against SHA256SUMS as the board does it."""
    lines = (out / SUMS).read_text().splitlines()
    found = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert all(files.sha256((out / name).read_bytes()) == digest for name, digest in found.items())
    assert {path.name for path in out.iterdir()} == {*found, SUMS}
    return set(found)


def test_pip_is_asked_for_the_board_and_not_for_this_machine() -> None:
    words = JP6.words()
    assert words[:2] == ["--only-binary", ":all:"]
    assert words[2:8] == ["--implementation", "cp", "--python-version", "3.10", "--abi", "cp310"]
    platforms = words[9::2]
    assert platforms[0] == "manylinux_2_35_aarch64" and platforms[-2:] == [
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ]
    assert len(platforms) == 20 and "manylinux_2_28_aarch64" in platforms


@pytest.mark.parametrize(
    ("board", "said"),
    [
        (Board("3.10", "linux_aarch64"), "is no platform of a board"),
        (Board("3.10", "manylinux_2_x_aarch64"), "is no platform of a board"),
        (Board("three", "manylinux_2_35_aarch64"), "is no Python of a board"),
        (Board("2.7", "manylinux_2_35_aarch64"), "is no Python of a board"),
    ],
)
def test_a_board_that_is_none(board: Board, said: str, tmp_path: Path, registry: Registry, own: Path) -> None:
    with pytest.raises(InputError, match=said):
        wheelhouse.make(tmp_path / "out", [board], own)
    assert not registry.asked


def test_all_that_two_boards_need(tmp_path: Path, registry: Registry, own: Path) -> None:
    made = wheelhouse.make(tmp_path / "out", [JP6, JP7], own)
    names = checked(tmp_path / "out")
    assert {"numpy-1.26.4-cp310-cp310-manylinux_2_28_aarch64.whl", own.name, "pip-20.0-py3-none-any.whl"} <= names
    assert sum(name.startswith("numpy") for name in names) == 2 and sum(name.startswith("rich") for name in names) == 1
    assert not any(name.startswith(("torch", "colorama")) for name in names)
    assert (made.fetched, made.kept, len(made.files)) == (len(names), 0, len(names))
    resolved = [words for words in registry.asked if words[0] == "install"]
    assert all("numpy<2" in words and f"{own}[edge]" in words for words in resolved)
    asked = [words[-1] for words in registry.asked if words[0] == "download"]
    assert not any("agrikd" in url for url in asked), "its name in a registry may be anybody's"
    assert all("#sha256=" in url for url in asked)


def test_what_a_marker_of_the_board_wants_is_there_too(tmp_path: Path, registry: Registry, own: Path) -> None:
    wheelhouse.make(tmp_path / "old", [JP6], own)
    assert "backport-2.1-py3-none-any.whl" in checked(tmp_path / "old")
    assert sum(words[0] == "install" for words in registry.asked) == 2


def test_the_second_time_nothing_travels(tmp_path: Path, registry: Registry, own: Path) -> None:
    first = wheelhouse.make(tmp_path / "out", [JP6], own)
    registry.asked.clear()
    again = wheelhouse.make(tmp_path / "out", [JP6], own)
    assert (again.fetched, again.kept) == (0, len(first.files)) and again.size_bytes == first.size_bytes
    assert {words[0] for words in registry.asked} == {"install"}


@pytest.mark.parametrize("hashes", [True, False], ids=["with the registry's hashes", "without"])
def test_a_cut_run_goes_on(tmp_path: Path, registry: Registry, own: Path, hashes: bool) -> None:
    registry.hashes, registry.cut_after = hashes, 2
    with pytest.raises(InputError, match=r"could not be fetched: pip: No route(.|\n)*by hand, into"):
        wheelhouse.make(tmp_path / "out", [JP6], own)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(there) == 4, "its own wheel, two others and SHA256SUMS, nothing half-written"
    registry.cut_after = 10**6
    made = wheelhouse.make(tmp_path / "out", [JP6], own)
    assert len(checked(tmp_path / "out")) == made.fetched + made.kept
    assert made.kept == (3 if hashes else 1)


def test_a_damaged_file_is_fetched_again(tmp_path: Path, registry: Registry, own: Path) -> None:
    made = wheelhouse.make(tmp_path / "out", [JP6], own)
    name = next(name for name in made.files if name.startswith("numpy"))
    (tmp_path / "out" / name).write_bytes(b"half of")
    assert wheelhouse.make(tmp_path / "out", [JP6], own).fetched == 1
    checked(tmp_path / "out")


def test_a_file_that_is_not_what_the_registry_said(
    tmp_path: Path, registry: Registry, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = registry._entry

    def wrong(name: str, python: str) -> dict[str, Any]:
        made = entry(name, python)
        made["download_info"]["archive_info"] = {"hashes": {"sha256": "0" * 64}}
        return made

    monkeypatch.setattr(registry, "_entry", wrong)
    with pytest.raises(InputError, match="is not what the registry said it is"):
        wheelhouse.make(tmp_path / "out", [JP6], own)


def test_without_the_registry(tmp_path: Path, registry: Registry, own: Path) -> None:
    registry.cut_after = 0
    with pytest.raises(InputError, match=r"No route to the registry\n    → run this once where there is internet"):
        wheelhouse.make(tmp_path / "out", [JP6], own)
    registry.cut_after = 10**6
    made = wheelhouse.make(tmp_path / "out", [JP6], own)
    registry.cut_after = 0
    with pytest.raises(InputError, match=f"all {len(made.files)} files of the last run are there and whole"):
        wheelhouse.make(tmp_path / "out", [JP6], own)
    lost = sorted(name for name in made.files if name.startswith(("numpy", "rich")))
    for name in lost:
        (tmp_path / "out" / name).unlink()
    with pytest.raises(InputError) as caught:
        wheelhouse.make(tmp_path / "out", [JP6], own)
    assert [problem.where for problem in caught.value.problems] == lost
    assert "bring them by hand" in str(caught.value) and SUMS in str(caught.value)


def test_what_the_board_has_of_its_own_is_refused(
    tmp_path: Path, registry: Registry, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDS, "onnxruntime", ("opencv-python-headless",))
    with pytest.raises(AgriKDError, match="opencv-python-headless would hide what the board has"):
        wheelhouse.make(tmp_path / "out", [JP6], own)
    assert not (tmp_path / "out").exists()


def test_an_older_plan_leaves_nothing_behind(tmp_path: Path, registry: Registry, own: Path) -> None:
    wheelhouse.make(tmp_path / "out", [JP6, JP7], own)
    newer = own.rename(own.with_name("agrikd-0.2.0-py3-none-any.whl"))
    wheelhouse.make(tmp_path / "out", [JP6], newer)
    names = checked(tmp_path / "out")
    assert newer.name in names and not any("cp312" in name or "0.1.0" in name for name in names)


def test_another_folder_is_left_alone(tmp_path: Path, registry: Registry, own: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="exists and is not empty"):
        wheelhouse.make(tmp_path / "mine", [JP6], own)


HASH = "0" * 64


@pytest.mark.parametrize(
    "lines",
    [
        f"{HASH}  debian-13.iso\n",
        f"{HASH}  ../victim-1.0-py3-none-any.whl\n",
        f"{HASH}  {{}}/victim.whl\n{HASH}  a-1.0-py3-none-any.whl\n",
        f"{HASH} *ubuntu.iso\n",
        "\n",
        "",
    ],
)
def test_another_folder_s_sums_are_no_plan(lines: str, tmp_path: Path, registry: Registry, own: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in (folder / "debian-13.iso", tmp_path / "victim-1.0-py3-none-any.whl", tmp_path / "victim.whl"):
        path.write_text("precious")
    (folder / SUMS).write_text(lines.format(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="exists and is not empty"):
        wheelhouse.make(folder, [JP6], own)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not registry.asked


def test_the_verb(tmp_path: Path, registry: Registry, own: Path) -> None:
    words = ["deploy", "wheelhouse", str(tmp_path / "out"), "--python", "3.10", "--wheel", str(own), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert set(said["files"]) == checked(tmp_path / "out") and said["fetched"] == len(said["files"])
    done = CliRunner().invoke(app, [*words[:-3], "--wheel", str(tmp_path / "none.whl")])
    assert done.exit_code == 2 and "there is no such file" in done.output


def test_its_own_wheel_is_made_of_the_sources_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's build is played: it packs what it was given."""

    def build(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        assert settings["env"]["SOURCE_DATE_EPOCH"] == "315532800"
        folder, source = Path(command[command.index("--wheel-dir") + 1]), Path(command[-1])
        with zipfile.ZipFile(folder / "agrikd-0.1.0-py3-none-any.whl", "w") as out:
            for path in sorted(source.rglob("*")):
                out.write(path, path.relative_to(source))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheelhouse.subprocess, "run", build)
    with zipfile.ZipFile(wheelhouse._built(tmp_path)) as made:
        names = made.namelist()
    assert {"pyproject.toml", "README.md", "LICENSE", "agrikd/wheelhouse.py", "agrikd/templates/page.html"} <= {*names}
    assert any(name.startswith("data/") and name.endswith(".yaml") for name in names)
    assert not any(name.startswith((".git", "build", "tests")) or "__pycache__" in name for name in names)


def test_without_sources_the_wheel_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse, "_CHECKOUT", tmp_path)
    with pytest.raises(InputError, match="--wheel"):
        wheelhouse.make(tmp_path / "out", [JP6])
