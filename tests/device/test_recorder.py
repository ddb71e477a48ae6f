"""The one writer of the records: what it acknowledges is on the disk, and nothing stops it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from agrikd import files, records
from agrikd.device import opening
from agrikd.device import recorder as recorders
from agrikd.device.recorder import Bounds, Recorder
from agrikd.errors import InputError, StorageError
from agrikd.records import Label, Opinion, Place, Seen
from agrikd.types import ModelSpec

SPEC = ModelSpec("leaf", "classification", ("rust", "healthy"), (64, 64))
LOOSE = Bounds(free_bytes=0)


def said(top: int = 0, role: Any = "student", model: str = "m") -> Opinion:
    p = (0.9, 0.1) if top == 0 else (0.1, 0.9)
    return Opinion(model, role, 5.0, 2.0, top, p, (top,), unsure=False, unknown=False)


def seen(t: float = 1_800_000_000.0, **more: Any) -> Seen:
    return Seen(0, t, "row-7", Place("north", "7", 41.2, 2.1), **more)


def settled(recorder: Recorder, seconds: float = 10) -> None:
    """When all that was handed over is on the disk."""
    end = time.monotonic() + seconds
    while recorder.health()["waiting"] or recorder.trouble:
        assert time.monotonic() < end, recorder.health()
        time.sleep(0.01)


@contextlib.contextmanager
def recording(folder: Path, bounds: Bounds = LOOSE) -> Iterator[Recorder]:
    recorder = Recorder(folder, bounds)
    try:
        yield recorder
    finally:
        recorder.stop()


def test_large_records_hold_up_no_start_and_no_frame_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through gigabytes on a slow card takes minutes, in which cameras and model are at work."""
    with recording(tmp_path) as recorder:
        first = recorder.frame(seen(), (said(), SPEC))
        settled(recorder)
    looked, checked = threading.Event(), opening.checked
    monkeypatch.setattr(opening, "checked", lambda folder: looked.wait(20) and checked(folder))
    with recording(tmp_path) as recorder:
        more = [recorder.frame(seen(), (said(), SPEC), ("doubt", b"jpeg")) for _ in range(5)]
        assert [one.id for one in more] == [first.id + n for n in range(1, 6)] and count(tmp_path, "frames") == 1
        looked.set()
        settled(recorder)
        assert recorder.label(Label("k", more[-1].id, "rust", "Ana", 6.0)) and recorder.dropped == 0
    assert count(tmp_path, "frames") == 6 and count(tmp_path, "pictures") == 5


def count(folder: Path, table: str) -> int:
    with contextlib.closing(records.read(folder)) as db:
        return int(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    with contextlib.closing(records.read(folder)) as db:
        return records.beyond(db, table, 0, 100_000)


def test_what_was_handed_over_is_there_with_all_that_was_said(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        one = recorder.frame(
            seen(quality=("blurred",), audit=0.01), (said(1), SPEC), kept=("audit", b"jpeg"), ask="audit"
        )
        done = recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0, "live", "by the road"))
        recorder.opinion(one.id, said(0, "teacher", "big"), SPEC)
        recorder.event("clock", "+3 s")
    (frame,), predictions = rows(tmp_path, "frames"), rows(tmp_path, "predictions")
    assert frame["quality"] == "blurred" and frame["audit"] == 0.01 and frame["plot"] == "7"
    assert frame["local"].startswith("2027-01-15T") and frame["local"][-6] in "+-"
    assert [(one["role"], one["top"], one["probability"]) for one in predictions] == [
        ("student", 1, 0.9),
        ("teacher", 0, 0.9),
    ]
    assert [one["name"] for one in rows(tmp_path, "models")] == ["m", "big"]
    (label,), (picture,) = rows(tmp_path, "labels"), rows(tmp_path, "pictures")
    assert label["id"] == done and label["who"] == "Ana"
    assert (tmp_path / picture["file"]).read_bytes() == b"jpeg" and picture["sha256"] == files.sha256(b"jpeg")
    assert count(tmp_path, "asks") == 0  # the teacher has answered
    assert rows(tmp_path, "events")[0]["value"] == "+3 s"


