"""The models before one picture: which there are, what each says, where two part, and the page that shows it."""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_kit import net
from serve_kit import SPEC, recording
from streamlit.testing.v1 import AppTest

from agrikd import files, gallery, image, panel, records, site
from agrikd.access import Visitor
from agrikd.device.station import RECORDS
from agrikd.errors import InputError
from agrikd.intervals import wilson
from agrikd.panel import Answer, Bar, Pair
from agrikd.predict._base import FakePredictor
from agrikd.records import NOT_A_PLANT, Opinion, Place, Seen
from agrikd.types import Calibration, ModelSpec, Scale

DAY = 86400
NOON = datetime(2027, 5, 1, 12).timestamp()
EVIL = "<img src=x onerror=alert(1)> [a](javascript:b) \"' `c` $d$ :red[e] " + "long" * 70
NUMBERS = ModelSpec("severity", "regression", ("0", "1", "2", "3"), (8, 8), scale=Scale(0, 10, "%"))


def said(top: int, model: str = "leaf-1", role: Any = "student", unknown: bool = False, classes: int = 3) -> Opinion:
    shares = tuple(0.7 if place == top else 0.3 / (classes - 1) for place in range(classes))
    return Opinion(model, role, NOON, 9.0, top, shares, (top,), False, unknown)


