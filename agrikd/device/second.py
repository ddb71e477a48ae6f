"""Asks the teacher what the student was asked: python -m agrikd.device.second, told by JSON on stdin.

What is to be asked waits in the records until the agent has written down the answer, so nothing is lost by a server
that is away or by a device that is switched off. First comes what somebody wants to know now, then the frame that
somebody is looking at, which does not wait, then the oldest.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrikd import console, records
from agrikd.device.post import AgentLink, Answer, AwayError, Patience, Server, started
from agrikd.errors import AgriKDError, InputError
from agrikd.records import Opinion
from agrikd.types import ModelSpec
from agrikd.wire import MAX_BYTES

_IDLE_S, _AGENT_S, _ANSWER_S = 0.25, 15.0, 120.0
_REFUSED = (413, 415, 422)
"""What a server says of a picture; its other refusals are of the question, which is asked again."""


@dataclass(frozen=True)
class Options:
    """records: their folder. url: of agrikd serve. token_file, ca, bytes_per_s: see `post.Server`. socket: the agent's.
    steady_per_s: how often the teacher is asked, at most, while somebody watches."""

    records: str
    url: str
    token_file: str
    socket: str
    steady_per_s: float = 1.0
    bytes_per_s: float | None = None
    ca: str = ""


class Second:
    """One device's way to one teacher."""

    def __init__(self, options: Options) -> None:
        self._options, self._folder = options, Path(options.records)
        self._server = Server(options.url, options.token_file, options.ca, options.bytes_per_s)
        self._agent = AgentLink(options.socket, _AGENT_S)
        self._behind: set[int] = set()
        self._steady_at = 0.0 if options.steady_per_s else math.inf
        self._steady = 0
        self._said = ""

    def run(self) -> None:
        """Until a signal ends it."""
        patience = Patience()
        while True:
            try:
                if self.step():
                    patience.worked()
                    self._say("")
                else:  # which says nothing of a teacher that has just failed
                    time.sleep(_IDLE_S)
            except (AgriKDError, OSError, sqlite3.Error) as error:
                self._say(str(error))
                self._pause(patience.failed(error))

    def step(self) -> bool:
        """One question to the teacher; whether there was one."""
        frame, why = self._next()
        if why != "button" and self._ask_steady():
            return True
        if not why:
            self._behind.clear()
            return False
        # A picture that is about to be kept moves from the agent's memory to the disk between the two looks.
        jpeg = self._kept(frame) or self._held(frame) or self._kept(frame)
        if jpeg:
            self._ask(frame, jpeg)
        else:
            self._forget(frame, "its picture is gone")
        return True

    def _say(self, what: str) -> None:
        if what != self._said:
            console.say(f"second opinion: {what or 'goes on'}")
            self._said = what

    def _pause(self, seconds: float) -> None:
        """Until another try, or until somebody presses the button."""
        end, pressed = time.monotonic() + seconds, self._pressed()
        while (left := end - time.monotonic()) > 0 and self._pressed() <= pressed:
            time.sleep(min(left, _IDLE_S))

    def _pressed(self) -> set[int]:
        with contextlib.suppress(AgriKDError, OSError, sqlite3.Error), contextlib.closing(self._read()) as db:
            return {int(row["frame"]) for row in db.execute("SELECT frame FROM asks WHERE why = 'button'")}
        return set()

    # Which frame

    def _read(self) -> sqlite3.Connection:
        """Anew each time, as a damaged database is set aside and another begins."""
        return records.read(self._folder)

    def _next(self) -> tuple[int, str]:
        """The frame to ask about and why; no reason where there is none that was not tried just now."""
        with contextlib.closing(self._read()) as db:
            rows = db.execute("SELECT frame, why FROM asks ORDER BY why != 'button', frame")
            return next(((int(row["frame"]), row["why"]) for row in rows if row["frame"] not in self._behind), (0, ""))

    def _ask_steady(self) -> bool:
        """About the newest frame, where somebody watches and it is time; whether it was asked."""
        if time.monotonic() < self._steady_at:
            return False
        begun = time.monotonic()
        self._steady_at = begun + 1 / self._options.steady_per_s
        found = self._agent.picture(watched=True)
        if found is None or found[0]["frame"] == self._steady:
            return False
        self._steady = int(found[0]["frame"])
        self._ask(self._steady, found[1])
        took = time.monotonic() - begun
        self._steady_at = max(self._steady_at, begun + 2 * took)  # a slow teacher has time for those that wait
        return True

    def _kept(self, frame: int) -> bytes | None:
        with contextlib.closing(self._read()) as db:
            row = db.execute("SELECT file FROM pictures WHERE frame = ?", (frame,)).fetchone()
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / row["file"]).read_bytes() if row else None
        return None

    def _held(self, frame: int) -> bytes | None:
        found = self._agent.picture(frame=frame)
        return found[1] if found and found[0]["frame"] == frame else None

    # What is said of it

    def _ask(self, frame: int, jpeg: bytes) -> None:
        if len(jpeg) > MAX_BYTES:
            return self._forget(frame, "its picture is too large to send")
        answer = self._server.call("POST", f"/ask/{frame}", jpeg, _ANSWER_S)
        if answer.status in _REFUSED:
            return self._forget(frame, str(answer.away()))
        if answer.status not in (200, 500):  # of the server, not of this frame
            raise answer.away()
        self._behind.add(frame)  # a frame that the teacher stumbles over does not keep it from the others
        done = self._agent.ask(opinion={"frame": frame, **_checked(answer, frame)})
        if "done" not in done:
            raise AwayError(f"frame {frame}: {done.get('failed', 'the agent does not record the answer')}")
        return None

    def _forget(self, frame: int, why: str) -> None:
        self._behind.add(frame)
        self._agent.ask(forget={"frame": frame, "why": why})


def _checked(answer: Answer, frame: int) -> dict[str, Any]:
    """A teacher's answer to this frame, as the agent wants it; raises `AwayError` where it is none."""
    if answer.status != 200:
        raise answer.away()
    said = answer.json()
    if said.get("frame") != frame:
        raise AwayError(f"asked about frame {frame}, the teacher speaks of {said.get('frame')!r}")
    try:
        spec, opinion = ModelSpec.from_json(said["spec"]), Opinion.from_json(said["opinion"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise AwayError(f"the teacher's answer is none ({error!r})") from None
    if opinion.role != "teacher" or len(opinion.probabilities) != len(spec.classes):
        raise AwayError(f"the answer is a {opinion.role}'s, of {len(opinion.probabilities)} classes")
    return {"spec": said["spec"], "opinion": said["opinion"]}


def main(words: list[str]) -> int:
    """Ask for ever; returns where the options are wrong."""
    try:
        Second(started(Options, words)).run()
    except InputError as error:
        console.complain(str(error))
    return InputError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
