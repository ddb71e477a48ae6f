"""The loop behind one camera: take the newest frame, ask the model, record what it said, show it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd.device.camera import Camera, Frame
from agrikd.device.recorder import Recorder
from agrikd.device.schedule import Schedule
from agrikd.device.serving import Serving
from agrikd.records import Opinion, Place, Seen
from agrikd.types import ModelSpec

RING_BYTES = 32 * 2**20
"""Of JPEGs in memory: some forty seconds of 30 frames of 25 kB a second."""
SMOOTHING_S = 1.0
"""After so long a frame counts e times less in the smoothed probabilities."""
_HOLD_BYTES = 16 * 2**20
"""Of JPEGs of frames that somebody is about to judge, however long that takes him: the last two to sixty."""
_LOOK_S, _OVERDUE = 0.5, 3
_CLOSED_AFTER_S = 60.0
_WHILE_WATCHED_S = 3.0


@dataclass(frozen=True)
class Keeping:
    """What is kept of what is seen. audit_share: of frames, drawn at random. pause_s: between two frames that are kept
    for the same reason, as a doubtful plant is seen thirty times a second; the audit knows none."""

    audit_share: float = 0.01
    pause_s: float = 10.0


@dataclass(frozen=True)
class Shown:
    """A frame as the live view has it. said: what the student said of this very frame. smoothed: its probabilities over
    the last second, for the eye; None where there is no answer."""

    seen: Seen
    jpeg: bytes
    said: Opinion | None
    smoothed: tuple[float, ...] | None
    spec: ModelSpec | None


@dataclass(frozen=True)
class Eye:
    """A camera with its name, its place and its hours."""

    name: str
    camera: Camera
    place: Place
    schedule: Schedule

    def rest(self, stop: threading.Event) -> None:
        """Until a frame may be due; a camera that is not wanted for long is closed."""
        if self.schedule.pause_s(time.time()) > _CLOSED_AFTER_S:
            self.camera.close()
        stop.wait(0.1)


class Smoothing:
    """An exponential mean over time of one model's probabilities; another model begins anew."""

    def __init__(self) -> None:
        self._model, self._t = "", 0.0
        self._mean: NDArray[np.float64] = np.zeros(0)

    def add(self, said: Opinion) -> tuple[float, ...]:
        """The mean with an opinion in it."""
        new = np.asarray(said.probabilities)
        gone = said.t - self._t
        if said.model != self._model or new.shape != self._mean.shape or gone < 0:
            self._mean = new
        else:
            self._mean = new + (self._mean - new) * math.exp(-gone / SMOOTHING_S)
        self._model, self._t = said.model, said.t
        return tuple(round(float(p), 5) for p in self._mean)


class Ring:
    """The last frames with their pictures, in memory, up to so many bytes."""

    def __init__(self, most_bytes: int = RING_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._held: OrderedDict[int, Shown] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, shown: Shown) -> None:
        with self._lock:
            if shown.seen.id in self._held:
                self._held.move_to_end(shown.seen.id)
                return
            self._held[shown.seen.id] = shown
            self._bytes += len(shown.jpeg)
            while self._bytes > self._most and len(self._held) > 1:
                _, gone = self._held.popitem(last=False)
                self._bytes -= len(gone.jpeg)

    def get(self, frame: int) -> Shown | None:
        with self._lock:
            return self._held.get(frame)


