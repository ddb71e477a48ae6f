"""What a grid trains, and what a study says in words."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from serve_kit import until

from agrikd import console
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError
from agrikd.grid import ALONE, POOL, RANDOM_HEAD, SMOOTHED, TEACHER, WIDER, Place, Plan, require, students
from agrikd.jobs import prepare
from agrikd.recipe import DataSpec, MethodSpec, NetSpec, PoolSpec, Recipe, TaskSpec
from agrikd.study import Cost, Judged, Split, Study, csv_of, summed_up

PLACE = Place("leaves", 20, "student")
TAUGHT = Place("leaves", 20, "big")
COSTS = {"student": Cost(600_000, 2_400_000, 3.0), "big": Cost(5_000_000, 20_000_000, 40.0)}
TRUTH = np.arange(60) % 3


def judged(place: Place, arm: str, seed: int, wrong: int, refused: str = "") -> Judged:
    said = TRUTH.copy()
    said[:wrong] = (said[:wrong] + 1) % 3
    score = 1 - wrong / 60
    return Judged(
        place,
        arm,
        seed,
        dict.fromkeys(("macro_f1", "accuracy", "ece", "agreement", "minutes"), score),
        refused,
        TRUTH,
        said,
    )


def study(alone: int, distilled: int, teacher: int, seeds: int = 3) -> Study:
    wrong = ((TAUGHT, TEACHER, teacher), (PLACE, ALONE, alone), (PLACE, "kd", distilled), (PLACE, "kd" + POOL, 0))
    runs = [judged(place, arm, seed, n) for seed in range(seeds) for place, arm, n in wrong]
    return summed_up(runs, (100,), COSTS, {"leaves": Split(3, None)})


@pytest.mark.parametrize(("alone", "cautions"), [(30, 0), (15, 1), (10, 1)])
def test_a_teacher_no_better_than_the_student_alone_is_named(alone: int, cautions: int) -> None:
    made = study(alone, 5, 15)
    assert sum("no better than the student alone" in said for said in made.cautions()) == cautions
    assert made.markdown().count("no better than the student alone") == cautions


def test_few_seeds_are_named() -> None:
    assert any("2 seeds say little" in said for said in study(30, 5, 10, seeds=2).cautions())
    assert study(30, 5, 10, seeds=3).cautions() == []


def test_verdicts_are_of_each_arm_against_alone() -> None:
    made = study(30, 40, 10)
    assert set(made.overall) == {"kd", "kd" + POOL}
    said = made.words()
    assert any(one.startswith("kd hurts by") for one in said)
    assert any(one.startswith("kd + unlabelled helps by") for one in said)
    gains = {name: 100 * found.mean for name, found in made.overall.items()}
    brought = f"{gains['kd' + POOL] - gains['kd']:.1f} of {gains['kd' + POOL]:.1f} points"
    assert f"kd + unlabelled: the photos without labels brought {brought}" in said
    cells = {arm.arm: arm.cells() for arm in made.arms}
    assert cells["kd"][5].startswith("hurts −")
    assert cells[ALONE][5] == cells[TEACHER][5] == "–"


def test_the_pool_is_judged_where_it_was_tried() -> None:
    full = Place("leaves", None, "student")
    wrong = [(PLACE, ALONE, 30), (PLACE, "kd", 24), (PLACE, "kd" + POOL, 6), (full, ALONE, 10), (full, "kd", 4)]
    runs = [judged(place, arm, seed, n) for seed in range(3) for place, arm, n in wrong]
    made = summed_up(runs, (100,), COSTS, {"leaves": Split(3, None)})
    gain = {(arm.place, arm.arm): 100 * arm.difference.mean for arm in made.arms if arm.difference}
    with_pool, without = gain[PLACE, "kd" + POOL], gain[PLACE, "kd"]
    said = f"kd + unlabelled: the photos without labels brought {with_pool - without:.1f} of {with_pool:.1f} points"
    assert f"over 1 of 2 places: {said}" in made.words()
    assert any(one.startswith("over all 2 places: kd helps by") for one in made.words())


def test_two_numbers_of_labels_are_no_second_set_of_photos() -> None:
    places = [Place("leaves", labels, "student") for labels in (5, 20, None)]
    runs = [
        judged(place, arm, seed, n) for seed in range(3) for place in places for arm, n in ((ALONE, 30), ("kd", 24))
    ]
    once = [run for run in runs if run.place == places[0]]
    overall = [summed_up(found, (100,), COSTS, {"leaves": Split(3, None)}).overall["kd"] for found in (runs, once)]
    assert overall[0] == pytest.approx(overall[1])


def test_one_seed_has_no_spread() -> None:
    assert "±" not in study(30, 40, 10, seeds=1).markdown().partition("\n")[2].partition("\n\n")[0]
    assert "0.500\u00a0±\u00a00.000" in study(30, 40, 10, seeds=2).markdown()


def test_a_refused_teacher_is_named_and_stands_in_the_rows() -> None:
    runs = [judged(TAUGHT, TEACHER, 0, 5), judged(PLACE, ALONE, 0, 9), judged(PLACE, "kd", 0, 9, "a random head")]
    made = summed_up(runs, (100,), COSTS, {"leaves": Split(3, None)})
    assert any("refused the teacher of 1 of 1 seeds for kd" in said for said in made.cautions())
    lines = csv_of(runs).splitlines()
    assert len(lines) == 4 and lines[3].endswith("a random head") and lines[2].endswith("passed")


@pytest.mark.parametrize(
    ("alone", "distilled", "said"),
    [
        (38, 39, "no arm beats chance at leaves"),
        (38, 0, "the student alone does not beat chance at leaves"),
        (5, 0, ""),
    ],
)
def test_arms_at_chance_are_named(alone: int, distilled: int, said: str) -> None:
    wrong = ((TAUGHT, TEACHER, 0), (PLACE, ALONE, alone), (PLACE, "kd", distilled))
    runs = [judged(place, arm, seed, n) for seed in range(3) for place, arm, n in wrong]
    made = summed_up(runs, (100,), COSTS, {"leaves": Split(3, None)})
    assert [one for one in made.cautions() if "chance at" in one] == (
        [f"{said}, 20 labels a class, student (one answer for all is right in 33%): train longer"] if said else []
    )
    assert "judged on the test photos: 60 of leaves" in made.words()
    assert "60 of leaves" in made.markdown() and "60 of leaves" in made.html([])
    assert made.to_json()["test_photos"] == {"leaves": 60}


def test_a_terminal_of_80_columns_breaks_no_word() -> None:
    full = Place("leaves-of-season-2026", None, "mobilenetv3_small_050")
    few = Place("leaves-of-season-2026", 20, "mobilenetv3_small_050")
    wrong = [(full, ALONE, 30), (few, ALONE, 30), (few, "label smoothing", 24), (few, "kd" + POOL, 6)]
    runs = [judged(place, arm, seed, n) for seed in range(3) for place, arm, n in wrong]
    made = summed_up(runs, (100,), COSTS, {"leaves-of-season-2026": Split(3, None)})
    columns, rows = made.brief()
    assert columns[0] == "place" and rows[1][0] == "20 labels a class", "what all share is left out"
    written = Console(width=80, file=StringIO())
    written.print(console.table("studies/leaves", columns, rows))
    words = {word for row in (columns, *rows) for cell in row for word in cell.split()}
    assert words <= set(written.file.getvalue().split())
    assert study(30, 40, 10).brief()[0][0] == "arm", "of one place the arms alone differ"


def test_the_page_shows_each_arm() -> None:
    made = study(30, 10, 5)
    page = made.html(made.pictures().values())
    assert page.count("<tr>") == 1 + 4 + 1 + 2
    assert "2 of 2 ways of training are better" in page
    assert page.count("<svg") == 3
    assert "kd + unlabelled" in page and "600,000" in page


def test_each_plot_is_a_file_of_its_own(tmp_path: Path) -> None:
    study(30, 10, 5).write(tmp_path)
    plots = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert plots == ["cost_ms_per_image.svg", "cost_size_bytes.svg", "gains.svg"]
    for name in plots:
        root = ElementTree.parse(tmp_path / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 5
    assert {path.name for path in tmp_path.iterdir()} == {*plots, "study.json", "study.md", "study.html"}


def test_all_that_cannot_be_compared_is_said_at_once() -> None:
    data = DataSpec(manifest=Path("none.csv"))
    recipe = Recipe(name="x", data=data, student=NetSpec(timm="a"), method=MethodSpec(name="none"))
    with pytest.raises(InputError) as error:
        require([recipe, recipe], Plan(0, methods=("kdd",)))
    said = str(error.value)
    assert all(part in said for part in ("seeds", "two recipes", "no method 'kdd'", "data.views", "data.size"))


@pytest.fixture
def recipe(tiny_photos: Path) -> Recipe:
    """A pool that is filtered, and a teacher to be taught."""
    pool = PoolSpec(confidence=0.5)
    data = DataSpec(manifest=tiny_photos / "manifest.csv", views=2, size=(32, 32), unlabelled_share=0.5, pool=pool)
    net = NetSpec(timm="test_resnet", input_size=(32, 32))
    return Recipe(name="leaves", data=data, student=net, teachers=(net,), method=MethodSpec(name="kd"))


def refused(recipe: Recipe, plan: Plan) -> str:
    with pytest.raises(InputError) as error:
        require([recipe], plan)
    return str(error.value)


def test_what_a_study_would_find_hours_later_is_refused_at_once(recipe: Recipe, tmp_path: Path) -> None:
    require([recipe], Plan())
    assert "compare teaches one" in refused(recipe.model_copy(update={"teachers": recipe.teachers * 2}), Plan())
    for name in ("byot", "together"):
        own = recipe.model_copy(update={"method": MethodSpec(name=name)})
        assert "needs a method with a teacher to be taught" in refused(own, Plan())
    assert "bounded is for regression" in refused(recipe, Plan(methods=("kd", "bounded")))
    assert "leaves: method: bounded is for" in refused(
        recipe.model_copy(update={"method": MethodSpec(name="bounded")}), Plan()
    )
    assert "timm knows no model 'resnet_typo'" in refused(recipe, Plan(students=("resnet_typo=a.safetensors",)))
    require([recipe], Plan(labels=(2, 20)))  # a val split judges the stages
    manifest = manifests.read(recipe.data.manifest)
    manifests.write(
        Manifest(tuple(row for row in manifest.rows if row.split != "val"), manifest.root), tmp_path / "m.csv"
    )
    data = recipe.data.model_copy(update={"manifest": tmp_path / "m.csv", "root": manifest.root})
    few = refused(recipe.model_copy(update={"data": data}), Plan(labels=(2, 20)))
    assert "2 labels a class are too few to teach with 5 folds" in few


def test_every_arm_is_a_recipe_that_can_be_read_again(recipe: Recipe, tmp_path: Path) -> None:
    own = MethodSpec.model_validate({"name": "byot", "also": [{"name": "kd"}]})
    long = recipe.model_copy(update={"name": "x" * 100, "method": own})
    require([long], Plan())
    cells = students([long], Plan(seeds=1, methods=("byot", "kd", "mean_teacher")), tmp_path)
    arms = ["byot+kd", "byot+kd" + POOL, "kd", "kd" + POOL, "mean_teacher", "mean_teacher" + POOL]
    assert [cell.arm for cell in cells] == [ALONE, SMOOTHED, RANDOM_HEAD, *arms]
    for cell in cells:
        assert Recipe.model_validate(cell.recipe.model_dump()) == cell.recipe
        prepare(cell.recipe)
    assert [cell.learns for cell in cells] == [False] * 3 + [True] * 4 + [False] * 2


def test_wider_labels_stay_within_what_a_recipe_may_say(recipe: Recipe, tmp_path: Path) -> None:
    task = TaskSpec(name="regression", low=0, high=100, sigma=10.0)
    cells = students([recipe.model_copy(update={"task": task})], Plan(seeds=1), tmp_path)
    (wider,) = [cell.recipe for cell in cells if cell.arm == WIDER]
    assert Recipe.model_validate(wider.model_dump()).task.sigma == 16


def test_methods_that_share_no_data_are_not_drawn_against_their_cost() -> None:
    weeds = Place("weeds", 20, "student"), Place("weeds", 20, "big")
    wrong = [(TAUGHT, TEACHER, 5), (PLACE, ALONE, 9), (PLACE, "kd", 8)]
    wrong += [(weeds[1], TEACHER, 5), (weeds[0], ALONE, 9), (weeds[0], "dkd", 8)]
    runs = [judged(place, arm, seed, n) for seed in range(3) for place, arm, n in wrong]
    splits = dict.fromkeys(("leaves", "weeds"), Split(3, None))
    assert not [*summed_up(runs, (100,), COSTS, splits)._trades()]
    assert [name for name, _ in study(9, 8, 5)._trades()] == ["cost_ms_per_image", "cost_size_bytes"]


def test_students_that_cannot_be_are_refused_before_anything_is_taught(recipe: Recipe, tmp_path: Path) -> None:
    both = refused(recipe, Plan(students=("test_resnet=bogus", f"test_resnet={tmp_path / 'missing.safetensors'}")))
    assert "--students test_resnet=bogus" in both and "missing.safetensors: there is no such file" in both
    larger = recipe.model_copy(update={"student": NetSpec(timm="test_resnet", input_size=(64, 64))})
    assert "data.size: is 32 × 32, smaller than a net's input of 64 × 64" in refused(larger, Plan())
    own = recipe.model_copy(update={"student": NetSpec(run=tmp_path)})
    assert "leaves: student: compare trains it anew, and it is a Run" in refused(own, Plan())


def test_no_worker_outlives_a_study_that_was_killed(tmp_path: Path) -> None:
    """It would train on, beside the study that is begun again, into the same folders."""
    (tmp_path / "work.py").write_text(
        "import os, time\n"
        "def work(path):\n"
        "    path.with_suffix('.tmp').write_text(str(os.getpid()))\n"
        "    path.with_suffix('.tmp').rename(path)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "study.py").write_text(
        "import multiprocessing, pathlib, work\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from agrikd.compare import _begin\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _begin) as pool:\n"
        f"        pool.submit(work.work, pathlib.Path({str(tmp_path / 'pid')!r})).result()\n"
    )
    with subprocess.Popen([sys.executable, tmp_path / "study.py"]) as study:
        until((tmp_path / "pid").exists, 120)
        study.kill()
    worker = Path("/proc", (tmp_path / "pid").read_text())
    until(lambda: not worker.exists() or "\nState:\tZ" in (worker / "status").read_text(), 20)
