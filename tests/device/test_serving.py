"""What dies is started again, each time later, whatever lived before."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from agrikd.device import serving
from agrikd.device.serving import Serving
from agrikd.errors import DeviceError


class Clock:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Worker:
    """Can answer at once, until it dies."""

    backend, pid, spec = "stand-in", 7, None

    def __init__(self) -> None:
        self.dead = False

    def ready(self) -> bool:
        return True

    def watch(self) -> None:
        if self.dead:
            raise DeviceError("it has died")

    def stop(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(serving, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_what_cannot_start_again_is_tried_ever_less_often_though_it_served_for_hours(clock: Clock) -> None:
    workers: list[Worker] = []
    starts: list[float] = []

    def start(_: str) -> Any:
        starts.append(clock.now)
        if len(starts) > 1:
            raise DeviceError("no memory")
        workers.append(Worker())
        return workers[0]

    one = Serving(lambda: "leaf", start, lambda name, why: None)
    for _ in range(3):
        one.follow()
    assert one.health()["serving"] == "leaf"
    clock.now += 7200
    workers[0].dead = True
    for _ in range(3000):
        one.follow()
        clock.now += 0.1
    gaps = [round(b - a) for a, b in pairwise(starts[1:])]
    assert gaps[:4] == [2, 4, 8, 16] and max(gaps) == 30 and one.health()["failures"] == len(starts)


def test_what_served_for_a_while_begins_again_with_the_shortest_pause(clock: Clock) -> None:
    workers: list[Worker] = []

    def start(_: str) -> Any:
        workers.append(Worker())
        return workers[-1]

    one = Serving(lambda: "leaf", start, lambda name, why: None)
    for lived, failures in ((1, 1), (1, 2), (61, 1), (1, 2)):
        for _ in range(200):
            one.follow()
            if one.health()["serving"]:
                break
            clock.now += 0.1
        clock.now += lived
        workers[-1].dead = True
        one.follow()
        assert one.health()["failures"] == failures