def test_the_same_click_is_one_label_and_a_frame_must_be_known(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        one = recorder.frame(seen(), (said(), SPEC))
        label = Label("click-001", one.id, "rust", "Ana", 6.0)
        assert recorder.label(label) == recorder.label(label)
        with pytest.raises(InputError, match="frame 77"):
            recorder.label(Label("click-002", 77, "rust", "Ana", 6.0))
        recorder.frame(seen(), (said(), SPEC))
    assert count(tmp_path, "labels") == 1 and count(tmp_path, "frames") == 2


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 20_000])
def test_a_text_that_no_database_takes_is_refused_and_the_rest_goes_on(tmp_path: Path, text: str) -> None:
    with recording(tmp_path) as recorder:
        one = recorder.frame(seen(), (said(), SPEC))
        with pytest.raises(InputError, match="note: is no plain text"):
            recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0, note=text))
        recorder.event("note", text)
        recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0))
    assert count(tmp_path, "labels") == count(tmp_path, "events") == 1


def test_what_breaks_a_rule_of_the_database_is_dropped_and_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        recorder._put(recorders._Entry(lambda db: db.execute("INSERT INTO frames(id) VALUES(1)")))
        wait(lambda: recorder.dropped == 1)
        recorder.frame(seen(), (said(), SPEC))
        settled(recorder)
        assert recorder.dropped == 1
    assert count(tmp_path, "frames") == 1


def test_a_late_answer_does_not_take_the_id_of_one_that_is_gone(tmp_path: Path) -> None:
    with contextlib.closing(records.create(tmp_path)) as db:
        for frame in (1, 2):
            records.add_frame(db, Seen(frame, 1.0, "c"))
            records.add_opinion(db, frame, said())
        records.add_opinion(db, 1, said(0, "teacher", "big"))
        assert records.fold(db, 1) == 1
        records.add_opinion(db, 2, said(0, "teacher", "big"))
        assert [row["id"] for row in records.beyond(db, "predictions", 0, 9)] == [2, 4]


def test_the_button_goes_before_a_doubt(tmp_path: Path) -> None:
    with contextlib.closing(records.create(tmp_path)) as db:
        records.add_ask(db, 1, "doubt", 1.0)
        records.add_ask(db, 1, "button", 2.0)
        assert db.execute("SELECT frame, why FROM asks").fetchall() == [(1, "button")]


def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        with recording(tmp_path) as recorder:
            assert recorder.frame(seen(), None).id == expected


def test_the_oldest_unlabelled_pictures_go_first_and_the_labelled_never(tmp_path: Path) -> None:
    with recording(tmp_path, Bounds(quota_bytes=50_000, free_bytes=0)) as recorder:
        for number in range(200):
            one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", bytes([number]) * 1000))
            if number % 40 == 0:
                recorder.label(Label(f"click-{number:03d}", one.id, "rust", "Ana", 6.0))
    kept = {row["frame"] for row in rows(tmp_path, "pictures")}
    assert {1, 41, 81, 121, 161} <= kept
    assert sum(row["size_bytes"] for row in rows(tmp_path, "pictures")) <= 50_000
    assert kept - {1, 41, 81, 121, 161} == set(range(min(kept - {1, 41, 81, 121, 161}), 201)) - {161}
    assert sorted(path.stat().st_size for path in tmp_path.rglob("*.jpg")) == [1000] * len(kept)


def test_old_frames_become_daily_counts_but_not_those_of_labels_and_pictures(tmp_path: Path) -> None:
    with recording(tmp_path, Bounds(free_bytes=0, rows=1000)) as recorder:
        for number in range(3000):
            new = seen(t=1_800_000_000.0 + 60 * number)
            one = recorder.frame(new, (said(number % 2), SPEC), kept=("audit", b"x") if number == 5 else None)
            if number == 7:
                recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0))
    frames = rows(tmp_path, "frames")
    with contextlib.closing(records.read(tmp_path)) as db:
        folded = db.execute("SELECT SUM(n), COUNT(DISTINCT day), COUNT(DISTINCT top) FROM daily").fetchone()
    assert len(frames) <= 1000 and {6, 8} <= {row["id"] for row in frames}
    assert folded[0] + len(frames) == 3000 and tuple(folded)[1:] == (2, 2)
    assert count(tmp_path, "predictions") == len(frames)


