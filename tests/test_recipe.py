"""Recipes: all mistakes at once with the way out, nothing guessed, and the same recipe has the same digest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd import recipe as recipes
from agrikd.errors import InputError, Problem
from agrikd.recipe import Recipe

QUICK = settings(max_examples=80, deadline=None, derandomize=True)
PLAIN = "name: leaf\ndata: {manifest: manifest.csv}\nstudent: {timm: resnet18}\n"
FULL: dict[str, Any] = {
    "name": "leaf-kd",
    "data": {"manifest": "/photos/manifest.csv"},
    "student": {"timm": "mobilenetv3_small_050", "input_size": 112},
    "teachers": [{"timm": "resnet18", "weights": "/w/resnet.safetensors", "kwargs": {"pad_type": "same"}}],
    "method": {"name": "kd", "temperature": 2.0},
    "optim": {"steps": 10},
    "seed": 3,
}


def written(folder: Path, text: str = PLAIN) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str = PLAIN, *overrides: str) -> Recipe:
    path = written(folder, text)
    return recipes.parse(recipes.read_mapping(path, overrides), str(path))


def refused(folder: Path, text: str = PLAIN, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        read(folder, text, *overrides)
    return caught.value.problems


def leaves(value: Any, key: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, (*key, name))]
    return [(key, value)]


class TestDigest:
    def test_golden(self) -> None:
        """Runs and checkpoints of earlier versions hang on it: a new key or default changes it, knowingly."""
        found = Recipe.model_validate(FULL).digest
        assert found == "51b0764a0cd4f5b4b8f9d3cec317714584f79728c74dff835f779126c327c4ba"

    def test_how_a_recipe_is_written_does_not_matter(self, tmp_path: Path) -> None:
        plain = read(tmp_path)
        turned = "student:\n  timm: 'resnet18'\nname: leaf # words\ndata: {manifest: ./manifest.csv}\nseed: 0\n"
        assert read(tmp_path, turned).digest == plain.digest
        assert read(tmp_path, turned + "optim: {lr: 2e-3, steps: 1000}\n").digest == plain.digest

    def test_every_key_that_changes_changes_it(self) -> None:
        other: dict[type, Any] = {int: 7, float: 0.25, bool: True}
        special = {
            "optim.name": "sgd",
            "optim.precision": "fp32",
            "data.augment": "light",
            "data.fit": "pad",
            "student.input_size": 64,
            "student.mean": [0.1, 0.2, 0.3],
            "student.std": [0.1, 0.2, 0.3],
            "student.weights": "hub",
            "student.kwargs": {"pad_type": "same"},
            "student.combine": "best",
            "data.pool.known": 0.5,
            "method.also": [{"name": "mse"}],
            "teach.stages": ["probe"],
            "teachers": [{"timm": "resnet50"}],
            "data.labels_per_class": 5,
            "data.views": 5,
            "data.size": 64,
        }
        base = Recipe.model_validate(FULL)
        digests = {base.digest}
        changed = 0
        for key, value in leaves(base.model_dump(mode="json")):
            dotted = ".".join(key)
            if dotted in ("student.run", "student.ensemble"):  # a net is one of a timm model, a Run and an ensemble
                continue
            if dotted in (
                "task.low",
                "task.high",
                "task.unit",
                "task.bins",
                "task.sigma",
                "data.labels",
            ):  # of regression alone
                continue
            raw = base.model_dump(mode="json")
            *parents, last = key
            here = raw
            for part in parents:
                here = here[part]
            here[last] = special.get(dotted, other.get(type(value), "another"))
            digests.add(Recipe.model_validate(raw).digest)
            changed += 1
        assert changed >= 40
        assert len(digests) == changed + 1


class TestMistakes:
    def test_all_at_once(self, tmp_path: Path) -> None:
        text = PLAIN + (
            "optim: {momentom: 3, lr: -1, steps: 0}\n"
            "teach: {stages: [all, probe]}\n"
            "mehtod: {}\n"
            "teachers: [{tim: a}, {timm: a, run: b}, {timm: a, weights: w.pth}, {run: r, kwargs: {a: 1}}]\n"
        )
        problems = refused(tmp_path, text)
        found = {problem.where.removeprefix(f"{tmp_path / 'recipe.yaml'}: "): problem for problem in problems}
        assert found.keys() == {
            "optim.momentom",
            "optim.lr",
            "optim.steps",
            "teach",
            "mehtod",
            "teachers.0.tim",
            "teachers.1",
            "teachers.2",
            "teachers.3",
        }
        assert found["optim.lr"].wrong == "Input should be greater than 0, got -1"
        assert "exactly one of 'timm'" in found["teachers.1"].wrong
        assert "expected none, hub, package" in found["teachers.2"].wrong
        assert "brings its own kwargs" in found["teachers.3"].wrong
        assert "in that order" in found["teach"].wrong

    @pytest.mark.parametrize(
        ("text", "mend"),
        [
            ("mehtod: {}", "did you mean 'method'?"),
            ("optim: {momentom: 0.5}", "did you mean 'momentum'?"),
            ("teachers: [{tim: a, timm: b}]", "did you mean 'timm'?"),
            ("gate: {overide: x}", "did you mean 'override'?"),
            ("data: {manifest: m.csv, veiws: 3}", "did you mean 'views'?"),
        ],
    )
    def test_a_near_spelling_is_offered(self, tmp_path: Path, text: str, mend: str) -> None:
        plain = PLAIN.replace("data: {manifest: manifest.csv}\n", "") if text.startswith("data") else PLAIN
        (problem,) = refused(tmp_path, plain + text)
        assert problem.wrong == "unknown key"
        assert problem.mend == mend

    def test_where_nothing_is_near_all_keys_are_named(self, tmp_path: Path) -> None:
        (problem,) = refused(tmp_path, PLAIN + "task: {zzzz: 1}\n")
        assert problem.mend == "known here: name, label_smoothing, low, high, unit, bins, sigma"

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        problems = refused(tmp_path, "seed: 1\n")
        assert [(problem.where.split(": ")[1], problem.wrong) for problem in problems] == [
            (key, "is missing") for key in ("name", "data", "student")
        ]

    @pytest.mark.parametrize("name", ["", ".hidden", "a/b", "ü", "x" * 101, "../up"])
    def test_a_name_that_could_be_no_folder(self, tmp_path: Path, name: str) -> None:
        (problem,) = refused(tmp_path, PLAIN.replace("leaf", repr(name)))
        assert "pattern" in problem.wrong

    @pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
    def test_no_number_is_infinite(self, tmp_path: Path, value: str) -> None:
        (problem,) = refused(tmp_path, PLAIN + f"optim: {{lr: {value}}}\n")
        assert "finite" in problem.wrong or "greater" in problem.wrong

    @pytest.mark.parametrize("text", ["", "- a\n- b\n", "words", "3"])
    def test_no_mapping(self, tmp_path: Path, text: str) -> None:
        (problem,) = refused(tmp_path, text)
        assert "is not a recipe" in problem.wrong

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("name: a\nseed: [1\n", 3, "not valid YAML"),
            ("name: a\ndata: !!python/name:os.system\n", 2, "not valid YAML"),
            ("name: a\nseed: 1\nname: b\n", 3, "'name' stands twice"),
            ("name: a\noptim: {lr: 1, steps: 3,\n  lr: 2}\n", 3, "'lr' stands twice"),
        ],
    )
    def test_broken_yaml_is_named_by_its_line(self, tmp_path: Path, text: str, line: int, said: str) -> None:
        (problem,) = refused(tmp_path, text)
        assert problem.where == f"{tmp_path / 'recipe.yaml'}:{line}"
        assert said in problem.wrong

    @pytest.mark.parametrize("text", ["name: 2024-13-45\n", "a: \x07\n"])
    def test_yaml_without_a_place_is_refused_too(self, tmp_path: Path, text: str) -> None:
        (problem,) = refused(tmp_path, text)
        assert "not valid YAML" in problem.wrong

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            recipes.read_mapping(tmp_path / "absent.yaml")


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("optim.lr=1e-3", 0.001),
            ("optim.lr=1E-3", 0.001),
            ("optim.lr=.5e-3", 0.0005),
            ("optim.lr=0.01", 0.01),
            ("optim.steps=1e3", 1000),
            ("optim.steps=50", 50),
            ("seed=9", 9),
            ("name=other-1", "other-1"),
            ("name='123'", "123"),
            ("name='1e5'", "1e5"),
            ("name=inf", "inf"),
            ("name=nan", "nan"),
            ("gate.override=we know = better", "we know = better"),
            ("data.views=4", 4),
            ("data.views=null", None),
            ("data.views=", None),
            ("student.input_size=64", (64, 64)),
            ("student.input_size=[64, 96]", (64, 96)),
            ("teach.stages=[probe, last]", ("probe", "last")),
            ("student.mean=[0.5, 5e-1, 0.5]", (0.5, 0.5, 0.5)),
            ("student.kwargs={drop_path_rate: 1e-1}", {"drop_path_rate": 0.1}),
            ("student.kwargs.pad_type=same", {"pad_type": "same"}),
        ],
    )
    def test_a_value_arrives_as_a_person_means_it(self, tmp_path: Path, override: str, expected: Any) -> None:
        found: Any = read(tmp_path, PLAIN, override)
        for part in override.partition("=")[0].split("."):
            if part != "pad_type":
                found = getattr(found, part)
        assert found == expected
        assert type(found) is type(expected)

    def test_a_number_in_the_file_means_the_same(self, tmp_path: Path) -> None:
        found = read(tmp_path, PLAIN + "method: {name: kd, temperature: 1e-1}\noptim: {steps: 1e2}\n")
        assert found.method.settings == {"temperature": 0.1}
        assert found.optim.steps == 100

    def test_lists_are_reached_by_number(self, tmp_path: Path) -> None:
        teachers = "teachers=[{timm: a}, {timm: b}]"
        found = read(tmp_path, PLAIN, teachers, "teachers.1.timm=c", "teachers.0={run: r}")
        assert [net.timm for net in found.teachers] == [None, "c"]

    def test_the_last_one_wins(self, tmp_path: Path) -> None:
        assert read(tmp_path, PLAIN, "seed=1", "seed=2").seed == 2

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("seed", "is not key=value"),
            ("=3", "is not key=value"),
            ("seed=[1", "is not valid YAML"),
            ("seed=2024-13-45", "is not valid YAML"),
            ("name.sub=1", "there is nothing called 'sub' there"),
            ("name.sub.sub=1", "'sub' is not inside a group"),
            ("teachers.0.timm=b", "'0' is not inside a group"),
            ("teachers.x.timm=b", "'x' is not inside a group"),
            ("teachers.0={timm: b}", "there is nothing called '0' there"),
        ],
    )
    def test_what_cannot_be_applied_is_said(self, tmp_path: Path, override: str, said: str) -> None:
        (problem,) = refused(tmp_path, PLAIN + "teachers: []\n", override)
        assert said in problem.wrong
        assert override in problem.where

    def test_an_unknown_key_is_refused_as_in_the_file(self, tmp_path: Path) -> None:
        (problem,) = refused(tmp_path, PLAIN, "optim.stesp=3")
        assert problem.mend == "did you mean 'steps'?"


class TestPlaces:
    def test_paths_start_from_the_recipes_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
        folder.mkdir()
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        text = (
            "name: a\ndata: {manifest: ../photos/m.csv, root: .}\nstudent: {timm: a, weights: w.safetensors}\n"
            "teachers: [{run: runs/t}, {timm: resnet18.a1_in1k, weights: hub}, {timm: a, weights: /w/w.safetensors}]\n"
            "gate: {student_alone: ~/alone}\n"
        )
        found = read(folder, text)
        assert found.data.manifest == tmp_path / "photos" / "m.csv"
        assert found.data.root == folder
        assert found.student.weights == str(folder / "w.safetensors")
        assert found.teachers[0].run == folder / "runs" / "t"
        assert (found.teachers[1].timm, found.teachers[1].weights) == ("resnet18.a1_in1k", "hub")
        assert found.teachers[2].weights == "/w/w.safetensors"
        assert found.gate.student_alone == Path.home() / "alone"

    def test_an_overrides_path_starts_where_it_was_typed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, here = tmp_path / "recipes", tmp_path / "here"
        folder.mkdir()
        here.mkdir()
        monkeypatch.chdir(here)
        found = read(folder, PLAIN, "data.manifest=other.csv", "teachers=[{run: runs/t}]")
        assert found.data.manifest == here / "other.csv"
        assert found.teachers[0].run == here / "runs" / "t"

    def test_the_environment_fills_names_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGRIKD_TEST_PHOTOS", "/somewhere/photos")
        monkeypatch.setenv("AGRIKD_TEST_SEED", "7")
        text = PLAIN.replace("manifest.csv", "'${AGRIKD_TEST_PHOTOS}/m.csv'") + "seed: ${AGRIKD_TEST_SEED}\n"
        found = read(tmp_path, text, "student.weights=${AGRIKD_TEST_PHOTOS}/w.safetensors")
        assert found.data.manifest == Path("/somewhere/photos/m.csv")
        assert found.student.weights == "/somewhere/photos/w.safetensors"
        assert found.seed == 7

    def test_an_unset_name_is_an_error(self, tmp_path: Path) -> None:
        assert "AGRIKD_TEST_ABSENT" not in os.environ
        (problem,) = refused(tmp_path, PLAIN.replace("manifest.csv", "'${AGRIKD_TEST_ABSENT}/m.csv'"))
        assert problem.where.endswith("recipe.yaml: manifest")
        assert problem.wrong == "${AGRIKD_TEST_ABSENT} is not set"
        assert problem.mend == "export AGRIKD_TEST_ABSENT=…"
        (problem,) = refused(tmp_path, PLAIN, "data.root=${AGRIKD_TEST_ABSENT}")
        assert "--set data.root" in problem.where


share = st.floats(0, 1, exclude_max=True)
paths = st.from_regex(r"/[a-zé ,'\"#:]{1,8}/[a-z0-9.]{1,6}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$"), max_size=12)
plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e9, 1e9) | words
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True) | st.sampled_from(
    ["1e5", "1234e567", "null", "yes", "0x1F", "2024-01-01", "1_000", ".5e-3"[1:], "inf"]
)
nets = st.fixed_dictionaries(
    {"timm": names},
    optional={
        "weights": st.sampled_from(["none", "hub", "package", "/w/a.safetensors"]),
        "kwargs": st.dictionaries(names, plain | st.lists(plain, max_size=3), max_size=3),
        "input_size": st.integers(32, 2048) | st.tuples(st.integers(32, 2048), st.integers(32, 2048)),
        "mean": st.tuples(share, share, share),
    },
)
valid = st.fixed_dictionaries(
    {
        "name": names,
        "data": st.fixed_dictionaries(
            {"manifest": paths},
            optional={
                "root": paths,
                "views": st.none() | st.integers(1, 99),
                "size": st.none() | st.integers(32, 2048),
                "augment": st.sampled_from(["none", "light", "field"]),
                "fit": st.sampled_from(["stretch", "crop", "pad"]),
                "unlabelled_share": share,
                "workers": st.integers(0, 64),
            },
        ),
        "student": nets,
    },
    optional={
        "teachers": st.lists(nets | st.fixed_dictionaries({"run": paths}), max_size=2),
        "method": st.fixed_dictionaries({"name": names}, optional={"temperature": plain, "weights": st.lists(plain)}),
        "optim": st.fixed_dictionaries({}, optional={"lr": st.floats(1e-12, 1e3), "clip": st.floats(0, 9)}),
        "gate": st.fixed_dictionaries({"override": st.none() | words}),
        "seed": st.integers(0, 2**40),
    },
)


class TestYaml:
    @QUICK
    @given(raw=valid)
    def test_a_recipe_goes_round(self, raw: dict[str, Any]) -> None:
        """As a Run reads its own recipe.yaml back, with plain YAML 1.1."""
        made = recipes.parse(raw, "here")
        again = recipes.parse(yaml.safe_load(made.to_yaml()), "there")
        assert again == made
        assert again.digest == made.digest

    @QUICK
    @given(raw=valid)
    def test_a_written_recipe_may_be_read_as_a_persons(
        self, tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]
    ) -> None:
        made = recipes.parse(raw, "here")
        path = tmp_path_factory.getbasetemp() / "round.yaml"
        path.write_text(made.to_yaml(), encoding="utf-8")
        again = recipes.parse(recipes.read_mapping(path), str(path))
        assert again == made
        assert again.digest == made.digest

    def test_a_recipe_cannot_be_changed(self) -> None:
        made = Recipe.model_validate(FULL)
        with pytest.raises(ValueError, match="frozen"):
            made.seed = 4
        with pytest.raises(ValueError, match="frozen"):
            made.optim.lr = 4.0
