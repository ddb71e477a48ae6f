"""The queue, what people say, and the photos that come of it; in the page as somebody presses its buttons."""

from __future__ import annotations

import contextlib
import csv
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button
from typer.testing import CliRunner

from agrikd import audit, files, jobs, kept, records, review, sheets, site
from agrikd.access import Visitor
from agrikd.cli import app
from agrikd.data import manifest as manifests
from agrikd.errors import DeviceError, InputError, Problem
from agrikd.records import CHOSEN, LIVE, NOT_A_PLANT, REVIEW, UNSURE, WITHDRAWN, Label, Opinion, Place, Seen
from agrikd.types import ModelSpec

CLASSES = ("<b>rust</b>", "healthy", "=cmd|' /C calc'!A0")
SPEC = ModelSpec("leaf", "classification", CLASSES, (8, 8))
DAY_S = 86_400.0


def opinion(model: str, top: int, *, unsure: bool = False, unknown: bool = False) -> Opinion:
    shares = [0.1, 0.1, 0.1]
    shares[top] = 0.8
    role: Any = "student" if model == "small" else "teacher"
    return Opinion(model, role, 1.0, 1.0, top, tuple(shares), (top,), unsure, unknown)


def add(db: sqlite3.Connection, folder: Path, frame: int, *said: Opinion, audit: float | None = None) -> None:
    """A frame with a picture of its own, ten a session, a session a day."""
    t = 1.8e9 + DAY_S * (frame // 10) + frame
    records.add_frame(db, Seen(frame, t, "row-7", Place("north", "7"), audit=audit))
    for one in said:
        records.add_opinion(db, frame, one)
    pixels = np.random.default_rng(frame).integers(0, 255, (32, 32, 3), np.uint8)
    data = bytes(cv2.imencode(".jpg", pixels)[1])
    files.write_bytes(folder / "pictures" / f"{frame}.jpg", data)
    records.add_picture(db, frame, "doubt", (f"pictures/{frame}.jpg", len(data), files.sha256(data)))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    folder = tmp_path / "field" / "records"
    with contextlib.closing(records.create(folder)) as made:
        made.row_factory = sqlite3.Row
        records.add_model(made, "small", "student", SPEC)
        records.add_model(made, "large", "teacher", SPEC)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "field" / "records"


def say(db: sqlite3.Connection, frame: int, label: str, who: str = "Ana") -> None:
    number = db.execute("SELECT count(*) FROM labels").fetchone()[0]
    records.add_label(db, Label(f"click-{number:03d}", frame, label, who, 2.0, REVIEW, '"note", ☘'))


def take_back(db: sqlite3.Connection, frame: int, key: str) -> None:
    number = db.execute("SELECT count(*) FROM labels").fetchone()[0]
    records.add_label(db, Label(f"click-{number:03d}", frame, WITHDRAWN, "Ana", 2.0, REVIEW, key))


def test_the_last_word_counts_unless_it_is_taken_back(db: sqlite3.Connection, folder: Path) -> None:
    for frame in range(1, 8):
        add(db, folder, frame, opinion("small", 0))
    for frame, label, who in [
        *[(1, "healthy", "Ana"), (1, UNSURE, "Jo"), (2, UNSURE, "Ana"), (3, "healthy", "Ana")],
        *[(4, "healthy", "Ana"), (4, CLASSES[0], "Jo"), (5, "healthy", "Ana")],
        *[(6, "healthy", "Ana"), (6, CLASSES[0], "Jo"), (6, UNSURE, "Jo"), (7, "healthy", "Ana"), (7, UNSURE, "Ana")],
    ]:
        say(db, frame, label, who)
    take_back(db, 3, "click-003")
    take_back(db, 4, "click-004")  # Ana's; what Jo said after her stands
    take_back(db, 5, "another")
    found = {frame: one.label for frame, one in records.verdicts(db).items()}
    assert found == {1: "healthy", 2: UNSURE, 4: CLASSES[0], 5: "healthy", 6: "healthy", 7: UNSURE}
    take_back(db, 7, "click-011")
    assert records.verdicts(db)[7].label == "healthy"
    assert records.verdicts(db, without=(REVIEW,)) == {}


def test_the_queue_takes_turns_and_hides_nothing(db: sqlite3.Connection, folder: Path) -> None:
    for frame in range(1, 6):
        add(db, folder, frame, opinion("small", 0), opinion("large", 1))  # disagreement
        add(db, folder, frame + 10, opinion("small", 0, unsure=True))  # doubt
        add(db, folder, frame + 20, opinion("small", 0, unknown=True))  # not a plant
        add(db, folder, frame + 30, opinion("small", 0, unsure=True), opinion("large", 1), audit=0.01)  # random
        add(db, folder, frame + 40, opinion("small", 0), opinion("large", 0))  # nothing to ask
    found = review.queue(db)
    kinds = [review.kind_of(one) for one in found]
    assert kinds[:8] == ["doubt", "not a plant", "doubt", "random"] * 2
    assert sorted(one.frame for one in found) == [f + t for t in (0, 10, 20, 30) for f in range(1, 6)]
    assert [one.frame for one in found if review.kind_of(one) == "doubt"] == [15, 14, 13, 12, 11]
    drawn = [one.frame for one in found if one.drawn]
    assert drawn not in (sorted(drawn), sorted(drawn, reverse=True))
    say(db, 35, "healthy")
    assert [one.frame for one in review.queue(db, ["random"])] == [one for one in drawn if one != 35]
    assert len(review.queue(db, most=3)) == 3
    assert 15 not in [one.frame for one in review.queue(db, skipped={15})]
    frame = next(one for one in drawn if one != 35)  # stopped in the live view: it is asked about all the same, blind
    records.add_label(db, Label("click-live", frame, "healthy", "Jo", 2.0, LIVE))
    assert frame in [one.frame for one in review.queue(db, ["random"])]
    one = kept.of_frame(db, 1)
    assert one and one.student and one.teacher and (one.student.said, one.teacher.said) == CLASSES[:2]
    assert kept.of_frame(db, 999) is None


def test_what_was_drawn_at_random_is_asked_about_whenever_it_was(db: sqlite3.Connection, folder: Path) -> None:
    """The newest are no random part of a season: the field's share is told from what is asked about."""
    for frame in range(400):
        add(db, folder, frame, opinion("small", 0), audit=0.01)
    asked = [one.frame for one in review.queue(db, most=40)]
    assert len(asked) == 40
    assert min(asked) < 60 and max(asked) > 340 and 8 <= sum(frame < 200 for frame in asked) <= 32
    for frame in asked:
        say(db, frame, "healthy")
    more = [one.frame for one in review.queue(db, most=400)]
    assert sorted(asked + more) == list(range(400))


def test_labels_become_photos_whose_sessions_stay_together(
    db: sqlite3.Connection, folder: Path, tmp_path: Path
) -> None:
    """Thirty sessions; some frames unsure, some no plant, one whose picture is gone, two that were damaged since."""
    rng, said = np.random.default_rng(0), {}
    for frame in range(300):
        add(db, folder, frame, opinion("small", 0))
        label = [*CLASSES, UNSURE, NOT_A_PLANT][rng.choice(5, p=(0.4, 0.3, 0.2, 0.05, 0.05))]
        said[frame] = str(label)
        say(db, frame, said[frame])
    lost = [f for f, label in said.items() if label in CLASSES][:3]
    (folder / "pictures" / f"{lost[0]}.jpg").unlink()
    (folder / "pictures" / f"{lost[1]}.jpg").write_bytes(b"")
    (folder / "pictures" / f"{lost[2]}.jpg").write_bytes((folder / "pictures" / "299.jpg").read_bytes())
    made = review.export(db, folder, tmp_path / "out")
    numbers = ", ".join(map(str, lost))
    assert made.gone == tuple(lost)
    assert made.assumptions[0] == f"left out 3 pictures that are gone, or not what was labelled: frames {numbers}"
    manifest = manifests.read(made.manifest)
    want = {f: label for f, label in said.items() if label in CLASSES and f not in lost}
    assert {int(row.path[-13:-4]): row.target for row in manifest.rows if row.target != NOT_A_PLANT} == want
    strange = [row for row in manifest.rows if row.target == NOT_A_PLANT]
    left = sum(label == NOT_A_PLANT for label in said.values()) - len(strange)
    assert strange and left and made.assumptions[1].startswith(f"left out {left} pictures of no plant")
    train = sum(row.split == "train" for row in manifest.rows) / len(want)
    assert 0.6 < train < 0.8, "one picture of no plant does not take its day out of training"
    splits: dict[str, set[str]] = {}
    for place, row in enumerate(manifest.rows):
        splits.setdefault(row.group, set()).add(row.split)
        assert files.sha256(manifest.file(place).read_bytes()) == row.sha256 and row.season == "2027"
    assert len(splits) == 30 and all(len(one) == 1 for one in splits.values())
    assert {one for names in splits.values() for one in names} == {"train", "val", "test"}
    with (tmp_path / "out" / "labels.csv").open(newline="") as held:
        rows = list(csv.DictReader(held))
    assert len(rows) == 300 and {int(row["frame"]): row["label"].removeprefix("'") for row in rows} == said
    with pytest.raises(InputError):
        review.export(db, folder, tmp_path / "out")


def test_one_session_trains_and_that_is_said(db: sqlite3.Connection, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled photo"):
        review.export(db, folder, tmp_path / "nothing")
    for frame, label in enumerate(("healthy", CLASSES[0], NOT_A_PLANT)):
        add(db, folder, frame, opinion("small", 0))
        say(db, frame, label)
    made = review.export(db, folder, tmp_path / "out")
    assert {row.split for row in made.rows} == {"train"} and len(made.rows) == 2
    assert "too few days of capture" in made.assumptions[0] and "1 pictures of no plant" in made.assumptions[1]


def copy_of(db: sqlite3.Connection, folder: Path, frame: int, other: int) -> None:
    """The picture of a frame becomes that of another, as a camera gives it that shows one file again and again."""
    data = (folder / "pictures" / f"{other}.jpg").read_bytes()
    (folder / "pictures" / f"{frame}.jpg").write_bytes(data)
    db.execute("UPDATE pictures SET sha256 = ? WHERE frame = ?", (files.sha256(data), frame))


def test_equal_pictures_are_asked_about_once(db: sqlite3.Connection, folder: Path) -> None:
    for frame in range(1, 5):
        add(db, folder, frame, opinion("small", 0, unsure=True))
    add(db, folder, 5, opinion("small", 0), audit=0.1)
    add(db, folder, 6, opinion("small", 0), audit=0.1)
    copy_of(db, folder, 3, 1)
    copy_of(db, folder, 6, 5)
    assert sorted(one.frame for one in review.queue(db)) == [2, 3, 4, 6]
    assert sorted(one.frame for one in review.queue(db, skipped={3})) == [2, 4, 6]
    one = kept.of_frame(db, 1)
    say(db, 3, "healthy")
    assert one and not review.waits(db, one)
    assert sorted(one.frame for one in review.queue(db)) == [2, 4, 6]
    copy_of(db, folder, 5, 4)
    copy_of(db, folder, 6, 4)
    say(db, 4, "healthy")  # of a frame that was not drawn: those which were stay a random part
    assert sorted(one.frame for one in review.queue(db)) == [2, 6]


def test_equal_pictures_with_two_labels_are_left_out_and_said(
    db: sqlite3.Connection, folder: Path, tmp_path: Path
) -> None:
    for frame in range(1, 8):
        add(db, folder, frame, opinion("small", 0))
        say(db, frame, "healthy" if frame % 2 else CLASSES[0])
    copy_of(db, folder, 4, 1)
    copy_of(db, folder, 5, 3)
    made = review.export(db, folder, tmp_path / "out")
    assert [int(row.path[-13:-4]) for row in made.rows] == [2, 3, 6, 7]
    assert "left out 1 copies" in made.assumptions[0]
    assert f"(frame 1 is healthy, frame 4 is {CLASSES[0]})" in made.assumptions[1]
    assert len(manifests.read(made.manifest).rows) == 4 == len(list((tmp_path / "out" / "photos").iterdir()))


def test_an_export_that_fails_leaves_nothing(
    db: sqlite3.Connection, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for frame, label in enumerate(("healthy", CLASSES[0])):
        add(db, folder, frame, opinion("small", 0))
        say(db, frame, label)
    (tmp_path / "empty").mkdir()

    def fail(*_: Any) -> None:
        raise InputError(Problem("here", "is wrong"))

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "write", fail)
        for name in ("out", "empty"):
            with pytest.raises(InputError):
                review.export(db, folder, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "field"]
    assert not any((tmp_path / "empty").iterdir())
    assert review.export(db, folder, tmp_path / "empty").manifest.exists()


def test_the_export_leads_on_to_training(db: sqlite3.Connection, folder: Path, tmp_path: Path) -> None:
    for frame, label in enumerate(("healthy", CLASSES[0])):
        add(db, folder, frame, opinion("small", 0))
        say(db, frame, label)
    done = CliRunner().invoke(app, ["data", "from-field", str(folder.parent), "--out", str(tmp_path / "2027")])
    recipe = tmp_path / "2027" / "recipe.yaml"
    assert done.exit_code == 0 and f"next: agrikd teach {recipe}" in " ".join(done.stderr.split())
    loaded = jobs.load(recipe)
    assert loaded.name == "2027" and jobs.open_manifest(loaded).classes == (CLASSES[0], "healthy")
    assert f"agrikd distill {recipe} --teacher {tmp_path}/2027/runs/2027-teacher" in recipe.read_text()


@pytest.mark.parametrize("damaged", [b"", b"no database" * 1000])
def test_records_that_are_damaged_are_said(tmp_path: Path, damaged: bytes) -> None:
    files.write_bytes(tmp_path / "field" / "records" / records.DATABASE, damaged)
    done = CliRunner().invoke(app, ["data", "from-field", str(tmp_path / "field"), "--out", str(tmp_path / "2027")])
    assert done.exit_code == InputError.exit_code and "records.db: cannot be read" in " ".join(done.stderr.split())
    assert not (tmp_path / "2027").exists()


def test_a_spreadsheet_gets_no_formula() -> None:
    rows = [{"a": "=1+1", "b": -5}, {"a": "@x", "b": 'say "no", please\n'}, {"a": "fine", "b": "\tx"}]
    text = sheets.as_csv(("a", "b"), rows)
    assert list(csv.reader(text.splitlines(keepends=True))) == [
        ["a", "b"],
        ["'=1+1", "-5"],
        ["'@x", 'say "no", please\n'],
        ["fine", "'\tx"],
    ]


# The page


@pytest.fixture
def page(db: sqlite3.Connection, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    """Of a reviewer, over three doubtful frames; what he says goes to the records, as an agent writes it."""
    for frame in (1, 2, 3):
        add(db, folder, frame, opinion("small", 0, unsure=True), opinion("large", 0))

    def call(_: site.Field, method: str, path: str, body: Any = b"") -> None:
        assert (method, path) == ("POST", "/label")
        records.add_label(db, Label(**body, t=2.0))  # as the agent does

    monkeypatch.setattr(site.Field, "call", call)
    monkeypatch.setenv(site.FIELD, str(folder.parent))
    monkeypatch.setattr(site, "visitor", lambda: Visitor("Ana", "reviewer"))
    made = AppTest.from_file(str(site.pages() / "main.py"), default_timeout=30).run()
    yield made.switch_page("app_pages/review.py").run()


def button(page: AppTest, label: str) -> Button:
    return next(one for one in page.button if one.label == site.literal(label))


def press(page: AppTest, label: str) -> AppTest:
    button(page, label).click()
    page.run()
    assert not page.exception, page.exception
    return page


def test_the_page_judges_undoes_and_skips(page: AppTest, db: sqlite3.Connection) -> None:
    assert not page.exception and page.text[0].value == "0 judged now, 3 more in this round"
    press(page, CLASSES[0])
    press(page, "Not a plant")
    assert {f: one.label for f, one in records.verdicts(db).items()} == {3: CLASSES[0], 2: NOT_A_PLANT}
    press(page, "Undo")
    assert {f: one.label for f, one in records.verdicts(db).items()} == {3: CLASSES[0]}
    assert page.text[0].value == "1 judged now, 2 more in this round"
    press(page, "I cannot tell")
    said = records.verdicts(db)
    press(page, "Skip")
    assert "Nothing else waits" in page.info[0].value and "skipped" in page.info[0].value
    press(page, "Undo")
    assert records.verdicts(db) == said and page.text[0].value == "2 judged now, 1 more in this round"
    press(page, "healthy")
    assert "Nothing waits" in page.info[0].value and records.verdicts(db)[1].label == "healthy"
    assert {(one.who, one.source) for one in records.verdicts(db).values()} == {("Ana", REVIEW)}


def test_a_judged_frame_is_opened_by_its_number(page: AppTest, db: sqlite3.Connection) -> None:
    press(page, CLASSES[0])
    page.number_input[0].set_value(3).run()
    assert not page.exception and f"Said before: {CLASSES[0]}" in [one.value for one in page.text]
    assert page.text[0].value == "1 judged now, 3 more in this round" and page.number_input[0].value is None
    page.run()
    press(page, "healthy")
    assert {f: one.label for f, one in records.verdicts(db).items()} == {3: "healthy"}
    assert page.text[0].value == "2 judged now, 2 more in this round"
    page.number_input[0].set_value(99).run()
    assert page.warning[0].value == "No picture is kept of number 99."
    assert page.text[0].value == "2 judged now, 2 more in this round"


def test_who_has_no_name_gives_it_before_he_judges(
    page: AppTest, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "visitor", lambda: Visitor("", "reviewer"))
    page.run()
    order = [one.label for one in page.main if getattr(one, "label", None)]
    assert order.index("Your name") < order.index("healthy")
    page.text_input(key="review_who").set_value("Jo").run()
    press(page, "healthy")
    assert records.verdicts(db)[3].who == "Jo"
    page.button_group[0].set_value(["doubt"]).run()
    page.switch_page("app_pages/history.py").run()
    page.switch_page("app_pages/review.py").run()
    assert page.text_input(key="review_who").value == "Jo" and page.button_group[0].value == ["doubt"]


def test_undo_takes_back_its_own_label_alone(page: AppTest, db: sqlite3.Connection) -> None:
    press(page, CLASSES[0])
    say(db, 3, "healthy", "Jo")
    press(page, "Undo")
    assert records.verdicts(db)[3].who == "Jo" and page.text[0].value == "0 judged now, 2 more in this round"


def test_what_somebody_else_judges_is_asked_no_more(page: AppTest, db: sqlite3.Connection) -> None:
    say(db, 3, "healthy", "Jo")
    page.run()
    assert page.text[0].value == "0 judged now, 2 more in this round"


def test_what_somebody_else_judges_while_it_is_looked_at_stays_his(page: AppTest, db: sqlite3.Connection) -> None:
    say(db, 3, "healthy", "Jo")
    press(page, CLASSES[0])
    assert "meanwhile" in page.warning[0].value and page.text[0].value == "0 judged now, 2 more in this round"
    assert {f: one.who for f, one in records.verdicts(db).items()} == {3: "Jo"}
    press(page, CLASSES[0])
    assert not page.warning and {f: one.who for f, one in records.verdicts(db).items()} == {3: "Jo", 2: "Ana"}


def test_a_note_goes_with_the_picture_it_was_written_about(page: AppTest, db: sqlite3.Connection) -> None:
    page.text_input[0].set_value("lower left leaf")
    say(db, 3, "healthy", "Jo")
    page.run()
    press(page, CLASSES[0])
    page.text_input[0].set_value("hail")
    press(page, CLASSES[0])
    found = records.verdicts(db)
    assert (found[2].note, found[1].note) == ("", "hail")


def test_a_random_frame_that_is_picked_by_its_number_is_no_random_judgement(
    page: AppTest, db: sqlite3.Connection, folder: Path
) -> None:
    """Whoever looks one up does so for what was said of it. It waits on, to be judged blind."""
    add(db, folder, 9, opinion("small", 0), opinion("large", 1), audit=0.01)
    page.number_input[0].set_value(9).run()
    press(page, CLASSES[1])
    assert records.verdicts(db)[9].source == CHOSEN
    assert [(one.said, one.right) for one in audit.judged(db)] == [(CLASSES[0], None)]
    assert [one.frame for one in review.queue(db, ["random"])] == [9]
    page.button_group[0].set_value(["random"])
    page.run()
    press(page, CLASSES[0])
    assert [one.right for one in audit.judged(db)] == [True]
    page.number_input[0].set_value(9).run()
    press(page, CLASSES[1])  # who corrects what the queue was told is believed
    assert [one.right for one in audit.judged(db)] == [False]


def test_a_rejected_class_has_no_percentage(page: AppTest, db: sqlite3.Connection, folder: Path) -> None:
    add(db, folder, 9, opinion("small", 0, unknown=True))
    page.button_group[0].set_value(["not a plant"])
    page.run()
    assert [one.value for one in page.text if one.value.startswith("Model:")] == ["Model: Not a plant"]


def test_many_classes_are_chosen_from_a_list(db: sqlite3.Connection, folder: Path, page: AppTest) -> None:
    many = ModelSpec("many", "classification", tuple(f"kind {n:02d}" for n in range(40)), (8, 8))
    records.add_model(db, "many", "student", many)
    said = Opinion("many", "student", 1.0, 1.0, 7, (0.02,) * 40, (7,), True, False)
    add(db, folder, 20, said)
    page.run()
    press(page, "Skip")
    press(page, "Skip")
    press(page, "Skip")
    next(one for one in page.selectbox if one.label == "Another class").select("kind 33").run()
    assert not page.exception and records.verdicts(db)[20].label == "kind 33"


def test_a_press_that_comes_twice_counts_once(page: AppTest, db: sqlite3.Connection) -> None:
    late = button(page, "healthy")
    press(page, "Skip")
    states = page._tree.get_widget_states()
    states.widgets.append(late.click()._widget_state)
    page._run(states)
    assert (
        not page.exception and not records.verdicts(db) and page.text[0].value == "0 judged now, 2 more in this round"
    )


def test_a_key_that_a_last_question_hears_too_counts_once(page: AppTest, db: sqlite3.Connection) -> None:
    press(page, CLASSES[0])
    left = button(page, CLASSES[0])
    press(page, "Undo")
    states = page._tree.get_widget_states()
    states.widgets.extend(one.click()._widget_state for one in (button(page, CLASSES[0]), left))
    page._run(states)
    assert {f: one.label for f, one in records.verdicts(db).items()} == {3: CLASSES[0]}


def test_a_random_frame_is_judged_blind(page: AppTest, db: sqlite3.Connection, folder: Path) -> None:
    assert len(page.dataframe) == 1
    add(db, folder, 9, opinion("small", 0), audit=0.01)
    page.button_group[0].set_value(["random"])
    page.run()
    assert not page.dataframe and any("judge for yourself" in one.value for one in page.text)


def test_records_that_cannot_be_read_just_now_are_said(page: AppTest, monkeypatch: Any) -> None:
    def away(_: site.Field) -> None:
        raise DeviceError("the records are away")

    monkeypatch.setattr(site.Field, "records", away)
    press(page, CLASSES[0])
    assert "the records are away" in page.error[0].value


def test_a_viewer_sees_and_changes_nothing(page: AppTest, db: sqlite3.Connection, monkeypatch: Any) -> None:
    monkeypatch.setattr(site, "visitor", lambda: Visitor("Bo"))
    page.run()
    assert not page.exception and not [
        one for one in page.button if one.label in (*map(site.literal, CLASSES), "Skip", "Undo")
    ]
    with pytest.raises(InputError, match="Bo: may look"):
        site.Field.here().label(Visitor("Bo"), Label("click-999", 1, "healthy", "Bo", 2.0))
    with pytest.raises(InputError, match="may look"):
        site.Field.here().ask_teacher(Visitor(), 1)
    assert not records.verdicts(db)


def test_a_refused_label_is_said_and_its_frame_stays(page: AppTest, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise DeviceError("the disk is full")

    monkeypatch.setattr(site.Field, "call", refuse)
    press(page, "healthy")
    assert "the disk is full" in page.error[0].value and page.text[0].value == "0 judged now, 3 more in this round"
