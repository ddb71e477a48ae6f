"""What the documents say is true: commands exist, recipes load, cards agree with their manifests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from agrikd import distill, jobs
from agrikd import recipe as recipes
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.data import start
from agrikd.device.__main__ import app as device

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "models" / "recipes").glob("*.yaml"))
CARDS = sorted(path for path in (ROOT / "data").glob("*.yaml") if "manifest" in yaml.safe_load(path.read_text()))


def commands(text: str) -> list[list[str]]:
    """Every `agrikd VERB …` of a text: in code blocks, in backticks with a verb, and in Example lines."""
    found = re.findall(r"^(?:    |Example: +|#.*?: +|# +)(agrikd [a-z].*)$", text, re.MULTILINE)
    return [shlex.split(line.strip(), comments=True) for line in found]


def check(words: list[str], of: Any = app) -> None:
    """The verb and each option exist."""
    command: Any = get_command(of)
    rest = words[1:]
    while hasattr(command, "commands"):
        name = rest.pop(0)
        if name.startswith("-"):
            return
        assert name in command.commands, f"{' '.join(words)}: there is no verb {name}"
        command = command.commands[name]
    options = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if word.startswith("-"):
            assert word in {*options, "--help"}, f"{' '.join(words)}: there is no option {word}"


def verbs(of: Any = app) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(name: str, command: Any) -> None:
        for child, inner in getattr(command, "commands", {}).items():
            walk(f"{name} {child}", inner)
        if not hasattr(command, "commands"):
            found[name] = command

    walk("agrikd", get_command(of))
    return found


def test_commands_in_the_documents_exist() -> None:
    texts = [ROOT / "README.md", ROOT / "data" / "README.md", *RECIPES]
    seen = [words for path in texts for words in commands(path.read_text())]
    for words in seen:
        check(words)
    assert len(seen) >= 10


def test_every_verb_has_an_example_that_parses() -> None:
    seen = 0
    for name, command in verbs().items():
        examples = commands(str(command.help))
        assert examples, f"{name} --help gives no example"
        for words in examples:
            check(words)
            seen += 1
    assert seen >= 11


def test_every_verb_of_a_device_has_an_example_that_parses() -> None:
    for name, command in verbs(device).items():
        (example,) = re.findall(r"^Example: python -m (agrikd\.device .*)$", str(command.help), re.MULTILINE)
        words = shlex.split(example)
        if words[1] == "--store":
            del words[1:3]
        check(words, device)
        assert words[1] == name.split()[1]
    assert len(verbs(device)) == 8


def test_a_verb_that_prints_a_result_prints_it_as_json() -> None:
    silent = {name for name, command in verbs().items() if "as_json" not in {one.name for one in command.params}}
    served = {"agrikd agent", "agrikd app", "agrikd serve"}
    assert silent == {*served, "agrikd access add", "agrikd access remove", "agrikd device-report"}


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    named = {name for text in texts for name in re.findall(r"^    make ([a-z]+)", text, re.MULTILINE)}
    assert named == {"demo", "test", "lint", "bench", "torture", "soak"}
    assert named <= targets


def test_links_in_the_documents_lead_somewhere() -> None:
    seen = 0
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("[a-z]*/README.md"),
        ROOT / "models" / "LOG.md",
    ]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
            seen += 1
    assert seen >= 8


def test_each_method_is_in_the_table() -> None:
    table = re.search(r"## Ways to distil.*?\n\n(\| the student.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table
    named = re.findall(r"`([a-z_]+)`", table.group(1))
    assert sorted(named) == sorted(distill.names())
    assert len(named) >= 17


def test_recipe_parts_in_the_readme_parse() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block in blocks:
        raw = {"name": "x", "data": {"manifest": "m.csv"}, "student": {"timm": "resnet18"}, **yaml.safe_load(block)}
        recipe = recipes.parse(raw, "README.md")
        assert distill.problems(recipe.method.model_dump(), "README.md") == []
    assert len(blocks) == 1


def test_recipes_are_counted() -> None:
    assert len(RECIPES) == 5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGRIKD_DATA", "/somewhere")
    recipe = jobs.load(path)
    assert recipe.name == path.stem
    assert recipes.parse(yaml.safe_load(recipe.to_yaml()), "again").digest == recipe.digest


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_finds_its_photos(path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGRIKD_DATA", str(datasets))
    recipe = jobs.load(path)
    manifest = jobs.open_manifest(recipe)
    data, classes = recipe.data, len(manifest.classes)
    wanted = data.labels if recipe.task.scale else data.labels_per_class * classes
    assert len(manifest.indices("train", labelled=True)) == wanted
    assert manifest.indices("train", labelled=False)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_each_card_agrees_with_its_manifest(path: Path) -> None:
    card = yaml.safe_load(path.read_text())
    manifest = manifests.read(path.parent / card["manifest"])
    assert card["task"] == "regression" or list(manifest.classes) == card["classes"]
    assert {split: len(manifest.indices(split)) for split in card["photos"]} == card["photos"]
    assert {"licence", "source", "cite", "cautions"} <= card.keys()
    assert all(len(row.sha256) == 64 for row in manifest.rows)


def test_cards_with_a_manifest_are_counted() -> None:
    assert len(CARDS) == 4


def test_init_writes_a_recipe_that_loads(tiny_photos: Path, tmp_path: Path) -> None:
    import shutil

    from agrikd.data.manifest import read

    for row in read(tiny_photos / "manifest.csv").rows:
        if row.target and row.target != "not_a_plant":
            (tmp_path / "my photos" / row.target).mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_photos / row.path, tmp_path / "my photos" / row.target)
    made = start.start(tmp_path / "my photos", tmp_path / "season")
    recipe = jobs.load(made.recipe)
    assert recipe.name == "my-photos"
    assert f"--teacher {tmp_path}/season/runs/my-photos-teacher\n" in made.recipe.read_text()
    assert jobs.open_manifest(recipe).classes == ("blight", "healthy", "rust")
    assert made.assumptions