def test_a_picture_of_no_row_is_swept_and_a_damaged_database_is_set_aside(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg"))
    stray = tmp_path / "pictures" / "2027-01-15" / "000000009.jpg"
    stray.write_bytes(b"half")
    with recording(tmp_path):
        pass
    assert not stray.exists() and len(list(tmp_path.rglob("*.jpg"))) == 1
    (tmp_path / "records.db").write_bytes(b"no database at all" * 1000)
    with recording(tmp_path) as recorder:
        recorder.frame(seen(), (said(), SPEC))
    assert count(tmp_path, "frames") == 1
    assert len(list(tmp_path.glob("damaged-*/records.db"))) == len(list(tmp_path.glob("damaged-*/pictures"))) == 1


def kept(folder: Path, count: int = 10) -> None:
    """Frames with pictures, every other one labelled."""
    with recording(folder) as recorder:
        for number in range(count):
            one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg"))
            if number % 2 == 0:
                recorder.label(Label(f"click-{number:03d}", one.id, "rust", "Ana", 6.0))


def told(folder: Path) -> list[str]:
    return [row["value"] for row in rows(folder, "events") if row["key"] == "records"]


@pytest.mark.parametrize("how", ["a link to nothing", "nothing", "an empty folder", "a day that cannot be read"])
def test_pictures_that_are_elsewhere_for_one_start_cost_nothing(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is not mounted."""
    kept(tmp_path)
    pictures, away = tmp_path / "pictures", tmp_path / "away"
    before = rows(tmp_path, "pictures"), {path.name for path in pictures.rglob("*.jpg")}
    if how == "a day that cannot be read":
        scan = os.scandir

        def refuse(path: Any) -> Any:
            if Path(path).parent == pictures:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
    else:
        pictures.rename(away)
    if how == "an empty folder":
        pictures.mkdir()
    if how == "a link to nothing":
        pictures.symlink_to(tmp_path / "unmounted")
    with recording(tmp_path):
        pass
    (word,) = told(tmp_path)
    assert word.startswith("10 of 10 kept pictures are not") and count(tmp_path, "pictures") == 10
    monkeypatch.undo()
    if away.exists():
        pictures.rmdir() if how == "an empty folder" else pictures.unlink(missing_ok=True)
        away.rename(pictures)
    with recording(tmp_path):
        pass
    assert (rows(tmp_path, "pictures"), {path.name for path in pictures.rglob("*.jpg")}) == before
    assert told(tmp_path) == [word]


def test_what_a_kill_leaves_is_swept_but_nothing_of_a_frame_with_a_label(tmp_path: Path) -> None:
    """Of frames 1 to 10 the odd ones are labelled."""
    kept(tmp_path)
    (day,) = (tmp_path / "pictures").iterdir()
    strays = {".000000011.jpg.k2j3h4_0.jpg": False, "000000011.jpg": False, "000000002.jpg": False}
    strays |= {".000000001.jpg.k2j3h4_0.jpg": False, "000000001.jpg": True, "of-somebody.jpg": True}
    with contextlib.closing(records.create(tmp_path)) as db:
        records.drop_pictures(db, [1, 2])
    for name in strays:
        (day / name).write_bytes(b"jpeg")
    for lost in (3, 4):
        (day / f"{lost:09d}.jpg").unlink()
    with recording(tmp_path):
        pass
    assert {name: (day / name).exists() for name in strays} == strays
    assert [row["frame"] for row in rows(tmp_path, "pictures")] == [3, 5, 6, 7, 8, 9, 10]
    words = told(tmp_path)
    assert words[0].startswith("1 pictures in") and words[1].startswith("1 of 8 kept pictures are not")


def test_pictures_of_records_that_are_gone_are_set_aside(tmp_path: Path) -> None:
    kept(tmp_path)
    for path in tmp_path.glob("records.db*"):
        path.write_bytes(b"")
    kept(tmp_path, 2)
    (aside,) = tmp_path.glob("damaged-*")
    assert len([*aside.rglob("*.jpg")]) == 10 and count(tmp_path, "pictures") == 2
    (word,) = told(tmp_path)
    assert str(aside) in word


def test_pictures_that_no_record_knows_and_that_cannot_be_set_aside_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted there."""
    kept(tmp_path)
    (tmp_path / "records.db").unlink()
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path == tmp_path / "pictures":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with recording(tmp_path) as recorder:
        for _ in range(3):
            recorder.frame(seen(), (said(), SPEC))
    with recording(tmp_path):
        pass
    assert len([*(tmp_path / "pictures").rglob("*.jpg")]) == 10 and len([*tmp_path.glob("damaged-*")]) == 1
    assert [word.partition(" ")[0] for word in told(tmp_path)[1:]] == ["10", "10"]


def test_records_on_a_disk_too_full_to_sweep_them_are_written_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path)
    monkeypatch.setattr(recorders, "_AGAIN_S", 0.05)

    def fail(*_: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(records, "drop_pictures", fail)
        (next((tmp_path / "pictures").rglob("000000002.jpg"))).unlink()
        with recording(tmp_path) as recorder:
            one = recorder.frame(seen(), (said(), SPEC))
            recorder.label(Label("click-011", one.id, "rust", "Ana", 6.0))
    assert count(tmp_path, "labels") == 6 and count(tmp_path, "pictures") == 10


def test_what_is_set_aside_stays_as_long_as_it_may_hold_labels(tmp_path: Path) -> None:
    """Else only the newest: a disk that goes on damaging would be full of them."""

    def damage(labels: bool, whole: bool = False, bounds: Bounds = LOOSE) -> Path:
        with recording(tmp_path) as recorder:
            one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg"))
            if labels:
                recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0))
        with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as db:
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'predictions'").fetchone()
        with (tmp_path / "records.db").open("r+b") as disk:
            disk.seek(0 if whole else 4096 * (page - 1))
            disk.write(b"\xff" * 4096)
        before = {*tmp_path.glob("damaged-*")}
        with recording(tmp_path, bounds):
            pass
        (new,) = {*tmp_path.glob("damaged-*")} - before
        return new

    (tmp_path / "damaged-of-somebody").mkdir()
    labelled, bare, unreadable = damage(True), damage(False), damage(False, whole=True)
    assert {*tmp_path.glob("damaged-*[0-9]")} == {labelled, unreadable}
    assert told(tmp_path)[-1] == f"{bare.name} was removed: it held no label"
    newest = damage(False, bounds=Bounds(free_bytes=10**18))
    assert {*tmp_path.glob("damaged-*[0-9]")} == {labelled, newest}
    assert told(tmp_path)[-1].startswith(f"{unreadable.name} was removed: the disk has no room")
    assert len([*labelled.rglob("*.jpg")]) == 1 and (tmp_path / "damaged-of-somebody").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_waited_for_and_a_label_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Here the file system's answers are given; tests/device/test_disks.py asks real ones."""
    refusing = threading.Event()
    write = files.write_bytes

    def refuse(path: Path, data: bytes) -> None:
        if refusing.is_set():
            raise OSError(number, os.strerror(number), str(path))
        write(path, data)

    monkeypatch.setattr(recorders, "_AGAIN_S", 0.05)
    monkeypatch.setattr(files, "write_bytes", refuse)
    with recording(tmp_path) as recorder:
        one = recorder.frame(seen(), (said(), SPEC))
        recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0))
        refusing.set()
        for _ in range(5):
            recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg"))
        with pytest.raises(StorageError, match="not recorded"):
            recorder.label(Label("click-002", one.id, "rust", "Ana", 6.0))
        assert recorder.trouble
        refusing.clear()
        settled(recorder)
        recorder.label(Label("click-002", one.id, "rust", "Ana", 6.0))
    assert count(tmp_path, "frames") == 6 and count(tmp_path, "pictures") == 5 and count(tmp_path, "labels") == 2


