"""The loop behind a camera: what is asked, kept, shown and left alone. Camera and model are stand-ins."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device.test_recorder import rows, settled

from agrikd.device.camera import Frame
from agrikd.device.recorder import Bounds, Recorder
from agrikd.device.schedule import Schedule
from agrikd.device.watch import Eye, Keeping, Ring, Shown, Smoothing, Watch, _rate
from agrikd.records import Opinion, Place, Seen
from agrikd.types import ModelSpec

SPEC = ModelSpec("leaf", "classification", ("rust", "healthy"), (8, 8))
SAID = Opinion("m", "student", 0.0, 1.0, 0, (0.9, 0.1), (0,), unsure=False, unknown=False)


class StandIn:
    """A camera that has one frame after the other, and a model that says of each what it should."""

    def __init__(self, said: list[Opinion | None], quality: tuple[str, ...] = ()) -> None:
        self.said, self.quality, self.asked, self.closed = said, quality, 0, 0
        self.model = ("m", SPEC)
        self.waiting = threading.Event()

    def next(self, after: int, timeout_s: float) -> Frame | None:
        if after >= len(self.said):
            self.waiting.set()
            time.sleep(0.01)
            return None
        picture, now = np.zeros((4, 6, 3), np.uint8), time.monotonic()
        return Frame(after + 1, 1.8e9 + after, now, picture, b"jpeg", self.quality)

    def predict(self, pixels: int, shape: tuple[int, int], t: float) -> tuple[Opinion, ModelSpec] | None:
        assert shape == (4, 6)
        said = self.said[self.asked]
        self.asked += 1
        return (replace(said, t=t), SPEC) if said else None

    def fileno(self) -> int:
        return 9

    def health(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.closed += 1

    def stop(self) -> None:
        pass


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    one = Recorder(tmp_path, Bounds(free_bytes=0))
    yield one
    one.stop()


def looked(one: StandIn, recorder: Recorder, asks: bool = True, **more: Any) -> Watch:
    """After all of its frames."""
    eye = Eye("row-7", one, Place("north"), Schedule())  # type: ignore[arg-type]
    watch = Watch(eye, one, recorder, Keeping(**{"audit_share": 0.0, **more}), asks)  # type: ignore[arg-type]
    watch.start()
    assert one.waiting.wait(20)
    watch.stop.set()
    watch.join(10)
    settled(recorder)
    return watch


def test_a_frame_without_an_answer_is_recorded_without_one(recorder: Recorder) -> None:
    looked(StandIn([SAID, None, SAID]), recorder)
    assert [row["id"] for row in rows(recorder.folder, "frames")] == [1, 2, 3]
    assert [row["frame"] for row in rows(recorder.folder, "predictions")] == [1, 3]
    assert [row["name"] for row in rows(recorder.folder, "models")] == ["m"]


def test_of_a_bad_picture_the_model_is_not_asked(recorder: Recorder) -> None:
    one = StandIn([SAID] * 3, quality=("dark",))
    watch = looked(one, recorder)
    assert one.asked == 0 and {row["quality"] for row in rows(recorder.folder, "frames")} == {"dark"}
    shown = watch.next(0, 0.1)
    assert shown and shown.said is None and shown.smoothed is None and shown.seen.id == 3


def test_doubt_is_kept_now_and_then_and_asked_about_where_there_is_a_teacher(recorder: Recorder) -> None:
    doubt, strange = replace(SAID, unsure=True), replace(SAID, unsure=True, unknown=True)
    looked(StandIn([SAID, doubt, doubt, strange, strange, doubt]), recorder)
    kept = {row["frame"]: row["why"] for row in rows(recorder.folder, "pictures")}
    assert kept == {2: "doubt", 4: "not a plant"}
    looked(StandIn([doubt, doubt]), recorder, pause_s=0.0, asks=False)
    assert len(rows(recorder.folder, "pictures")) == 4
    with sqlite3.connect(recorder.folder / "records.db") as db:
        assert db.execute("SELECT frame, why FROM asks ORDER BY frame").fetchall() == [(2, "doubt"), (4, "not a plant")]


def test_the_audit_is_a_random_share_that_doubt_does_not_bend(recorder: Recorder) -> None:
    doubt = replace(SAID, unsure=True)
    looked(StandIn([SAID, doubt] * 1500), recorder, audit_share=0.1)
    drawn = [row["id"] for row in rows(recorder.folder, "frames") if row["audit"] is not None]
    assert 240 <= len(drawn) <= 360  # four standard deviations
    assert 0.35 <= sum(one % 2 for one in drawn) / len(drawn) <= 0.65
    kept = {row["frame"] for row in rows(recorder.folder, "pictures") if row["why"] == "audit"}
    assert kept == set(drawn) and {row["audit"] for row in rows(recorder.folder, "frames")} == {None, 0.1}


def test_outside_its_hours_it_rests_unless_somebody_watches(recorder: Recorder) -> None:
    class Night(Schedule):
        def due(self, now: float, last: float | None) -> bool:
            return False

        def pause_s(self, now: float) -> float:
            return 3600.0

    one = StandIn([SAID] * 3)
    eye = Eye("row-7", one, Place(), Night())  # type: ignore[arg-type]
    watch = Watch(eye, one, recorder, Keeping(0.0), False)  # type: ignore[arg-type]
    watch.start()
    while not one.closed:
        time.sleep(0.01)
    assert one.asked == 0
    assert watch.next(0, 5.0)
    watch.stop.set()
    watch.join(10)


def test_what_is_seen_because_somebody_watches_is_no_part_of_the_audit(recorder: Recorder) -> None:
    """A picture a day is wanted; the others are there for who looks, and no later one waits because of them."""
    one, last = StandIn([SAID] * 50), []

    class Seldom(Schedule):
        def due(self, now: float, before: float | None) -> bool:
            last.append(before)
            return one.asked in (0, 30)

    eye = Eye("row-7", one, Place(), Seldom(every_s=86_400.0))  # type: ignore[arg-type]
    watch = Watch(eye, one, recorder, Keeping(1.0), False)  # type: ignore[arg-type]
    watch.next(0, 0.0)
    watch.start()
    assert one.waiting.wait(20)
    watch.stop.set()
    watch.join(10)
    settled(recorder)
    drawn = [row["id"] for row in rows(recorder.folder, "frames") if row["audit"] is not None]
    assert drawn == [1, 31] and set(last) == {-math.inf, 1.8e9, 1.8e9 + 30}
    assert watch.health()["every_s"] == 86_400.0


def test_a_camera_that_gives_nothing_more_has_no_rate() -> None:
    times = [float(t) / 10 for t in range(60)]
    assert _rate(times, 5.9) == _rate(times, 6.1) == pytest.approx(10)
    assert _rate(times, 12.0) == pytest.approx(5, abs=0.3) and _rate(times, 3600.0) < 0.05
    assert _rate([1.0], 1.0) == _rate([], 1.0) == 0


def test_a_frame_on_hold_outlives_the_ring(recorder: Recorder) -> None:
    watch = Watch(None, None, recorder, Keeping(), False)  # type: ignore[arg-type]

    def seen(number: int) -> Shown:
        return Shown(Seen(number, 0.0, "c"), bytes(2**20), None, None, None)

    for number in range(100):
        watch.ring.add(seen(number))
        if number in (5, 6, 50):
            assert watch.held(number, hold=True)
    assert [n for n in range(100) if watch.held(n)] == [5, 6, 50, *range(68, 100)]
    watch.held(5, hold=True)
    for number in range(80, 94):
        watch.held(number, hold=True)
    assert [n for n in range(68) if watch.held(n)] == [5, 50]  # the last sixteen


def test_smoothing_is_an_exponential_mean_over_time_and_begins_anew_with_a_model() -> None:
    smoothing = Smoothing()
    first = replace(SAID, t=10.0, probabilities=(1.0, 0.0))
    assert smoothing.add(first) == (1.0, 0.0)
    second = smoothing.add(replace(first, t=11.0, probabilities=(0.0, 1.0)))
    assert second == pytest.approx((math.exp(-1), 1 - math.exp(-1)), abs=1e-5)
    assert smoothing.add(replace(first, t=12.0, model="n", probabilities=(0.5, 0.5))) == (0.5, 0.5)
    assert smoothing.add(replace(first, t=3.0, model="n", probabilities=(0.9, 0.1))) == (
        0.9,
        0.1,
    )  # the clock went back
    assert smoothing.add(replace(first, t=4.0, model="n", probabilities=(0.2, 0.3, 0.5))) == (0.2, 0.3, 0.5)


def test_the_ring_is_bounded_by_bytes_and_keeps_the_newest() -> None:
    ring = Ring(most_bytes=1000)
    for number in range(100):
        ring.add(Shown(Seen(number, 0.0, "c"), bytes(90), None, None, None))
    assert [number for number in range(100) if ring.get(number)] == list(range(89, 100))
    ring.add(Shown(Seen(100, 0.0, "c"), bytes(5000), None, None, None))
    assert ring.get(100) and ring.get(99) is None
