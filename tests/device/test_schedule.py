"""When a picture is due, by the clock and by the sun."""

from __future__ import annotations

import calendar
import math
import time
from collections.abc import Iterator

import pytest

from agrikd.device.schedule import Schedule
from agrikd.errors import InputError

LONDON, SYDNEY, TROMSOE, QUITO = (51.507, -0.128), (-33.868, 151.207), (69.649, 18.956), (-0.18, -78.47)


def at(words: str) -> float:
    """A time in UTC."""
    return float(calendar.timegm(time.strptime(words, "%Y-%m-%d %H:%M")))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def test_each_frame() -> None:
    assert Schedule().due(1e9, None) and Schedule().due(1e9, 1e9) and Schedule().pause_s(1e9) == 0


def test_every_so_often() -> None:
    each = Schedule(60)
    assert each.due(1000, None) and each.due(1000, -math.inf) and each.due(1060, 1000)
    assert not each.due(1059.9, 1000)
    assert each.due(900, 1000), "the clock was set back"


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("06:00-20:00", ("06:00", "12:34", "19:59"), ("05:59", "20:00", "23:59", "00:00")),
        ("20:00-06:00", ("20:00", "23:59", "00:00", "05:59"), ("06:00", "12:00", "19:59")),
        (" 6:30 – 24:00", ("06:30", "23:59"), ("00:00", "06:29")),
    ],
)
def test_hours(hours: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    schedule = Schedule(0, hours)
    assert all(schedule.within(at(f"2025-03-03 {clock}")) for clock in inside)
    assert not any(schedule.within(at(f"2025-03-03 {clock}")) for clock in outside)
    assert not any(schedule.due(at(f"2025-03-03 {clock}"), None) for clock in outside)


def test_hours_are_local(utc: pytest.MonkeyPatch) -> None:
    utc.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
    time.tzset()
    schedule = Schedule(0, "06:00-20:00")
    assert schedule.within(at("2025-01-15 11:00")) and not schedule.within(at("2025-01-15 10:59"))
    assert schedule.within(at("2025-07-15 10:00")) and not schedule.within(at("2025-07-15 09:59"))


def test_the_pause() -> None:
    assert Schedule(0, "06:00-20:00").pause_s(at("2025-03-03 20:00")) == 10 * 3600
    assert Schedule(0, "06:00-20:00").pause_s(at("2025-03-03 05:00")) == 3600
    assert Schedule(0, "06:00-20:00").pause_s(at("2025-03-03 07:00")) == 0
    sun = Schedule(0, "daylight", *LONDON)
    assert sun.pause_s(at("2024-06-21 12:00")) == 0
    assert 2.5 * 3600 < sun.pause_s(at("2024-06-21 01:00")) < 3 * 3600
    assert Schedule(0, "daylight", *TROMSOE).pause_s(at("2024-12-21 00:00")) == 86400


@pytest.mark.parametrize(
    ("place", "day", "rise", "set_"),
    [  # almanacs, to the minute, in UTC
        (LONDON, "2024-06-21", "03:43", "20:22"),
        (LONDON, "2024-12-21", "08:04", "15:54"),
        (SYDNEY, "2024-12-21", "18:41", "09:05"),
        (QUITO, "2024-03-20", "11:18", "23:24"),
    ],
)
def test_daylight(place: tuple[float, float], day: str, rise: str, set_: str) -> None:
    schedule = Schedule(0, "daylight", *place)
    for clock, later in ((rise, True), (set_, False)):
        assert schedule.within(at(f"{day} {clock}") + 180) is later
        assert schedule.within(at(f"{day} {clock}") - 180) is not later


def test_polar_day_and_night() -> None:
    schedule = Schedule(0, "daylight", *TROMSOE)
    for month, up in ((6, True), (12, False)):
        assert {schedule.within(at(f"2024-{month:02}-21 {hour:02}:00")) for hour in range(24)} == {up}
    for latitude in (90.0, -90.0):
        pole = Schedule(0, "daylight", latitude, 0.0)
        assert pole.within(at("2024-06-21 00:00")) is (latitude > 0)


def test_all_mistakes_in_one_report() -> None:
    with pytest.raises(InputError) as caught:
        Schedule(-1, "daylight", 91, None, where="cameras.0")
    assert [problem.where for problem in caught.value.problems] == [
        "cameras.0.every_s",
        "cameras.0.latitude",
        "cameras.0.longitude",
    ]
    assert all(problem.mend for problem in caught.value.problems)


@pytest.mark.parametrize(
    "hours", ["day", "6-20", "06:00", "06:00-06:00", "24:00-06:00", "06:00-24:01", "06:60-20:00", "06:00-20:00 h", " "]
)
def test_what_are_no_hours(hours: str) -> None:
    with pytest.raises(InputError, match=r"schedule\.hours"):
        Schedule(0, hours)


@pytest.mark.parametrize("every_s", [-0.1, math.inf, math.nan])
def test_what_is_no_interval(every_s: float) -> None:
    with pytest.raises(InputError, match=r"schedule\.every_s"):
        Schedule(every_s)