def test_what_waits_for_a_disk_is_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "_AGAIN_S", 0.05)
    monkeypatch.setattr(recorders, "_WAITING", 100)
    with recording(tmp_path) as recorder:
        recorder.frame(seen(), None)
        settled(recorder)
        holder = sqlite3.connect(tmp_path / "records.db", timeout=0)
        holder.execute("BEGIN IMMEDIATE")  # as a writer that is none of ours
        for _ in range(1500):
            recorder.frame(seen(), (said(), SPEC))
        assert recorder.health()["waiting"] <= 100 + 500
        holder.execute("ROLLBACK")
        holder.close()
        settled(recorder)
        dropped = recorder.dropped
    assert dropped > 0 and count(tmp_path, "frames") == 1501 - dropped


def test_a_jump_of_the_clock_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with recording(tmp_path) as recorder:
        monkeypatch.setattr(time, "time", lambda: now() + 3600)
        recorder.frame(seen(), (said(), SPEC))
        recorder.frame(seen(), (said(), SPEC))
        settled(recorder)
        monkeypatch.undo()
    first = rows(tmp_path, "events")[0]
    assert (first["key"], first["value"]) == ("clock", "+3600.0 s")


_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from device.test_recorder import *
recorder = Recorder(Path(sys.argv[1]), LOOSE)
number = 0
while True:
    one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg" * 500) if number % 3 == 0 else None)
    if number % 5 == 0:
        key = f"click-{one.id:06d}"
        recorder.label(Label(key, one.id, "rust", "Ana", 6.0))
        print(key, flush=True)
    number += 1
