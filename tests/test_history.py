"""What the records add up to, and the page that shows it."""

from __future__ import annotations

import contextlib
import csv
import io
import sqlite3
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from agrikd import files, history, image, kept, records, site
from agrikd.access import Visitor
from agrikd.errors import InputError
from agrikd.history import Count, Session
from agrikd.records import NOT_A_PLANT, REVIEW, Label, Opinion, Place, Seen
from agrikd.types import ModelSpec, Scale

HOSTILE = '=HYPERLINK("http://evil.example") **b** <img src=x onerror=alert(1)>'
LONG = "a long name " * 25
CLASSES = ("rust", "healthy", HOSTILE, LONG)
SPEC = ModelSpec("leaf", "classification", CLASSES, (8, 8))
NOW = 1_800_000_000.0
DAY = 86400.0


class Writer:
    """Of a field's records, a frame at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.db, self.frame = folder, records.create(folder), 0

    def see(self, t: float, top: int = 0, kept: bytes = b"", **seen: Any) -> int:
        """A frame with the student's answer; its id. kept: its picture's bytes."""
        self.frame += 1
        new = Seen(self.frame, t, seen.pop("camera", "north"), seen.pop("place", Place()), **seen)
        records.add_frame(self.db, new)
        self.say(self.frame, top)
        if kept:
            name = f"{records.PICTURES}/{self.frame:09d}.jpg"
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(kept)
            records.add_picture(self.db, self.frame, "doubt", (name, len(kept), files.sha256(kept)))
        return self.frame

    def say(self, frame: int, top: int, model: str = "leaf-1", role: Any = "student", **other: Any) -> None:
        shares = tuple(0.7 if one == top else 0.1 for one in range(len(CLASSES)))
        records.add_model(self.db, model, role, SPEC)
        said = {"unsure": False, "unknown": False, **other}
        records.add_opinion(self.db, frame, Opinion(model, role, NOW, 9.0, top, shares, (top,), **said))

    def label(self, frame: int, name: str, note: str = "") -> None:
        records.add_label(self.db, Label(f"click-{frame}", frame, name, "Ana", NOW, REVIEW, note))


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "records")
    yield writer
    writer.db.close()


@contextlib.contextmanager
def reading(writer: Writer) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(records.read(writer.folder)) as db:
        yield db


def jpeg(height: int = 480, width: int = 640) -> bytes:
    return image.encode_jpeg(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


# Counts


def test_counts_are_exact_and_folding_changes_none(field: Writer) -> None:
    rng, wanted = np.random.default_rng(0), Counter[tuple[str, ...]]()
    for number in range(400):
        place = Place(f"field {rng.integers(2)}", f"plot {rng.integers(2)}")
        seen = Seen(0, NOW + number * 1000.0, f"cam-{rng.integers(2)}", place)
        top = int(rng.integers(4))
        frame = field.see(seen.t, top, camera=seen.camera, place=place)
        wanted[(seen.local[:10], place.field, place.plot, seen.camera, "leaf-1", "student", CLASSES[top])] += 1
        if number % 7 == 0:
            field.say(frame, 1, "big-1", "teacher")
            wanted[(seen.local[:10], place.field, place.plot, seen.camera, "big-1", "teacher", "healthy")] += 1
    for folded in (0, 150, 100):
        with records.transaction(field.db):
            assert records.fold(field.db, folded) == folded
        with reading(field) as db:
            found = history.counts(db)
        assert {row[:-1]: row.frames for row in found} == wanted and len(found) == len(wanted)
    assert [row.day for row in found] == sorted(row.day for row in found)


def test_a_spreadsheet_gets_the_names_and_runs_none(field: Writer) -> None:
    rows = [
        Count("2027-05-04", name, "a;b", 'say "x",\ny', "leaf-1", "student", HOSTILE, 3)
        for name in ("=1+1", "+1", "-1", "@x", "\tx", "plain", "Ñandú")
    ]
    data = history.counts_csv(rows)
    found = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert data.startswith(b"\xef\xbb\xbf")
    assert [*found[0]] == ["day", "field", "plot", "camera", "model", "role", "class", "frames"]
    assert [row["field"] for row in found] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "plain", "Ñandú"]
    assert {(row["plot"], row["camera"], row["class"], row["frames"]) for row in found} == {
        ("a;b", 'say "x",\ny', f"'{HOSTILE}", "3")
    }


def test_rare_classes_stand_together() -> None:
    def row(day: str, said: str, frames: int) -> Count:
        return Count(day, "", "", "", "leaf-1", "student", said, frames)

    rows = [row("1", "a", 5), row("1", "b", 3), row("1", "c", 1), row("2", "c", 1), row("2", "d", 1), row("2", "A", 2)]
    assert history.by_day(rows, str, 5) == {"1": {"a": 5, "b": 3, "c": 1}, "2": {"c": 1, "d": 1, "A": 2}}
    assert history.by_day(rows, str.lower, 3) == {"1": {"a": 5, "b": 3, "": 1}, "2": {"": 2, "a": 2}}


def test_the_student_that_answered_last_comes_first(field: Writer) -> None:
    with reading(field) as db:
        assert history.students(db) == []
        for model in ("leaf-1", "leaf-2", "leaf-1"):
            field.say(field.see(NOW), 0, model)
        field.say(1, 0, "big-1", "teacher")
        assert history.students(db) == ["leaf-1", "leaf-2"]


# Sessions


def test_a_session_ends_with_a_gap_of_more_than_half_an_hour(field: Writer) -> None:
    t = NOW
    for gap in (0.0, 1800.0, 1800.1, 5.0):
        t += gap
        field.see(t, kept=b"12345" if gap == 5.0 else b"")
        field.see(NOW + 86400.0 * field.frame, camera="south")
    field.see(t + 1.0, place=Place("other"))
    field.see(t - 4000.0, place=Place("other"))
    with reading(field) as db:
        found = history.sessions(db)
    assert [one.first for one in found] == sorted((one.first for one in found), reverse=True)
    north = [one for one in found if one.camera == "north"]
    assert [(one.field, one.first, one.last, one.frames) for one in north] == [
        *(("other", 10, 10, 1), ("other", 9, 9, 1), ("", 5, 7, 2), ("", 1, 3, 2)),
    ]
    assert [(one.pictures, one.size_bytes) for one in north] == [(0, 0), (0, 0), (1, 5), (0, 0)]
    assert north[3].begin == Seen(0, NOW, "").local and north[3].end == Seen(0, NOW + 1800, "").local
    assert [one.frames for one in found if one.camera == "south"] == [1, 1, 1, 1]


def test_no_records_no_sessions(field: Writer) -> None:
    with reading(field) as db:
        assert history.sessions(db) == [] and history.counts(db) == []


def session_of(field: Writer, pictures: int) -> Session:
    for number in range(pictures):
        field.see(NOW + number, kept=bytes([number]) * (100 + number), camera="north" if number % 5 else "south")
        field.see(NOW + number)
    with reading(field) as db:
        return next(one for one in history.sessions(db) if one.camera == "north")


@pytest.mark.parametrize(
    ("most", "count"), [({"PART_BYTES": 500}, 4), ({"PART_PICTURES": 3}, 6), ({"PART_BYTES": 1}, 16), ({}, 1)]
)
def test_zips_hold_each_picture_once_and_no_more_than_they_may(
    field: Writer, monkeypatch: pytest.MonkeyPatch, most: dict[str, int], count: int
) -> None:
    session = session_of(field, 20)
    for name, value in most.items():
        monkeypatch.setattr(history, name, value)
    with reading(field) as db:
        parts = history.parts(db, session)
        held = [list(kept.of_camera(db, session.camera, part)) for part in parts]
    frames = [one.frame for part in held for one in part]
    assert frames == sorted(set(frames)) and len(frames) == session.pictures == 16
    for part in held:
        assert len(part) <= history.PART_PICTURES
        assert len(part) == 1 or sum((field.folder / one.file).stat().st_size for one in part) <= history.PART_BYTES
    assert len(parts) == count


def test_a_zip_names_what_is_gone(field: Writer) -> None:
    session = session_of(field, 6)
    field.label(3, HOSTILE, "-2+3")
    field.say(3, 1, "big-1", "teacher", unknown=True)
    with reading(field) as db:
        pictures = list(kept.of_camera(db, session.camera, (session.first, session.last)))
        (field.folder / pictures[1].file).unlink()
        made = zipfile.ZipFile(io.BytesIO(history.packed(pictures, field.folder.joinpath)))
    assert made.testzip() is None
    lines = list(csv.DictReader(io.StringIO(made.read("said.csv").decode("utf-8-sig"), newline="")))
    assert [int(line["frame"]) for line in lines] == [one.frame for one in pictures] == [3, 5, 7, 9]
    assert made.namelist() == ["000000003.jpg", "000000007.jpg", "000000009.jpg", "said.csv"]
    for one, line in zip(pictures, lines, strict=True):
        if one is pictures[1]:
            assert line["picture"] == one.file and line["gone"] == "No such file or directory"
        else:
            assert made.read(line["picture"]) == (field.folder / one.file).read_bytes() and not line["gone"]
    first = lines[0]
    assert (first["student"], first["student_probability"], first["student_model"]) == ("rust", "0.7", "leaf-1")
    assert (first["teacher"], first["teacher_probability"]) == (NOT_A_PLANT, "")
    assert (first["label"], first["label_by"], first["note"]) == (f"'{HOSTILE}", "Ana", "'-2+3")
    assert lines[1]["label"] == lines[1]["note"] == lines[1]["teacher"] == ""


def test_pages_of_pictures(field: Writer) -> None:
    session = session_of(field, 20)
    span = session.first, session.last
    with reading(field) as db:
        whole = list(kept.of_camera(db, "north", span))
        assert [*kept.of_camera(db, "north", span, 0, 7), *kept.of_camera(db, "north", span, 7, 99)] == whole
        assert not list(kept.of_camera(db, "west", span))


def test_a_number_is_said_with_its_unit(field: Writer) -> None:
    frame = field.see(NOW, kept=b"x")
    records.add_model(field.db, "biomass-1", "teacher", replace(SPEC, scale=Scale(0, 5, "t/ha")))
    field.say(frame, 1, "biomass-1", "teacher", value=2.5)
    with reading(field) as db:
        (one,) = kept.of_camera(db, "north", (frame, frame))
    assert one.teacher and one.teacher.said == "2.50\u00a0t/ha" and one.teacher.probability is None


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (100, 90), (1, 5000)])
def test_a_thumbnail_is_small_and_keeps_the_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(*shape))
    small = image.decode(history.thumbnail(tmp_path / "a.jpg"), "").shape[:2]
    assert max(small) == min(240, max(shape))
    assert small[0] / small[1] == pytest.approx(shape[0] / shape[1], rel=0.05) or min(small) == 1
    for broken in (b"", b"no picture", jpeg()[:5000]):
        (tmp_path / "b.jpg").write_bytes(broken)
        with pytest.raises(InputError):
            history.thumbnail(tmp_path / "b.jpg")
    with pytest.raises(InputError, match="no such file"):
        history.thumbnail(tmp_path / "c.jpg")


# Room


def room(field: Writer, quota: float, monkeypatch: pytest.MonkeyPatch, now: float = NOW) -> history.Room:
    monkeypatch.setattr(time, "time", lambda: now)
    with reading(field) as db:
        return history.room(db, field.folder, quota, 0.0)


def test_how_long_room_lasts(field: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = room(field, 5000.0, monkeypatch)
    assert (nothing.kept_bytes, nothing.bytes_per_day, nothing.days) == (0, 0.0, None)
    field.label(field.see(NOW - 30 * DAY, kept=b"x" * 500), "rust")
    assert room(field, 5000.0, monkeypatch).days is None
    for hours in (47, 24, 1):
        field.see(NOW - hours * 3600.0, kept=b"x" * 470)
    found = room(field, 5000.0, monkeypatch)
    assert (found.kept_bytes, found.labelled_bytes, found.left_bytes) == (1910, 500, 3090.0)
    assert found.bytes_per_day == pytest.approx(3 * 470 / 47 * 24)  # the oldest that may be removed is 47 hours old
    assert found.days == pytest.approx(3090 / 720)
    field.see(NOW - 20 * DAY, kept=b"x" * 990)
    assert room(field, 5000.0, monkeypatch).bytes_per_day == pytest.approx(3 * 470 / 7)
    assert room(field, 2900.0, monkeypatch).days == 0.0


def test_of_the_first_minutes_no_rate_is_said(field: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    field.see(NOW - 600.0, kept=b"x" * 500)
    assert room(field, 5000.0, monkeypatch).bytes_per_day is None
    assert room(field, 5000.0, monkeypatch, NOW - DAY).bytes_per_day is None  # a clock that was set back


# The page

TABS = ("Accuracy", "Classes by day", "Pictures", "Storage")


@pytest.fixture
def page(field: Writer, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv(site.FIELD, str(field.folder.parent))
    monkeypatch.setattr(site, "visitor", lambda: Visitor("Ana", "viewer"))
    app = AppTest.from_file(str(site.pages() / "main.py"), default_timeout=60)
    return app.run().switch_page("app_pages/history.py")


def opened(page: AppTest, tab: str) -> AppTest:
    page.session_state["history_tab"] = tab
    page.run()
    assert not page.exception
    return page


def shown(page: AppTest) -> str:
    parts = (*page.markdown, *page.info, *page.warning, *page.text, *page.caption, *page.error)
    return "\n".join(str(one.value) for one in parts)


@pytest.mark.parametrize(
    ("tab", "said"), [*zip(TABS, ("No model", "No model", "No pictures", "No picture"), strict=True)]
)
def test_an_empty_field_is_said_in_words(page: AppTest, tab: str, said: str) -> None:
    assert said in shown(opened(page, tab)) and not page.error


def test_without_records_and_with_wrong_settings(tmp_path: Path, page: AppTest, monkeypatch: Any) -> None:
    (tmp_path / "agent.yaml").write_text("records: {quota_gb: -1}\n")
    assert site.literal("quota_gb") in opened(page, "Storage").error[0].value
    monkeypatch.setenv(site.FIELD, str(tmp_path / "nothing"))
    assert "holds no records" in opened(page, "Accuracy").error[0].value


def test_accuracy_says_who_judged(field: Writer, page: AppTest) -> None:
    frames = [field.see(NOW + number, number % 4, audit=0.1) for number in range(40)]
    assert "somebody has to judge" in shown(opened(page, "Accuracy")) and not page.metric
    for number, frame in enumerate(frames):
        field.say(frame, number % 4 if number % 10 else 1, "big-1", "teacher")
    page.button[0].click()
    opened(page, "Accuracy")
    assert "agree" in page.metric[0].label and page.metric[0].value == "90\u00a0%"
    assert "not how often the model is right" in page.warning[0].value and "somebody has to judge" in shown(page)
    for frame in frames[:10]:
        field.label(frame, CLASSES[(frame - 1) % 4] if frame > 2 else "blight")
    opened(page, "Accuracy")  # a label counts at once
    assert "right" in page.metric[0].label and page.metric[0].value == "80\u00a0%"
    assert "Judged by people: **10**" in shown(page) and "**49\u00a0%** to **94\u00a0%**" in shown(page)
    table = page.dataframe[0].value
    assert set(table["Class"]) == set(CLASSES) and list(table["Share"]) == sorted(table["Share"])


def test_nobody_is_sent_to_judge_numbers(field: Writer, page: AppTest) -> None:
    for number in range(10):
        field.see(NOW + number, audit=1.0)
    numbers = replace(SPEC, task="regression", scale=Scale(0, 4, "%"))
    records.add_model(field.db, "area-1", "student", numbers)
    records.add_opinion(
        field.db, 10, Opinion("area-1", "student", NOW, 9.0, 0, (1.0, 0, 0, 0), (0,), False, False, 0.5)
    )
    said = shown(opened(page, "Accuracy"))
    assert "answers with a number" in said and "somebody has to judge" not in said and "Judged by" not in said


def test_a_fall_is_warned_of(field: Writer, page: AppTest) -> None:
    for number in range(300):
        field.label(field.see(NOW + number, audit=0.1), "rust" if number < 200 else "healthy")
    assert "worse of late" in opened(page, "Accuracy").warning[0].value
    assert "100\u00a0% before, 0\u00a0% in the last 100 frames, as people" in shown(page)
    page.session_state.language = "es"
    assert "100\u00a0% antes, 0\u00a0% en las últimas 100 imágenes, según las personas" in shown(
        opened(page, "Aciertos")
    )


def test_classes_by_day_show_what_is_chosen(field: Writer, page: AppTest) -> None:
    both, second = Counter[str](), Counter[str]()
    for number in range(120):
        t, camera = NOW + number * DAY / 3, f"cam-{number % 2}"
        field.see(t, number % 4, camera=camera, place=Place(HOSTILE))
        day = Seen(0, t, "").local[:10]
        both[day] += 1
        second[day] += camera == "cam-1"
    wanted = dict(sorted(both.items(), reverse=True)[:30])
    opened(page, "Classes by day")
    table = page.dataframe[0].value
    assert dict(zip(table["Day"], table["Frames"], strict=True)) == wanted and set(table.columns) >= set(CLASSES)
    assert table[[*CLASSES]].sum(axis=1).to_numpy() == pytest.approx(100.0)
    assert [box.label for box in page.selectbox[:2]] == ["Field", "Camera"]
    page.selectbox[1].select("cam-1")
    opened(page, "Classes by day")
    assert page.dataframe[0].value["Frames"].sum() == sum(second[day] for day in wanted)
    assert HOSTILE not in "".join(one.value for one in page.markdown)


def test_pictures_are_small_and_a_gone_one_is_said(field: Writer, page: AppTest) -> None:
    for number in range(30):
        frame = field.see(NOW + number, number % 4, kept=jpeg(), camera=HOSTILE)
        field.say(frame, 1, "big-1", "teacher", unsure=True)
    field.label(1, NOT_A_PLANT)
    (field.folder / f"{records.PICTURES}/000000002.jpg").unlink()
    opened(page, "Pictures")
    texts = [one.value for one in page.text]
    assert "rust 70\u00a0%\nTeacher: healthy 70\u00a0%, unsure\nPerson: Not a plant I know" in texts[0]
    assert len(page.get("image")) == 23 and [one.value for one in page.warning] == ["The picture is gone."]
    assert "**30** frames, **30** pictures kept" in shown(page)
    assert max(len(line) for text in texts for line in text.split("\n")) < 80
    (pagination,) = page.get("pagination")
    assert pagination is not None and "ZIP" in page.get("download_button")[0].label


def test_the_session_that_is_looked_at_stays_while_others_go_on(field: Writer, page: AppTest) -> None:
    """Which are renamed by what they have, as it is itself."""
    for camera in ("north", "south"):
        field.see(NOW, kept=jpeg(), camera=camera)
    opened(page, "Pictures")
    box = page.selectbox(key="history_session")
    box.select_index(1).run()
    chosen = page.selectbox(key="history_session").value
    for more in (60.0, 120.0):
        for camera in ("south", "north"):
            field.see(NOW + more, kept=jpeg(), camera=camera)
        st.cache_data.clear()
        page.run()
        assert page.selectbox(key="history_session").value == chosen
        assert f"**{1 + more / 60:.0f}** frames" in shown(page)


def test_a_picture_is_that_of_its_frame_though_its_name_was_anothers(field: Writer, page: AppTest) -> None:
    def picture() -> Any:
        return opened(page, "Pictures").get("image")[0].proto.imgs[0].url

    field.see(NOW, kept=jpeg())
    before = picture()
    data = image.encode_jpeg(np.full((60, 80, 3), 200, np.uint8))
    with contextlib.closing(records.create(field.folder)) as db:
        (file,) = db.execute("SELECT file FROM pictures").fetchone()
        db.execute("UPDATE pictures SET sha256 = ?", (files.sha256(data),))
    (field.folder / file).write_bytes(data)
    assert picture() != before


def test_storage(field: Writer, page: AppTest) -> None:
    for number in range(100):
        field.see(time.time() - number * 3600.0, kept=b"x" * 10**6)
    opened(page, "Storage")
    assert [page.metric[at].value for at in (0, 2)] == ["0\u00a0MB", "24.2\u00a0MB"]
    assert "room for **161 days**" in shown(page) and "How this is computed" in shown(page)
    (field.folder.parent / "agent.yaml").write_text("records: {quota_gb: 0.1}\n")
    assert "used up" in shown(opened(page, "Storage"))


def test_it_speaks_spanish(field: Writer, page: AppTest) -> None:
    field.see(NOW)
    page.session_state.language = "es"
    assert "alguien tiene que juzgar" in shown(opened(page, "Aciertos"))
