"""A Run's metrics.jsonl, followed while it is written: as many points as a screen can show, however long it gets."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from pathlib import Path

from agrikd.errors import InputError, Problem

POINTS = 500
STEP = "step"
_AT_ONCE_BYTES, _TAIL_BYTES = 2**25, 2**16
_MOST_FIGURES, _LONGEST_NAME = 32, 60
_MARKS = 12
"""Times at which the file was seen to have grown, from which the pace is known."""


class Series:
    """A figure over the steps: `POINTS` points at the most, evenly taken, the first and the last among them."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, float]] = []
        self._every, self._seen = 1, 0
        self.last = (0.0, 0.0)

    def add(self, step: float, value: float) -> None:
        """The next point."""
        if self._seen % self._every == 0 and len(self._kept) == POINTS - 1:
            self._kept, self._every = self._kept[::2], 2 * self._every
        if self._seen % self._every == 0:
            self._kept.append((step, value))
        self._seen, self.last = self._seen + 1, (step, value)

    @property
    def points(self) -> list[tuple[float, float]]:
        """(step, value), in the order in which they were written."""
        return self._kept if self._kept[-1:] == [self.last] else [*self._kept, self.last]


class Log:
    """What a metrics.jsonl has said so far. `read` takes in the rest.

    series: of each figure but the step. step: of the last line. broken: lines that are none. behind: bytes that are
    still to be read. changed: when it was last written, UTC, seconds since 1970.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin(0)

    def _begin(self, file: int) -> None:
        self._file, self._offset = file, 0
        self.series: dict[str, Series] = {}
        self.step, self.broken, self.behind, self.changed = 0, 0, 0, 0.0
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)

    def read(self) -> None:
        """Take in the whole lines that came since, 32 MiB at the most; a file that a resumed training has begun anew
        is read anew. Raises `InputError` where it cannot be read."""
        try:
            with self.path.open("rb") as lines:
                now = os.fstat(lines.fileno())
                if now.st_ino != self._file or now.st_size < self._offset:
                    self._begin(now.st_ino)
                lines.seek(self._offset)
                data = lines.read(min(now.st_size - self._offset, _AT_ONCE_BYTES))
        except FileNotFoundError:
            self._begin(0)
            return
        except OSError as error:
            raise InputError(Problem(str(self.path), f"cannot be read ({error.strerror})")) from None
        whole = data.rfind(b"\n") + 1 or len(data) * (len(data) == _AT_ONCE_BYTES)  # no line is as long as that
        for line in data[:whole].splitlines():
            self._add(line)
        self._offset += whole
        self.behind, self.changed = now.st_size - self._offset, now.st_mtime
        if not self._marks or self.step > self._marks[-1][1]:
            self._marks.append((self.changed, self.step))

    def _add(self, line: bytes) -> None:
        entry = _entry(line)
        if entry is None:
            self.broken += 1
            return
        self.step = int(entry.pop(STEP))
        for name, value in entry.items():
            if name in self.series or len(self.series) < _MOST_FIGURES:
                self.series.setdefault(name, Series()).add(self.step, value)

    def panels(self, most: int = POINTS) -> tuple[dict[str, list[tuple[float, float]]], ...]:
        """(step, value) of the losses, and of what was measured on the validation photos, `most` points of each. A part
        that is the whole loss is left out, and so is the learning rate."""
        points = {name: one.points for name, one in self.series.items() if name != "lr"}
        parts = {name for name, found in points.items() if name != "loss" and found == points.get("loss")}
        few = {name: thinned(found, most) for name, found in points.items() if name not in parts}
        measured = {name: found for name, found in few.items() if name.startswith("val_")}
        return {name: found for name, found in few.items() if name not in measured}, measured

    @property
    def steps_per_s(self) -> float | None:
        """Since this was first read, as the file's times tell; None until it has grown."""
        if len(self._marks) < 2:
            return None
        (begun, first), (ended, last) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - begun) if ended > begun else None

    def seconds_left(self, steps: int) -> float | None:
        """Until step `steps` at this pace; None where that is not known."""
        pace = self.steps_per_s
        return max(steps - self.step, 0) / pace if pace else None


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """`most` ≥ 2 of the points at the most, evenly taken, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def last_step(path: Path) -> int | None:
    """Of the last whole line of a metrics.jsonl; None where there is none. Raises `InputError`."""
    try:
        with path.open("rb") as lines:
            lines.seek(max(os.fstat(lines.fileno()).st_size - _TAIL_BYTES, 0))
            tail = lines.read(_TAIL_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})")) from None
    entries = (_entry(line) for line in reversed(tail[: tail.rfind(b"\n") + 1].splitlines()))
    return next((int(entry[STEP]) for entry in entries if entry), None)


def _entry(line: bytes) -> dict[str, float] | None:
    """A line's step and figures; None where it is no line of a Run's."""
    try:
        said = json.loads(line)
        numbers = {str(name): value for name, value in said.items() if isinstance(value, int | float)}
        finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        named = {name: value for name, value in finite.items() if len(name) <= _LONGEST_NAME and name.isprintable()}
    except (ValueError, AttributeError, RecursionError, OverflowError):
        return None
    return named if STEP in named else None