"""


@pytest.mark.torture
def test_killed_at_any_moment_it_has_every_label_that_it_acknowledged(tmp_path: Path) -> None:
    """And the database is whole, and every picture's row has its picture."""
    acknowledged: list[str] = []
    for kill in range(4 * int(os.environ.get("AGRIKD_TORTURE") or 1)):
        words = [sys.executable, "-c", _WRITER, str(tmp_path), str(Path(__file__).parents[1])]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            acknowledged += [writer.stdout.readline().strip() for _ in range(1 + kill * 7 % 23)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += writer.stdout.read().split("\n")[:-1]
        with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert set(acknowledged) <= {row["key"] for row in rows(tmp_path, "labels")} and len(acknowledged) > 20
    for row in rows(tmp_path, "pictures"):
        assert files.sha256_of(tmp_path / row["file"]) == row["sha256"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad"), sqlite3.OperationalError("disk I/O error")])
def test_room_that_cannot_be_made_costs_nothing_that_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(records, "oldest_unlabelled", fail)
    with recording(tmp_path, Bounds(quota_bytes=10, free_bytes=0)) as recorder:
        for number in range(5):
            one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg" * 10))
            recorder.label(Label(f"click-{number:03d}", one.id, "rust", "Ana", 6.0))
        assert recorder.alive and recorder.dropped == 0
    assert count(tmp_path, "frames") == count(tmp_path, "labels") == 5


NONSENSE = [{"latency_ms": 10**30}, {"t": float("nan")}, {"value": float("inf")}, {"probabilities": [0.5, None]}]


@pytest.mark.parametrize("more", NONSENSE)
def test_an_answer_that_is_nonsense_is_none(more: dict[str, Any]) -> None:
    good = asdict(said())
    assert Opinion.from_json(good) == said()
    with pytest.raises((TypeError, ValueError)):
        Opinion.from_json({**good, **more})


def test_whatever_goes_wrong_with_one_entry_is_its_own_affair(tmp_path: Path) -> None:
    """Also where somebody handed over what no check has seen."""
    with recording(tmp_path) as recorder:
        for odd in (replace(said(), latency_ms=10**30), replace(said(), model="\ud800"), replace(said(), top=None)):
            recorder.frame(seen(), (odd, SPEC))  # type: ignore[arg-type]
            recorder.frame(seen(), (said(), SPEC))
        with pytest.raises(InputError, match="key: is no plain text"):
            recorder.label(Label(5, 2, "rust", "Ana", 6.0))  # type: ignore[arg-type]
        settled(recorder)
        assert recorder.alive and recorder.dropped == 3
        with pytest.raises(InputError, match="a key of its own"):
            for label in ("rust", "healthy"):
                recorder.label(Label("click-001", 2, label, "Ana", 6.0))
    assert count(tmp_path, "frames") == 3 and count(tmp_path, "labels") == 1


def test_a_label_that_came_too_late_for_its_asker_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "_PATIENCE_S", 0.3)
    with recording(tmp_path) as recorder:
        one = recorder.frame(seen(), (said(), SPEC))
        settled(recorder)
        holder = sqlite3.connect(tmp_path / "records.db", timeout=0)
        holder.execute("BEGIN IMMEDIATE")
        recorder.frame(seen(), (said(), SPEC))
        wait(lambda: recorder._in_hand == 1)
        with pytest.raises(StorageError, match="it is not recorded"):
            recorder.label(Label("click-001", one.id, "rust", "Ana", 6.0))
        holder.execute("ROLLBACK")
        holder.close()
        settled(recorder)
        monkeypatch.setattr(recorders, "_PATIENCE_S", 10.0)
    assert count(tmp_path, "labels") == 0 and count(tmp_path, "frames") == 2


def test_records_that_vanish_or_break_while_it_runs_begin_anew(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        first = recorder.frame(seen(), (said(), SPEC))
        settled(recorder)
        for path in tmp_path.glob("records.db*"):
            path.unlink()
        second = recorder.frame(seen(), (said(), SPEC))
        recorder.label(Label("click-001", second.id, "rust", "Ana", 6.0))
        assert [row["id"] for row in rows(tmp_path, "frames")] == [second.id] and second.id > first.id
        with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with (tmp_path / "records.db").open("r+b") as disk:  # under its feet, in the same file
            disk.write(b"no database at all" * 3000)
        third = recorder.frame(seen(), (said(), SPEC))
        settled(recorder, 30)
        recorder.label(Label("click-002", third.id, "rust", "Ana", 6.0))
    assert third.id in [row["id"] for row in rows(tmp_path, "frames")]


def test_records_of_a_later_agrikd_are_left_alone_and_the_rest_goes_on(tmp_path: Path) -> None:
    with contextlib.closing(records.create(tmp_path)) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with recording(tmp_path) as recorder:
        shown = recorder.frame(seen(), (said(), SPEC))
        assert shown.id > 0 and "form 99" in recorder.trouble and recorder.dropped == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as db:
        assert db.execute("SELECT COUNT(*) FROM frames").fetchone() == (0,)


def wait(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
