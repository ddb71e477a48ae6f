"""When to take a picture: all the time, every so often, within hours of the day, or while the sun is up."""

from __future__ import annotations

import math
import re
import time

from agrikd.errors import InputError, Problem

_DAY_MIN, _DAY_S = 24 * 60, 86400.0
_STEP_S = 300.0
_SUNRISE_DEG = -0.833
"""Of the sun's centre: its upper edge stands in the horizon, lifted by the air's refraction (USNO, "Rise, Set, and
Twilight Definitions")."""


class Schedule:
    """When to take a picture; raises `InputError` with every mistake, at `where`.

    every_s: seconds from a picture to the next; 0 takes each that comes. hours: as "06:00-20:00" by the local clock,
    over midnight as "20:00-06:00" too, "daylight" while the sun is up at latitude and longitude (degrees, north
    and east positive), or "" for the whole day.
    """

    def __init__(
        self,
        every_s: float = 0.0,
        hours: str = "",
        latitude: float | None = None,
        longitude: float | None = None,
        where: str = "schedule",
    ) -> None:
        self.every_s, self._window = every_s, _window(hours)
        self._place: tuple[float, float] | None = None
        problems = [] if 0 <= every_s < math.inf else [Problem(f"{where}.every_s", f"is {every_s!r}", "0 or more")]
        if hours == "daylight":
            limits = ("latitude", latitude, 90), ("longitude", longitude, 180)
            problems += [
                Problem(f"{where}.{key}", f"is {value!r}", f"daylight needs it, in degrees from -{most} to {most}")
                for key, value, most in limits
                if value is None or not -most <= value <= most
            ]
            if latitude is not None and longitude is not None:
                self._place = latitude, longitude
        elif hours and not self._window:
            problems.append(Problem(f"{where}.hours", f"is {hours!r}", 'such as "06:00-20:00" or "daylight"'))
        if problems:
            raise InputError(problems)

    def due(self, now: float, last: float | None) -> bool:
        """Whether to take a picture. now, last: seconds since 1970; a clock that was set back delays nothing."""
        return self.within(now) and (last is None or not 0 <= now - last < self.every_s)

    def within(self, now: float) -> bool:
        """Whether pictures are taken at that time of day."""
        if self._place:
            return sun_deg(now, *self._place) > _SUNRISE_DEG
        if self._window is None:
            return True
        minute, (begin, end) = _minute(now), self._window
        return begin <= minute < end if begin < end else minute >= begin or minute < end

    def pause_s(self, now: float) -> float:
        """Seconds until pictures are taken again, 0 if they are now; to five minutes, a day at most."""
        if self.within(now):
            return 0.0
        if self._window:
            return 60.0 * ((self._window[0] - _minute(now)) % _DAY_MIN)
        steps = (number * _STEP_S for number in range(1, int(_DAY_S / _STEP_S)))
        return next((step for step in steps if self.within(now + step)), _DAY_S)


def sun_deg(now: float, latitude: float, longitude: float) -> float:
    """How high the sun's centre stands, in degrees, without the air's refraction.

    By the US Naval Observatory's "Approximate Solar Coordinates" and "Approximate Sidereal Time"
    (aa.usno.navy.mil/faq/sun_approx and /gast): within 0.02 degrees, from 1800 to 2200.
    """
    days = now / 86400 - 10957.5  # since noon of 2000-01-01
    anomaly = math.radians(357.529 + 0.98560028 * days)
    along = math.radians(280.459 + 0.98564736 * days + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    tilt = math.radians(23.439 - 0.00000036 * days)
    ascension = math.atan2(math.cos(tilt) * math.sin(along), math.cos(along))
    declination = math.asin(math.sin(tilt) * math.sin(along))
    sidereal = math.radians(15 * (18.697375 + 24.065709824279 * days))
    hour_angle, north = sidereal + math.radians(longitude) - ascension, math.radians(latitude)
    height = math.sin(north) * math.sin(declination)
    height += math.cos(north) * math.cos(declination) * math.cos(hour_angle)
    return math.degrees(math.asin(max(-1.0, min(1.0, height))))


def _window(hours: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"\s*(\d\d?):(\d\d)\s*[-–]\s*(\d\d?):(\d\d)\s*", hours, re.ASCII)
    if not found or int(found[2]) > 59 or int(found[4]) > 59:
        return None
    begin, end = 60 * int(found[1]) + int(found[2]), 60 * int(found[3]) + int(found[4])
    return (begin, end) if begin != end and begin < _DAY_MIN and end <= _DAY_MIN else None


def _minute(now: float) -> int:
    clock = time.localtime(now)
    return 60 * clock.tm_hour + clock.tm_min
