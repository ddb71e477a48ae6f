"""How a device is, as its heartbeat says: what it sees, how warm and how full it is, and what a person should look at.

A heartbeat came from somebody's device, and from a later or an older agrikd: whatever is not what was expected counts
as not said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

HOT_C, LITTLE_SHARE, OLD_S, FAILURES = 85.0, 0.05, 120.0, 2
"""From here on a person should look: the hottest zone, what is free of memory or disk, the newest frame's age, how
often in a row something beside the agent ended."""
_TEXT, _CAMERAS, _AIDES = 300, 64, 8
_MOST = 1e15
LAST_T = 2.0**33
"""The year 2242: no clock says more."""
_UNITS = ("d", 86_400), ("h", 3600), ("min", 60)


@dataclass(frozen=True)
class Eye:
    """A camera. state: "live", "opening", "lost" or "closed"; why, in the device's words. fps: of frames that the model
    has seen. every_s: between two pictures, 0 as many as come. frame: the newest one's id; age_s: how old it is. None
    where the device does not say."""

    name: str
    state: str
    why: str
    fps: float | None
    every_s: float | None
    frame: int | None
    age_s: float | None


@dataclass(frozen=True)
class Wrong:
    """Something to look at. what: "agent", "model", "lost", "old", "aide", "said", "expired", "hot", "disk", "memory",
    "dropped" or "twin". name: of the camera, or of what runs beside the agent. why: in the device's words; of "expired"
    the day. number: °C, seconds, the share that is free, or how many frames."""

    what: str
    name: str = ""
    why: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class Condition:
    """None or empty where the device does not say. wanted: what should serve. memory, disk: the shares that are free.
    waiting, dropped: frames that its disk has not taken yet, and that it never got. release: name and version of what
    it was given to serve; expired: the last day that this was meant for, where it has gone by. aides: what keeps ending
    beside the agent, and why. troubles: in its own words."""

    answers: bool
    serving: str = ""
    wanted: str = ""
    backend: str = ""
    why: str = ""
    eyes: tuple[Eye, ...] = ()
    celsius: float | None = None
    memory: float | None = None
    disk: float | None = None
    disk_free_bytes: float | None = None
    load: float | None = None
    uptime_s: float | None = None
    rows: float | None = None
    waiting: float | None = None
    dropped: float | None = None
    release: str = ""
    expired: str = ""
    aides: tuple[tuple[str, str], ...] = ()
    troubles: tuple[str, ...] = ()

    @classmethod
    def of(cls, said: object) -> Condition:
        """Of a heartbeat's vitals: `vitals.read`, "agent" for its health, "sync" for what hinders the sending."""
        agent, records, zones = at(said, "agent"), at(said, "agent", "records"), at(said, "celsius")
        cameras, load = at(agent, "cameras"), at(said, "load")
        warm = map(number, zones.values()) if isinstance(zones, dict) else ()
        troubles = map(text, (at(agent, "trouble"), at(records, "trouble"), at(said, "sync")))
        return cls(
            answers=isinstance(agent, dict),
            serving=text(at(agent, "serving")),
            wanted=text(at(agent, "wanted")),
            backend=text(at(agent, "backend")),
            why=text(at(agent, "why")),
            eyes=tuple(_eye(*one) for one in [*cameras.items()][:_CAMERAS]) if isinstance(cameras, dict) else (),
            celsius=max((one for one in warm if one is not None), default=None),
            memory=_share(at(said, "memory_free_mib"), at(said, "memory_mib")),
            disk=_share(at(said, "disk_free_bytes"), at(said, "disk_bytes")),
            disk_free_bytes=number(at(said, "disk_free_bytes")),
            load=number(load[0]) if isinstance(load, list) and load else None,
            uptime_s=number(at(said, "uptime_s")),
            rows=number(at(records, "rows")),
            waiting=number(at(records, "waiting")),
            dropped=number(at(records, "dropped")),
            release=" ".join(filter(None, (text(at(agent, "release", key)) for key in ("name", "version")))),
            expired=text(at(agent, "release", "expired")),
            aides=tuple(_failing(at(agent, "aides"))),
            troubles=tuple(filter(None, troubles)),
        )

    @property
    def fps(self) -> float | None:
        """Of all cameras together."""
        known = [eye.fps for eye in self.eyes if eye.fps is not None]
        return sum(known) if known else None

    @property
    def wrong(self) -> list[Wrong]:
        """What a person should look at, the worst first."""
        found = [] if self.answers else [Wrong("agent")]
        if self.answers and not self.serving:
            found.append(Wrong("model", why=self.why))
        found += [Wrong("lost", eye.name, eye.why) for eye in self.eyes if eye.state == "lost"]
        live = [(eye, eye.age_s or 0.0) for eye in self.eyes if eye.state == "live"]
        found += [
            Wrong("old", eye.name, number=age_s) for eye, age_s in live if age_s > max(OLD_S, 3 * (eye.every_s or 0.0))
        ]
        found += [Wrong("aide", name, why) for name, why in self.aides]
        found += [Wrong("said", why=words) for words in self.troubles]
        found += [Wrong("expired", why=self.expired)] if self.expired else []
        if self.celsius is not None and self.celsius >= HOT_C:
            found.append(Wrong("hot", number=self.celsius))
        for what, free in (("disk", self.disk), ("memory", self.memory)):
            if free is not None and free < LITTLE_SHARE:
                found.append(Wrong(what, number=free))
        return [*found, Wrong("dropped", number=self.dropped)] if self.dropped else found


def age(seconds: float) -> tuple[int, str]:
    """How long ago, in the largest unit of which there are two: (3, "h"). Units: "d", "h", "min" and "s"."""
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return int(seconds // length), unit
    return max(0, round(seconds)), "s"


def clock(t: object) -> str:
    """When that was by this machine's clock, to the second; empty for what is no time within reason."""
    known = number(t)
    return f"{datetime.fromtimestamp(known):%Y-%m-%d %H:%M:%S}" if known is not None and 0 <= known < LAST_T else ""


def at(said: object, *keys: str) -> object:
    """What an object of objects holds; None where it does not."""
    for key in keys:
        said = said.get(key) if isinstance(said, dict) else None
    return said


def number(said: object) -> float | None:
    """A number within reason."""
    known = isinstance(said, int | float) and not isinstance(said, bool) and -_MOST < said < _MOST
    return float(said) if known else None  # type: ignore[arg-type]


def text(said: object) -> str:
    """Words, as many as fit a line or two."""
    return said[:_TEXT] if isinstance(said, str) else ""


def _share(part: object, whole: object) -> float | None:
    some, everything = number(part), number(whole)
    return min(1.0, max(0.0, some / everything)) if some is not None and everything else None


def _failing(said: object) -> Iterator[tuple[str, str]]:
    """(name, why) of each aide that has ended `FAILURES` times in a row; an older agrikd says no why, and counts on."""
    for name, one in [*said.items()][:_AIDES] if isinstance(said, dict) else ():
        if (number(at(one, "failures")) or 0) >= FAILURES and (why := text(at(one, "why"))):
            yield text(name), why


def _eye(name: str, said: object) -> Eye:
    camera, frame = at(said, "camera"), number(at(said, "frame"))
    return Eye(
        name=text(name),
        state=text(at(camera, "state")),
        why=text(at(camera, "why")),
        fps=number(at(said, "fps")),
        every_s=number(at(said, "every_s")),
        frame=None if frame is None else int(frame),
        age_s=number(at(said, "age_s")),
    )
