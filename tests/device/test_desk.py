"""What the agent says of a frame to who looks, and what it keeps because of what the teacher said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serve_kit import CLASSES, SPEC, opinion, recording, rows_here, until

from agrikd.device.desk import Desk
from agrikd.device.recorder import Recorder
from agrikd.device.watch import Ring, Shown, Watch
from agrikd.records import NOT_A_PLANT, Label, Opinion, Seen
from agrikd.types import Calibration, ModelSpec, Scale

NUMBERS = ModelSpec("area", "regression", ("0 to 2", "2 to 4", "4 to 6"), (8, 8), scale=Scale(0, 6, "%"))


class Looking:
    """A camera's loop as the desk knows it, with the frames that somebody looks at."""

    def __init__(self, recorder: Recorder) -> None:
        self.eye, self.ring, self._on_hold = SimpleNamespace(name="north"), Ring(), Ring()
        self._recorder = recorder
        self.newest: Shown | None = None
        self.kept: list[tuple[int, str]] = []

    def see(self, said: Opinion, spec: ModelSpec) -> int:
        said = replace(said, model=spec.name)
        seen = self._recorder.frame(Seen(0, said.t, "north"), (said, spec))
        until(lambda: any(row["id"] == seen.id for row in rows_here(self._recorder.folder)["frames"]))
        self.newest = Shown(seen, b"\xff\xd8", said, said.probabilities, spec)
        self.ring.add(self.newest)
        return seen.id

    held = Watch.held

    def keep(self, shown: Shown, why: str) -> None:
        self.kept.append((shown.seen.id, why))

    def next(self, after: int, timeout_s: float) -> Shown | None:
        return self.newest


@pytest.fixture
def looking(tmp_path: Path) -> Iterator[tuple[Looking, Desk]]:
    with recording(tmp_path) as recorder:
        watch = Looking(recorder)
        yield watch, Desk({"north": watch}, recorder, asks=True)  # type: ignore[dict-item]


def second(desk: Desk, frame: int, said: Opinion, spec: ModelSpec) -> dict[str, Any]:
    """What the stream says, once the teacher has answered."""
    teacher = replace(said, role="teacher", model="large")
    assert desk.verbs["opinion"]({"frame": frame, "spec": spec.to_json(), "opinion": asdict(teacher)})[0]["done"]
    return desk.verbs["next"]({"camera": "north", "after": 0})[0]


@pytest.mark.parametrize(
    ("student", "teacher", "kept"),
    [
        ({"top": 0}, {"top": 0}, False),
        ({"top": 0}, {"top": 1}, True),
        ({"top": 0, "unknown": True}, {"top": 0}, True),
        ({"top": 0}, {"top": 0, "unknown": True}, True),
        ({"top": 0, "unknown": True}, {"top": 2, "unknown": True}, False),
    ],
)
def test_a_frame_on_which_the_two_differ_is_kept(
    looking: tuple[Looking, Desk], student: dict[str, Any], teacher: dict[str, Any], kept: bool
) -> None:
    """Whatever is likeliest of what is no plant means nothing."""
    watch, desk = looking
    frame = watch.see(replace(opinion(), **student), SPEC)
    second(desk, frame, replace(opinion(), **teacher), SPEC)
    assert watch.kept == ([(frame, "disagreement")] if kept else [])


def test_two_bins_of_a_number_are_no_disagreement(looking: tuple[Looking, Desk]) -> None:
    watch, desk = looking
    frame = watch.see(replace(opinion(), top=1, value=3.2, interval=(2.0, 4.5)), NUMBERS)
    said = second(desk, frame, replace(opinion(), top=2, value=4.1), NUMBERS)
    assert watch.kept == []
    assert said["scale"] == said["second"]["scale"] == asdict(Scale(0, 6, "%"))
    assert said["student"]["value"] == 3.2 and said["second"]["teacher"]["value"] == 4.1


def test_how_often_the_candidates_hold_the_truth_is_said(looking: tuple[Looking, Desk]) -> None:
    watch, desk = looking
    for calibration in (None, Calibration(1.0, 0.5, 0.2, 0.1, 0.8, None, 0.95, 100, "val")):
        watch.see(opinion(), replace(SPEC, calibration=calibration))
        said = desk.verbs["next"]({"camera": "north", "after": 0})[0]
        assert said["coverage"] == (calibration and 0.8) and said["scale"] is None


def test_there_is_nobody_to_ask_without_a_teacher(looking: tuple[Looking, Desk], tmp_path: Path) -> None:
    watch, desk = looking
    frame = watch.see(opinion(), SPEC)
    alone = Desk({"north": watch}, watch._recorder, asks=False)  # type: ignore[dict-item]
    assert "there is no teacher" in alone.verbs["ask"]({"frame": frame})[0]["failed"] and watch.kept == []
    assert desk.verbs["ask"]({"frame": frame})[0] == {"done": True} and watch.kept == [(frame, "button")]


def test_what_is_on_hold_can_be_judged_when_the_ring_has_lost_it(looking: tuple[Looking, Desk]) -> None:
    watch, desk = looking
    first, second = watch.see(opinion(), SPEC), watch.see(opinion(), SPEC)
    said, jpeg = desk.verbs["hold"](first)
    assert said == {"frame": first} and jpeg == b"\xff\xd8"
    watch.ring = Ring()
    assert desk.verbs["frame"](second)[0] == {"absent": True}
    for number, frame in enumerate((first, second)):
        said = desk.verbs["label"](asdict(Label(f"key-{number}", frame, CLASSES[0], "Ana", 1.8e9)))[0]
        assert said.keys() == ({"done"} if frame == first else {"failed"})


def test_a_label_is_a_class_and_no_bin_of_a_number(looking: tuple[Looking, Desk]) -> None:
    watch, desk = looking
    for spec in (SPEC, NUMBERS):
        frame = watch.see(opinion(), spec)

    def label(name: str) -> dict[str, Any]:
        return desk.verbs["label"](asdict(Label(f"key-{name}", frame, name, "Ana", 1.8e9)))[0]

    assert label(CLASSES[0]).keys() == label(NOT_A_PLANT).keys() == {"done"}
    known = label(NUMBERS.classes[0])["failed"].partition("there are: ")[2].split(", ")
    assert known[:3] == list(CLASSES) and not set(known) & set(NUMBERS.classes)
