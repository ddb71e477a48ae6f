"""What a folder of Runs says: which there are, how far, what they are worth, how they differ; and its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_kit import SPEC
from streamlit.testing.v1 import AppTest

from agrikd import files, gallery, records, site
from agrikd.access import Visitor
from agrikd.device.station import RECORDS
from agrikd.errors import InputError
from agrikd.gallery import charts, judged, runs
from agrikd.gallery.log import POINTS, Log, Series, last_step, thinned
from agrikd.gallery.texts import breaking, lasting, literal, shown
from agrikd.recipe import parse
from agrikd.run import Run
from agrikd.types import Calibration

NOW = 1_800_000_000.0
CLASSES = ["rust", "healthy"]
HOSTILE = "<img src=x onerror=alert(1)> ![i](http://evil/x) `$a$` | \"'" + "x" * 300
REPORT = {
    "model": "m",
    "backend": "torch",
    "data_digest": "d",
    "split": "test",
    "rows": 10,
    "classes": CLASSES,
    "accuracy": {"value": 0.7, "low": 0.4, "high": 0.9},
    "macro_f1": {"value": 0.68, "low": 0.4, "high": 0.8},
    "nll": 0.5,
    "ece": 0.1,
    "brier": 0.4,
    "kl": None,
    "agreement": None,
    "worst": [],
    "per_class": [],
    "confusion": [[4, 1], [2, 3]],
    "reliability": [[0.6, 0.5, 4], [0.9, 0.8, 6]],
    "decisions": {"answered": 0.0, "risk": 0.0, "covered": 0.9, "set_size": 1.5},
    "refusals": {"plants": 10, "plants_refused": 1, "others": 4, "others_refused": 3},
    "parameters": 5,
    "size_bytes": 20,
    "ms_per_image": 1.5,
    "teacher": None,
}


def made(folder: Path, lines: int = 3, steps: int = 30, **changes: Any) -> Run:
    """A Run of 10 steps a line, still without weights."""
    raw = {"name": "leaf", "data": {"manifest": "m.csv"}, "student": {"timm": "tiny_net"}, "optim": {"steps": steps}}
    run = Run.start(folder, parse({**raw, **changes}, "test"), {"classes": CLASSES, "data_digest": "d"}, resume=False)
    for number in range(1, lines + 1):
        run.log({"step": 10 * number, "lr": 0.1, "loss": 3 / number, "task": 3 / number})
    aged(run, 5)
    return run


def aged(run: Run, seconds: float) -> None:
    for path in run.folder.iterdir():
        os.utime(path, (NOW - seconds, NOW - seconds))


def only(root: Path) -> runs.Summary:
    found, wrong = runs.find(root, NOW)
    assert not wrong
    return found[0]


# Which there are


def test_runs_are_found_two_folders_deep_and_the_newest_is_first(tmp_path: Path) -> None:
    for age, place in ((300, "old"), (100, "study/new"), (200, "middle")):
        aged(made(tmp_path / place), age)
    made(tmp_path / "a" / "b" / "too deep")
    made(tmp_path / ".hidden")
    found, wrong = runs.find(tmp_path, NOW)
    assert [str(one.run.folder.relative_to(tmp_path)) for one in found] == ["study/new", "middle", "old"]
    assert len(wrong) == 1 and "/a: is no Run: it has no recipe.yaml" in wrong[0]
    assert only(tmp_path / "old").run.recipe.name == "leaf", "a Run itself may be named too"


def test_what_is_damaged_is_named_and_the_others_still_speak(tmp_path: Path) -> None:
    made(tmp_path / "good")
    deep = "name: " + "[" * 2000
    aliases = "a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n"
    for name, recipe in {"yaml": "name: [", "deep": deep, "bomb": aliases, "huge": "#" * 70_000, "not": "\xff"}.items():
        made(tmp_path / name)
        (tmp_path / name / "recipe.yaml").write_text(recipe, encoding="latin-1")
    for name, text in {"half": '{"a', "list": "[]", "nested": "[" * 100_000}.items():
        made(tmp_path / f"json-{name}")
        (tmp_path / f"json-{name}" / "run.json").write_text(text)
    (tmp_path / "other").mkdir()
    found, wrong = runs.find(tmp_path, NOW)
    assert {one.run.folder.name: len(one.wrong) for one in found} == {
        "good": 0,
        "json-half": 1,
        "json-list": 1,
        "json-nested": 1,
    }
    assert len(wrong) == 6 and all(str(tmp_path) in one for one in wrong)
    with pytest.raises(InputError, match="is no folder of Runs"):
        runs.find(tmp_path / "none", NOW)


def test_no_more_runs_than_a_screen_can_bear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        made(tmp_path / str(number), lines=0)
    monkeypatch.setattr(runs, "MOST_RUNS", 3)
    assert len(runs.find(tmp_path, NOW)[0]) == 3


def test_how_far_a_run_is(tmp_path: Path) -> None:
    def state(run: Run) -> str:
        return runs.state(run, NOW)

    assert state(made(tmp_path / "a", lines=0)) == "begun"
    run = made(tmp_path / "b")
    assert state(run) == "training"
    aged(run, 601)
    assert state(run) == "interrupted"
    (run.folder / "non_finite_batch_30.pt").touch()
    aged(run, 601)
    assert state(run) == "stopped"
    run.weights.touch()
    assert state(run) == "finished"
    refused = made(tmp_path / "c", lines=0)
    asked = [[{"name": "above chance", "answer": "no", "why": HOSTILE}]]
    files.write_json(refused.folder / "gate.json", {"teachers": asked, "passed": False, "override": None})
    assert state(refused) == "refused" and runs.gate(refused)[0][:2] == ("above chance", "no")
    files.write_json(refused.folder / "gate.json", {"teachers": asked})
    with pytest.raises(InputError, match="no verdict of the gate"):
        state(refused)


def test_a_line_of_the_list_says_what_the_files_say(tmp_path: Path) -> None:
    run = made(tmp_path / "r", teachers=[{"run": "runs/big"}], method={"name": "kd", "also": [{"name": "rkd"}]})
    one = only(tmp_path)
    assert (one.step, one.steps, one.method, one.teacher) == (30, 30, "kd, rkd", "big")
    assert one.calibration is None and one.judged == ()
    run.write_calibration(Calibration(1.5, 0.6, 0.1, 0.9, 0.9, None, 0.95, 80, "val"))
    files.write_json(run.folder / "report_test.json", REPORT)
    assert only(tmp_path).calibration is not None and only(tmp_path).judged[0].figures["accuracy"] == (0.7, 0.4, 0.9)
    run.amend(stages=[{"stage": "probe", "kept": True}])
    assert (only(tmp_path).method, only(tmp_path).steps) == ("teach", None)


# What they are worth


def test_a_report_is_read_as_it_stands(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    for split in ("val", "test"):
        files.write_json(run.folder / f"report_{split}.json", {**REPORT, "split": split})
    (one, other), wrong = judged.judgements(run, run.record())
    assert not wrong and (one.split, other.split) == ("test", "val")
    assert one.confusions == [("healthy", "rust", 2, 5), ("rust", "healthy", 1, 5)]
    assert one.figures["others_refused"].value == 0.75 and one.figures["plants_refused"].value == 0.1
    assert "risk" not in one.figures, "of no answers none is wrong, which is no praise"
    assert charts.confusion(one, CLASSES, "truth", "said").to_dict()["layer"][1]["mark"]["type"] == "text"
    assert charts.reliability(one, "a", "b", "c").to_dict()


def test_a_report_of_numbers_is_read_too(tmp_path: Path) -> None:
    points = [{"path": "p", "truth": 2.0, "said": 3.0, "interval": [1, 4]}, {"path": "q", "truth": 5, "said": 5}]
    estimate = {"value": 0.5, "low": 0.1, "high": 0.9}
    said = {"split": "test", "rows": 2, "scale": {"unit": "%"}, "mae": estimate, "bias": 0.5, "points": points}
    run = made(tmp_path / "r")
    files.write_json(run.folder / "report_test.json", said)
    found = judged.judgements(run, {})[0][0]
    assert found.figures == {"mae": (0.5, 0.1, 0.9), "bias": (0.5, None, None)} and found.unit == "%"
    assert found.points == ((2, 3, 1, 4), (5, 5, None, None)) and charts.scatter(found, "t", "s").to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": [[1]]},
        {"confusion": [[-1, 1], [1, 1]]},
        {"reliability": [[0.5, float("nan"), 3]]},
        {"reliability": [[0.5, 0.5, 0]]},
        {"accuracy": 3},
        {"rows": "many"},
        {"decisions": [1]},
        {"classes": None},
    ],
)
def test_a_report_that_is_none_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    run = made(tmp_path / "r")
    (run.folder / "report_test.json").write_text(json.dumps({**REPORT, **change}))
    found, wrong = judged.judgements(run, {})
    assert not found and "report_test.json: is no report" in wrong[0]


def test_held_out_predictions_are_judged(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    run.write_held_out(np.array([0, 0, 1, 1]), np.array([[9, 0], [0, 9], [0, 9], [0, 9]], np.float32))
    (found,), wrong = judged.judgements(run, run.record())
    assert not wrong and found.split == judged.HELD_OUT and found.confusion == ((1, 1), (0, 2))
    assert found.figures["accuracy"].value == 0.75
    assert "no predictions" in judged.judgements(run, {"classes": ["one"]})[1][0]
    (run.folder / "held_out.npz").write_bytes(b"PK")
    assert "damaged" in judged.judgements(run, run.record())[1][0]


# Its log


def test_a_series_keeps_its_ends_and_is_evenly_taken() -> None:
    series = Series()
    for step in range(100_003):
        series.add(step, -step)
    points = series.points
    assert POINTS / 2 <= len(points) <= POINTS and points[0] == (0, 0) and points[-1] == (100_002, -100_002)
    assert len({b[0] - a[0] for a, b in pairwise(points[:-1])}) == 1
    few = thinned(points, 7)
    assert len(few) == 7 and (few[0], few[-1]) == (points[0], points[-1])


def test_a_log_is_followed_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    log.read()
    assert (log.step, log.steps_per_s) == (0, None) and last_step(path) is None
    with path.open("a") as out:
        for number, text in enumerate(('{"step": 10, "loss": 2}\n{"step": 20, "lo', 'ss": 1}\n[3]\n', "{}\n")):
            out.write(text)
            out.flush()
            os.utime(path, (NOW + 5 * number, NOW + 5 * number))
            log.read()
    assert log.series["loss"].points == [(10, 2), (20, 1)] and (log.step, log.broken, log.behind) == (20, 2, 0)
    assert log.steps_per_s == 2 and log.seconds_left(30) == 5 and last_step(path) == 20
    files.write_text(path, '{"step": 10, "loss": 7}\n')
    log.read()
    assert log.series["loss"].points == [(10, 7)] and log.broken == 0, "a resumed training begins the file anew"


def test_a_log_takes_no_more_than_it_can_bear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agrikd.gallery.log._AT_ONCE_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    names = {f"figure {number}": number for number in range(40)}
    odd = {"x" * 61: 1, "\n": 1, "nan": float("nan"), "word": "a"}
    path.write_text("x" * 5000 + "\n" + json.dumps({"step": 1, **names}) + "\n" + json.dumps({"step": 2}) + "\n")
    log = Log(path)
    while not log.changed or log.behind:
        log.read()
    assert len(log.series) == 32 and log.step == 2 and log.broken
    files.write_text(path, json.dumps({"step": 3, **odd}) + "\n")
    log.read()
    assert not log.series and log.step == 3
    files.write_text(path, json.dumps({"step": 4, "huge": 10**400}) + "\n" + "[" * 100 + "\n" * 20)
    log.read()
    assert log.step == 0 and log.broken == 21


def test_a_real_training_is_seen_while_it_goes_on(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrikd import train

    monkeypatch.setattr(train, "_LOG_EVERY", 1)
    log, seen, write = Log(tmp_path / "live" / "metrics.jsonl"), [], Run.log

    def looked(run: Run, entry: dict[str, float]) -> None:
        write(run, entry)
        log.read()
        one = runs.find(tmp_path, time.time())[0][0]
        seen.append((log.step, one.state, one.step, one.steps))

    monkeypatch.setattr(Run, "log", looked)
    train.fit(parse(tiny(), "tiny"), tmp_path / "live")
    assert seen == [(step, "training", step, 6) for step in range(1, 7)]
    losses, measured = log.panels()
    assert losses.keys() == {"loss"} and [step for step, _ in measured["val_mistake"]] == [2, 4, 6]
    assert runs.find(tmp_path, time.time())[0][0].state == "finished"


# Two of them


def test_only_keys_that_differ_are_told(tmp_path: Path) -> None:
    one = made(tmp_path / "one", seed=1, student={"timm": "a", "kwargs": {"deep": [1, {"x": HOSTILE}]}})
    other = made(tmp_path / "other", teachers=[{"timm": "big"}], student={"timm": "a"})
    told = {key: (mine, its) for key, mine, its in runs.differences(one.recipe, other.recipe)}
    assert told["seed"] == ("1", "0") and told["teachers.1.timm"] == ("", "big")
    assert "student.timm" not in told and told["student.kwargs.deep.1"] == ("1", "")
    assert len(told["student.kwargs.deep.2.x"][0]) == 200
    assert not runs.differences(one.recipe, one.recipe)


def test_why_two_runs_are_not_comparable(tmp_path: Path) -> None:
    def summary(name: str, record: dict[str, Any] | None = None, report: Any = REPORT, **changes: Any) -> runs.Summary:
        run = made(tmp_path / name, **changes)
        run.amend(**record or {})
        files.write_json(run.folder / f"report_{report['split']}.json", report)
        return runs.summary(run, NOW)

    def data(**settings: Any) -> dict[str, Any]:
        return {"manifest": "m.csv", **settings}

    plain = summary("plain")
    assert runs.obstacles(plain, summary("same", seed=5)) == []
    assert runs.obstacles(plain, summary("photos", {"data_digest": "e"})) == ["photos"]
    assert runs.obstacles(plain, summary("classes", {"classes": ["rust", "scab"]})) == ["task"]
    few, others = (summary(f"few{seed}", data=data(labels_per_class=4, subset_seed=seed)) for seed in (0, 1))
    assert runs.obstacles(plain, few) == ["labels"] == runs.obstacles(few, others)
    assert runs.obstacles(plain, summary("split", report={**REPORT, "split": "val"})) == ["split"]
    assert runs.obstacles(plain, summary("rows", report={**REPORT, "confusion": [[3, 1], [3, 3]]})) == ["rows"]
    scale = {"name": "regression", "low": 0, "high": 5}
    assert "task" in runs.obstacles(plain, summary("numbers", task=scale))


def test_curves_of_two_runs_differ_not_by_colour_alone() -> None:
    drawn = charts.curves({"A: x": [(1, 2), (2, 1)], "A: x ": [(1, 2)], HOSTILE: []}, "step", "loss").to_dict()
    dash = drawn["layer"][0]["encoding"]["strokeDash"]["scale"]
    assert len({tuple(one) for one in dash["range"]}) == 3 and len(dash["domain"]) == 3
    twice = charts._distinct(["a", "b", "a"])
    assert len(set(twice)) == 3


def test_texts_of_others_are_harmless() -> None:
    assert literal("a_b<c> :red[x]") == "a\\_b\\<c\\> \\:red\\[x\\]" and shown("a\n\0b\ud800") == "a b?"
    assert len(shown(HOSTILE)) == 200 and breaking("a/b") == "a\\/\u200bb"
    assert (lasting(7), lasting(125), lasting(12_000)) == ("7 s", "2 min 05 s", "3 h 20 min")


def test_nothing_here_needs_torch() -> None:
    code = "import sys, agrikd.gallery.runs, agrikd.gallery.charts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_runs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gallery.RUNS, raising=False)
    assert gallery.folder(tmp_path / "field") == tmp_path.resolve() / "runs"
    monkeypatch.setenv(gallery.RUNS, "/elsewhere")
    assert gallery.folder(tmp_path) == Path("/elsewhere")


def test_reports_lie_in_a_run_or_beside_it_and_are_no_links(tmp_path: Path) -> None:
    run = made(tmp_path / "runs" / "r")
    for place in (run.folder / "report.html", tmp_path / "report.html", tmp_path / "runs" / "report-2.html"):
        place.write_text("<script>alert(1)</script>")
    (run.folder / "report_link.html").symlink_to("/etc/passwd")
    found = [path.relative_to(tmp_path) for path in runs.reports(run, tmp_path / "runs")]
    assert list(map(str, found)) == ["runs/r/report.html", "runs/report-2.html", "report.html"]


# The page


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AppTest]:
    monkeypatch.setenv(site.FIELD, str(tmp_path / "field"))
    monkeypatch.setenv(gallery.RUNS, str(tmp_path / "runs"))
    monkeypatch.setattr("agrikd.site.visitor", lambda: Visitor("Ana", "viewer"))

    def opened() -> AppTest:
        app = AppTest.from_file(str(site.pages() / "main.py"), default_timeout=60).run()
        return app.switch_page("app_pages/models.py").run()

    return opened


def look(app: AppTest, view: str) -> AppTest:
    app.segmented_control[0].set_value(view).run()
    assert not app.exception and not app.error
    return app


def test_the_page_without_runs_says_so(page: Callable[[], AppTest], tmp_path: Path) -> None:
    assert "is no folder of Runs" in page().warning[0].value.replace("\\", "")
    (tmp_path / "runs").mkdir()
    app = page()
    assert not app.exception and "agrikd demo" in app.info[0].value


def test_the_page_shows_the_cards_of_what_serves(page: Callable[[], AppTest], tmp_path: Path) -> None:
    """As they are written, whatever they hold."""
    release = tmp_path / "field" / "releases" / "2-abc"
    files.write_text(release / "card.md", "# Leaf\n<img src=x onerror=alert(1)> [a](b)")
    (tmp_path / "field" / "current").symlink_to(release)
    app = page()
    assert not app.exception and [one.value for one in app.code] == ["# Leaf\n<img src=x onerror=alert(1)> [a](b)"]
    assert "2" in app.expander[-1].label and "abc" in app.expander[-1].label


def test_the_page_shows_all_of_a_run_and_its_neighbour(page: Callable[[], AppTest], tmp_path: Path) -> None:
    with records.create(tmp_path / "field" / RECORDS) as db:
        records.add_model(db, HOSTILE, "student", SPEC)
    for name in ("one", "two"):
        run = made(tmp_path / "runs" / name, seed=len(name))
        run.weights.write_bytes(b"weights")
        files.write_json(run.folder / "report_test.json", REPORT)
    app = page()
    assert not app.exception and len(app.dataframe[0].value) == 2
    columns = ["Run", "State", "Accuracy", "macro-F1", "Judged on", "Method", "Teacher", "Calibrated", "Last written"]
    assert list(app.dataframe[0].value) == columns, "what a window of 1280 pixels holds"
    assert app.table[0].value.iloc[0].tolist()[1:] == ["70.0%", "40.0% – 90.0%"]
    assert "healthy is called rust in 2 of 5 photos" in app.markdown[0].value
    assert app.table[-1].value.iloc[0, 0] == literal(HOSTILE)
    assert len(look(app, "training").get("vega_lite_chart")) == 1
    assert "can be compared" in look(app, "beside").success[0].value
    assert app.code == [] and look(app, "facts").code[0].value == files.sha256(b"weights")
    assert "tiny_net" in look(app, "recipe").code[0].value


def test_hostile_names_and_damage_do_no_harm(page: Callable[[], AppTest], tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "runs") + b"/<b>\xff ![i](http:e)"
    run = made(Path(os.fsdecode(root)), student={"timm": HOSTILE, "kwargs": {HOSTILE: HOSTILE}})
    run.amend(classes=[HOSTILE, "b"], versions={HOSTILE: [HOSTILE]}, stages=[{"stage": HOSTILE}, 3], test_readings={})
    files.write_json(run.folder / "report_test.json", {**REPORT, "classes": [HOSTILE, "b"], "split": HOSTILE})
    made(tmp_path / "runs" / "two").metrics.write_text("broken\n" * 3)
    (tmp_path / "runs" / "<script>").mkdir()
    app = page()
    for view in ("quality", "training", "beside", "facts", "recipe"):
        look(app, view)
        read_as_markdown = [*app.markdown, *app.caption, *app.warning, *app.info, *app.subheader]
        cells = [str(cell) for table in app.table for cell in table.value.to_numpy().ravel()]
        said = [*(one.value for one in read_as_markdown), *cells]
        assert not [text for text in said if re.search(r"(?<!\\)[<`$]|(?<!\\)!\[", text)]
    assert "is no Run" in app.warning[0].value


def test_a_run_that_goes_on_shows_how_fast(
    page: Callable[[], AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    run = made(tmp_path / "runs" / "live", lines=1, steps=100)
    app = page()
    assert [one.value for one in app.metric] == ["10 / 100", "…", "…", "5 s"]
    run.log({"step": 20, "loss": 1.0})
    os.utime(run.metrics, (NOW, NOW))
    app.run()
    assert [one.value for one in app.metric] == ["20 / 100", "2", "40 s", "0 s"]
    run.weights.touch()
    assert not app.run().metric and not app.exception