class Watch(threading.Thread):
    """One camera's loop, until `stop` is set. asks: whether there is a teacher to ask."""

    def __init__(self, eye: Eye, serving: Serving, recorder: Recorder, keeping: Keeping, asks: bool) -> None:
        super().__init__(daemon=True)
        self.eye, self._serving, self._recorder, self._keeping, self._asks = eye, serving, recorder, keeping, asks
        self.stop = threading.Event()
        self.ring, self._on_hold = Ring(), Ring(_HOLD_BYTES)
        self._changed = threading.Condition()
        self._newest: Shown | None = None
        self._looked_at = -math.inf
        self._smoothing = Smoothing()
        self._kept_at: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=60)
        self._random = random.Random()

    def run(self) -> None:
        after, last = 0, -math.inf
        try:
            while not self.stop.is_set():
                due = self.eye.schedule.due(time.time(), last)
                if not due and not self._is_watched:
                    self.eye.rest(self.stop)
                    continue
                frame = self.eye.camera.next(after, _LOOK_S)
                if frame is None:
                    continue
                after = frame.number
                last = frame.t if due else last
                self._see(frame, due)
        finally:
            self.eye.camera.stop()

    def next(self, after: int, timeout_s: float) -> Shown | None:
        """The newest frame, as soon as it is another one than `after`; whoever asks is a viewer."""
        self._looked_at = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._newest and self._newest.seen.id != after, timeout_s)
            newest = self._newest
        return newest if newest and newest.seen.id != after else None

    @property
    def watched(self) -> Shown | None:
        """The newest frame, if somebody looks."""
        return self._newest if self._is_watched else None

    @property
    def _is_watched(self) -> bool:
        return time.monotonic() - self._looked_at < _WHILE_WATCHED_S

    def health(self) -> dict[str, Any]:
        """fps: of frames that went through the model, over the last sixty. every_s: as its schedule says."""
        newest = self._newest
        return {
            "camera": self.eye.camera.health(),
            "fps": round(_rate(list(self._times), time.monotonic()), 1),
            "every_s": self.eye.schedule.every_s,
            "frame": newest.seen.id if newest else None,
            "age_s": round(time.time() - newest.seen.t, 2) if newest else None,
        }

    def held(self, frame: int, hold: bool = False) -> Shown | None:
        """A frame that is still in memory; hold: it stays there for who is about to judge it."""
        shown = self.ring.get(frame) or self._on_hold.get(frame)
        if shown and hold:
            self._on_hold.add(shown)
        return shown

    def keep(self, shown: Shown, why: str) -> None:
        """Keep the picture of a frame that is still in memory."""
        self._recorder.picture(shown.seen, why, shown.jpeg)

    def _see(self, frame: Frame, due: bool) -> None:
        """due: as the schedule wants it; one that is there because somebody looks is no random part of the field."""
        answer = None
        if not frame.quality:  # a covered lens is no plant to speak of
            answer = self._serving.predict(self.eye.camera.fileno(), frame.image.shape[:2], frame.t)
        said, spec = answer or (None, None)
        drawn = due and said is not None and self._random.random() < self._keeping.audit_share
        audit = self._keeping.audit_share if drawn else None
        why = self._why_kept(said, drawn)
        ask = why if self._asks else ""
        new = Seen(0, frame.t, self.eye.name, self.eye.place, frame.quality, audit)
        seen = self._recorder.frame(new, answer, (why, frame.jpeg) if why else None, ask)
        shown = Shown(seen, frame.jpeg, said, self._smoothing.add(said) if said else None, spec)
        self.ring.add(shown)
        self._times.append(frame.mono)
        with self._changed:
            self._newest = shown
            self._changed.notify_all()

    def _why_kept(self, said: Opinion | None, drawn: bool) -> str:
        """The reason to keep a frame: random ones first, or their share would not be a share."""
        if drawn:
            return "audit"
        why = ("not a plant" if said.unknown else "doubt" if said.unsure else "") if said else ""
        if not why or time.monotonic() - self._kept_at.get(why, -math.inf) < self._keeping.pause_s:
            return ""
        self._kept_at[why] = time.monotonic()
        return why


def _rate(times: list[float], now: float) -> float:
    """Frames a second; where the next is overdue, it sinks."""
    if len(times) < 2:
        return 0.0
    between = (times[-1] - times[0]) / (len(times) - 1)
    overdue = max(0.0, now - times[-1] - _OVERDUE * between)
    return (len(times) - 1) / (times[-1] - times[0] + overdue)