def picture(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    return image.encode_jpeg(np.full((40, 60, 3), colour, np.uint8))


# Which models


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two Runs, one that never finished, two .onnx files and one beside the folder."""
    folder = tmp_path / "runs"
    for name in ("alone", "study/first", "begun"):
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.yaml").touch()
    for name in ("alone", "study/first"):
        (folder / name / "weights.safetensors").write_bytes(name.encode())
    for path in (folder / "old.onnx", folder / "student.onnx", tmp_path / "student.onnx"):
        path.write_bytes(net())
    (folder / "student.onnx").write_bytes(b"another")
    return folder


def test_all_models_are_found_and_no_two_share_a_name(runs: Path, tmp_path: Path) -> None:
    found = panel.models(tmp_path / "field", runs, "")
    names = ["old.onnx", "student.onnx", "alone", "study/first", f"{tmp_path.name}/student.onnx"]
    assert [one.name for one in found] == names and not any(one.serves for one in found)
    assert [one.explains for one in found] == [False, False, True, True, False]


def test_the_model_that_serves_comes_first(runs: Path, tmp_path: Path) -> None:
    digest = files.sha256(b"alone")[:8]
    assert panel.models(tmp_path / "field", runs, f"alone-{digest}")[0] == panel.Model("alone", runs / "alone", True)
    assert not any(one.serves for one in panel.models(tmp_path / "field", runs, "alone-00000000"))
    field = tmp_path / "field"
    for name in ("3-aa", "2-bb"):
        (field / "releases" / name).mkdir(parents=True)
        (field / "releases" / name / "leaf.onnx").write_bytes(net())
        (field / "releases" / name / "choice.json").write_text('{"file": "leaf.onnx"}')
    (field / "current").symlink_to("releases/3-aa")
    (field / "previous").symlink_to("releases/2-bb")
    found = panel.models(field, runs, "3-aa")
    assert [(one.name, one.serves) for one in found[:2]] == [("3-aa", True), ("2-bb", False)] and len(found) == 7


def test_a_file_that_is_replaced_is_another_model(runs: Path, tmp_path: Path) -> None:
    model = panel.models(tmp_path / "field", runs, "")[0]
    os.utime(model.path, ns=(0, model.changed + 5))
    assert panel.models(tmp_path / "field", runs, "")[0].changed != files.sha256_of(model.path)
    assert panel.opened(model.path).backend == "onnxruntime"


# A photo that somebody gives


def test_a_photo_is_turned_as_exif_says() -> None:
    plain = image.encode_jpeg(np.zeros((20, 50, 3), np.uint8))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert panel.photo(plain, "it").shape == (20, 50, 3)
    assert panel.photo(turned, "it").shape == (50, 20, 3)


def bomb(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    held = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", held) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"GIF89a" + bytes(100), "is no JPEG or PNG"),
        (b"<svg onload=alert(1)>", "is no JPEG or PNG"),
        (b"\xff\xd8\xff" + bytes(500), "is cut short"),
        (picture()[:-200], "is cut short"),
        (b"\xff\xd8\xff\xda" + bytes(50) + b"\xff\xd9", "cannot be decoded"),
        (bomb(30_000), "30000 × 30000 pixels"),
        (b"\xff\xd8\xff" + bytes(panel.MOST_BYTES), "at most 20 MB"),
    ],
)
def test_what_is_no_photo_is_said_in_words(data: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        panel.photo(data, "the picture")


# What they say


def test_what_was_recorded_comes_back_as_it_was(tmp_path: Path) -> None:
    teacher = Opinion(EVIL, "teacher", NOON, 80.0, 2, (0.1, 0.2, 0.7), (2, 1), None, None)
    number = Opinion("n", "teacher", NOON, 1.0, 1, (0.2, 0.5, 0.2, 0.1), (1,), False, False, 3.25, (1.5, 4.0))
    with recording(tmp_path) as recorder:
        frame = recorder.frame(Seen(0, NOON, "north"), (said(1), SPEC), None, "").id
        recorder.opinion(frame, teacher, SPEC)
        recorder.opinion(frame, number, NUMBERS)
    with records.read(tmp_path) as db:
        found = panel.recorded(db, frame)
        assert panel.recorded(db, frame + 1) == []
    assert [one.said for one in found] == [said(1), teacher, number]
    assert [one.recorded for one in found] == ["student", "teacher", "teacher"]
    assert [one.word for one in found] == ["healthy", "rust", "3.25\u00a0%"]
    assert [one.candidates for one in found] == [("healthy",), ("rust", "healthy"), ()]


def answers() -> list[Answer]:
    other = ModelSpec("other", "classification", ("rust", "scorch"), (8, 8))
    number = Opinion("n", "teacher", NOON, 1.0, 1, (0.2, 0.5, 0.2, 0.1), (1,), False, False, 2.5, None)
    return [
        Answer("a", SPEC, said(2)),
        Answer("b", other, said(0, classes=2)),
        Answer("c", SPEC, said(0, unknown=True)),
        Answer("d", NUMBERS, number),
    ]


def test_who_says_the_same() -> None:
    assert panel.parties(answers()) == {"rust": [0, 1], NOT_A_PLANT: [2]}


def test_bars_stand_by_class_and_not_by_place() -> None:
    rows = panel.bars(answers())
    assert list(rows) == ["blight", "rust", "scorch", "0 – 10.0\u00a0%", "healthy"]
    assert rows["rust"][:2] == [Bar(0.7, "70\u00a0%")] * 2 and rows["rust"][3] is None
    assert rows["scorch"] == [None, Bar(pytest.approx(0.3), "30\u00a0%"), None, None]  # type: ignore[arg-type]
    assert rows["blight"][1] is None and rows["blight"][2] == Bar(0.7, "70\u00a0%")
    assert rows["0 – 10.0\u00a0%"] == [None, None, None, Bar(0.25, "2.50\u00a0%")]


# Where they differ


def fill(folder: Path) -> None:
    """Ten frames a day for three days. Day 0: all agree. Day 1: the teacher says scorch for rust three times. Day 2:
    it calls one no plant. Every second frame is of the audit; of every fifth the picture is kept."""
    other = ModelSpec("teacher", "classification", ("scorch", "rust", "healthy", "blight"), (8, 8))
    place_of = {0: 3, 1: 2, 2: 1}
    with recording(folder) as recorder:
        for number in range(30):
            day, own = number // 10, number % 3
            audit = 0.5 if number % 2 else None
            seen = Seen(0, NOON + DAY * day + 60 * (number % 10), "north", Place(), (), audit)
            kept = ("audit", picture()) if number % 5 == 4 else None
            frame = recorder.frame(seen, (said(own), SPEC), kept, "").id
            its = 0 if day == 1 and own == 2 else place_of[own]
            its_said = said(its, "teacher", "teacher", day == 2 and number == 27, classes=4)
            recorder.opinion(frame, its_said, other)
        recorder.frame(Seen(0, NOON, "north"), (said(0), SPEC), None, "")  # the teacher was not asked


def test_differences_are_counted_by_name_and_day(tmp_path: Path) -> None:
    fill(tmp_path)
    with records.read(tmp_path) as db:
        ids = [row[0] for row in db.execute("SELECT id FROM frames ORDER BY t, id")]
        found = panel.differences(db, "leaf-1", 0, drawn=False)
        drawn = panel.differences(db, "leaf-1", 0, drawn=True)
        late = panel.differences(db, "leaf-1", NOON + 1.5 * DAY, drawn=False)
        assert panel.differences(db, "none", 0, drawn=False).frames == 0
        assert panel.students(db) == ["leaf-1"] and panel.serving(db) == "leaf-1"
        examples = [pair.frame for pair in found.pairs]
        assert len(ids) == 31 and examples[1] is None
        kept = panel.frame(db, examples[0])  # type: ignore[arg-type]
    rust = [number for number in range(10, 20) if number % 3 == 2]
    assert [pair[:3] for pair in found.pairs] == [("rust", "scorch", len(rust)), ("blight", NOT_A_PLANT, 1)]
    assert kept and kept.file and kept.local.startswith("2027-05-02T12:")
    assert (found.frames, found.agreed) == (30, 30 - len(rust) - 1)
    assert [(day.date, day.frames) for day in found.days] == [(f"2027-05-0{day}", 10) for day in (1, 2, 3)]
    assert [day.share for day in found.days] == [1.0, 0.7, 0.9]
    assert found.days[1].interval == wilson(7, 10)
    odd = [number for number in rust if number % 2]
    assert drawn.frames == 15 and drawn.pairs[0] == Pair("rust", "scorch", len(odd), None)
    assert late.frames == 10 and [day.date for day in late.days] == ["2027-05-03"]


def test_numbers_have_no_classes_to_differ_in(tmp_path: Path) -> None:
    number = Opinion("n", "student", NOON, 1.0, 1, (0.2, 0.5, 0.2, 0.1), (1,), False, False, 2.5, None)
    with recording(tmp_path) as recorder:
        frame = recorder.frame(Seen(0, NOON, "north"), (number, NUMBERS), None, "").id
        recorder.opinion(frame, said(1, "teacher", "teacher"), SPEC)
    with records.read(tmp_path) as db:
        assert panel.differences(db, "n", 0, drawn=False) == ((), (), 0)


# The page


@pytest.fixture
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "field"
    folder.mkdir()
    monkeypatch.setenv(site.FIELD, str(folder))
    monkeypatch.setenv(gallery.RUNS, str(tmp_path / "runs"))
    monkeypatch.setattr(site, "visitor", lambda: Visitor("", "viewer"))
    return folder


@pytest.fixture
def page(field: Path) -> Iterator[AppTest]:
    made = AppTest.from_file(str(site.pages() / "main.py"), default_timeout=60)
    made.switch_page("app_pages/compare.py")
    yield made
    assert not made.exception


def shown(page: AppTest) -> str:
    (block,) = page.get("html")
    return re.sub(r"<style>.*</style>", "", str(block.value), flags=re.S)


def upload(page: AppTest, data: bytes, name: str = "leaf.jpg") -> AppTest:
    page.run()
    page.file_uploader[0].set_value((name, data, "image/jpeg"))
    return page.run()


def look(page: AppTest, view: str) -> AppTest:
    page.run()
    page.session_state["compare_view"] = view
    return page.run()


def test_a_photo_is_put_before_all_models(page: AppTest, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.onnx").write_bytes(net())
    (tmp_path / "runs" / "two.onnx").write_bytes(net(np.roll(np.eye(3, dtype=np.float32) * 9, 1, axis=1)))
    upload(page, picture())
    said = shown(page)
    assert "They differ. A: blight; B: healthy" in said
    assert said.count('class="card"') == 2 and said.count('class="bar"') == 6
    assert page.multiselect[0].options == ["one.onnx", "two.onnx"] and not page.warning and not page.error
    page.multiselect[0].set_value([page.multiselect[0].value[0]]).run()
    assert "differ" not in shown(page) and shown(page).count('class="card"') == 1


@pytest.mark.parametrize(
    ("data", "why"), [(b"GIF89a", "no JPEG or PNG"), (picture()[:-100], "cut short"), (bomb(30_000), "30000")]
)
def test_what_is_no_photo_gets_words_and_its_name_none(page: AppTest, data: bytes, why: str) -> None:
    upload(page, data, "![x](http://evil.example).jpg")
    assert len(page.error) == 1 and why in page.error[0].value.replace("\\", "") and "evil" not in page.error[0].value


def test_without_torch_exported_models_still_answer(page: AppTest, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "agrikd.predict.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    (runs / "student.onnx").unlink()
    upload(page, picture())
    assert shown(page).count('class="card"') == 2
    (warned,) = page.warning
    assert "alone, study/first: torch is not installed" in warned.value.replace("\\", "")
    assert "agrikd[train]" in warned.value.replace("\\", "")
    assert "Choose a Run" in page.info[0].value


def test_names_are_shown_and_never_obeyed(page: AppTest, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(EVIL, "classification", (EVIL, "<script>steal()</script>"), (8, 8))
    monkeypatch.setattr(panel, "opened", lambda path: FakePredictor(spec))
    (runs / "<b>&lt;.onnx").write_bytes(b"x")
    upload(page, picture((10, 250, 40)))
    said = shown(page)
    assert "<img" not in said and "<script" not in said and "<b>&lt;b&gt;&amp;lt;.onnx</b>" in said
    assert "&lt;img src=x onerror=alert(1)&gt;" in said


@pytest.mark.parametrize("known", [True, False])
def test_the_page_shows_numbers_with_their_intervals(
    page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    calibration = Calibration(1.0, 0.0, 0.1, 1.5, 0.8, None, 0.95, 30, "val") if known else None
    monkeypatch.setattr(panel, "opened", lambda path: FakePredictor(replace(NUMBERS, calibration=calibration)))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "severity.onnx").touch()
    upload(page, picture())
    said = shown(page)
    assert re.search(r'class="big">\d\.\d\d\xa0%<', said) and "0 – 10.0\u00a0%" in said
    assert ("in 80\u00a0% of cases" in said) == known and said.count('class="bar"') == 1


@pytest.mark.parametrize("names", [("severity", "leaf"), ("severity", "leaf", "leaf-2")])
def test_classes_beside_a_number_are_no_agreement_of_all(
    page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    classes = ModelSpec("leaf", "classification", ("rust", "healthy"), NUMBERS.input_size)
    monkeypatch.setattr(panel, "opened", lambda path: FakePredictor(classes if path.stem != "severity" else NUMBERS))
    (tmp_path / "runs").mkdir()
    for name in names:
        (tmp_path / "runs" / f"{name}.onnx").touch()
    upload(page, picture())
    said = shown(page)
    assert said.count('class="card"') == len(names) and "All say the same" not in said and "They differ" not in said


@pytest.fixture
def frames(field: Path) -> Path:
    fill(field / RECORDS)
    return field


def test_a_stored_picture_comes_with_what_was_said_of_it(page: AppTest, frames: Path) -> None:
    look(page, "frame")
    with records.read(frames / RECORDS) as db:
        newest = panel.kept(db, 20)
    assert len(newest) == 6 and page.number_input[0].value == newest[0].frame
    said = shown(page)
    assert "The device, when it saw this" in said and "The teacher, when it was asked" in said
    assert "All say the same: rust" in said
    page.button(key=f"newest-{newest[2].frame}").click().run()
    assert page.number_input[0].value == newest[2].frame
    assert any(f"#{newest[2].frame} · 2027-05-02 12:" in text.value for text in page.text)
    page.number_input[0].set_value(2).run()  # not kept
    assert "was not kept" in page.info[0].value and shown(page).count('class="card"') == 2
    page.number_input[0].set_value(99_999).run()
    assert "no picture of this number" in page.info[0].value and not page.get("html")


def test_another_page_may_name_a_frame(page: AppTest, frames: Path) -> None:
    page.query_params["frame"] = "11"
    page.run()
    assert page.number_input[0].value == 11 and shown(page)


@pytest.mark.parametrize("frame", ["-3", "0", "x", "9" * 30, "²", ""])
def test_what_is_no_number_of_a_frame_does_no_harm(page: AppTest, frames: Path, frame: str) -> None:
    page.query_params["frame"] = frame
    page.run()
    assert not page.exception


def test_differences_lead_to_examples(page: AppTest, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(page, "records")
    page.selectbox(key="compare_days").set_value(0).run()
    assert any("of 12 of 15 pictures (80\u00a0%)" in text.value for text in page.text)
    page.toggle[0].set_value(False).run()
    assert any("of 26 of 30 pictures" in text.value for text in page.text)
    table = page.dataframe[0].value
    assert table.iloc[0].tolist()[:3] == ["rust", "scorch", 3]
    (example,) = (one for one in page.button if str(one.key).startswith("example-"))
    frame = int(str(example.key).partition("-")[2])
    example.click().run()
    assert page.number_input[0].value == frame and "They differ. A: rust; B: scorch" in shown(page)


def test_without_records_the_page_says_so(page: AppTest) -> None:
    look(page, "records")
    assert page.error and "holds no records" in page.error[0].value.replace("\\", "")
    look(page, "frame")
    assert page.error and not page.exception


def test_a_run_is_looked_into(page: AppTest, colours: Path, tmp_path: Path, tiny_photos: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "colours").symlink_to(colours)
    upload(page, (tiny_photos / "test_rust_0.jpg").read_bytes())
    assert "rust" in shown(page)
    page.button[0].click().run()
    assert any("Grad-CAM" in caption.value and "32 × 32" in caption.value for caption in page.caption)
    page.button[1].click().run()
    found = [text.value for text in page.text if re.match(r"[01]\.\d\d  ", text.value)]
    alike = [float(text.partition(" ")[0]) for text in found]
    assert len(found) == 6 and alike == sorted(alike, reverse=True)
    assert {text.partition("  ")[2] for text in found} <= {"rust", "no label"}
    assert any("Chosen from" in caption.value for caption in page.caption)
