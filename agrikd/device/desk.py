"""The agent's socket: one connection, many questions, each a JSON object with one verb.

  health                      how it is with all of it
  probe: rounds               the release's probes, through the model that serves
  next: {camera, after}       a camera's newest frame beyond an id, and its JPEG, as soon as there is one
  frame: id                   a frame's JPEG
  hold: id                    the same, and it stays in memory for a label
  watched                     the newest frame of a camera that somebody looks at, and its JPEG
  label: {…}                  record what a person says of a frame
  ask: {frame}                have the teacher asked
  opinion: {frame, spec, opinion}   what the teacher said
  forget: {frame, why}        the teacher will never answer this one

An answer that is followed by bytes has a frame's id; {"absent": true} has none, {"failed": why} says what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agrikd import console, records
from agrikd.errors import AgriKDError
from agrikd.records import NOT_A_PLANT, UNSURE, WITHDRAWN, Label, Opinion
from agrikd.types import ModelSpec
from agrikd.wire import Wire, WireError

if TYPE_CHECKING:
    from agrikd.device.recorder import Recorder
    from agrikd.device.watch import Shown, Watch

_TICK_S, _LONGEST_WAIT_S = 0.1, 1.0
_AT_ONCE = 128
"""Connections; a thread each."""
Reply = tuple[dict[str, Any], bytes | None]


class Desk:
    """Answers the questions about cameras and records. asks: whether there is a teacher to ask."""

    def __init__(self, watches: dict[str, Watch], recorder: Recorder, asks: bool) -> None:
        self._watches, self._recorder, self._asks = watches, recorder, asks
        self._said: dict[str, dict[str, Any]] = {}
        self.verbs: dict[str, Callable[[Any], Reply]] = {
            "next": self._next,
            "frame": self._frame,
            "hold": lambda frame: self._frame(frame, hold=True),
            "watched": self._watched,
            "label": self._label,
            "ask": self._ask,
            "opinion": self._opinion,
            "forget": self._forget,
        }

    def _next(self, asked: dict[str, Any]) -> Reply:
        watch = self._watches.get(str(asked["camera"]))
        shown = watch.next(int(asked["after"]), _LONGEST_WAIT_S) if watch else None
        return self._shown(shown)

    def _watched(self, _: Any) -> Reply:
        seen = [shown for watch in self._watches.values() if (shown := watch.watched)]
        return self._shown(max(seen, key=lambda shown: shown.seen.id, default=None))

    def _frame(self, frame: int, hold: bool = False) -> Reply:
        """From memory, else as it was kept."""
        if (found := self._held(int(frame), hold)) is not None:
            return {"frame": int(frame)}, found[1].jpeg
        kept = self._kept(int(frame))
        return ({"absent": True}, None) if kept is None else ({"frame": int(frame)}, kept)

    def _label(self, asked: dict[str, Any]) -> Reply:
        """A frame that a person judged is kept, and its picture is on the disk when he is told that the label is."""
        label = Label(**{"t": time.time(), **asked})
        if label.label not in (known := self._classes()):
            return {"failed": f"{label.label!r} is no class; there are: {', '.join(known)}"}, None
        if (found := self._held(label.frame)) is not None:
            found[0].keep(found[1], "label")
        elif self._kept(label.frame) is None:
            return {"failed": f"the picture of frame {label.frame} is gone"}, None
        return {"done": self._recorder.label(label)}, None

    def _classes(self) -> tuple[str, ...]:
        """What a label may be: a class of a model that was here, or one of those that are none. A number's bins are no
        classes."""
        with contextlib.closing(records.read(self._recorder.folder)) as db:
            specs = [json.loads(row["spec"]) for row in db.execute("SELECT spec FROM models")]
        names = dict.fromkeys(name for spec in specs if not spec.get("scale") for name in spec["classes"])
        return (*names, UNSURE, NOT_A_PLANT, WITHDRAWN)

    def _ask(self, asked: dict[str, Any]) -> Reply:
        if not self._asks:
            return {"failed": "there is no teacher to ask: name one under teacher: in agent.yaml"}, None
        frame = int(asked["frame"])
        if (found := self._held(frame)) is not None:
            found[0].keep(found[1], "button")
        elif self._kept(frame) is None:
            return {"failed": f"the picture of frame {frame} is gone"}, None
        self._recorder.ask(frame, "button")
        return {"done": True}, None

    def _opinion(self, asked: dict[str, Any]) -> Reply:
        """Recorded before it is shown; a frame on which the two disagree is kept."""
        frame, said = int(asked["frame"]), Opinion.from_json(asked["opinion"])
        spec = ModelSpec.from_json(asked["spec"])
        self._recorder.opinion(frame, said, spec)
        if (found := self._held(frame)) is not None:
            watch, shown = found
            own = shown.said
            if own and shown.spec and not shown.spec.scale and _word(own, shown.spec) != _word(said, spec):
                watch.keep(shown, "disagreement")
            self._said[watch.eye.name] = {
                "frame": frame,
                "t": shown.seen.t,
                "classes": spec.classes,
                "student_classes": shown.spec.classes if shown.spec else None,
                "scale": _scale(spec),
                "teacher": asdict(said),
                "student": asdict(own) if own else None,
            }
        return {"done": True}, None

    def _forget(self, asked: dict[str, Any]) -> Reply:
        self._recorder.forget(int(asked["frame"]), str(asked["why"]))
        return {"done": True}, None

    def _shown(self, shown: Shown | None) -> Reply:
        if shown is None:
            return {"absent": True}, None
        answer = {
            "frame": shown.seen.id,
            "t": shown.seen.t,
            "camera": shown.seen.camera,
            "quality": shown.seen.quality,
            "student": asdict(shown.said) if shown.said else None,
            "smoothed": shown.smoothed,
            "classes": shown.spec.classes if shown.spec else None,
            "scale": _scale(shown.spec),
            "coverage": shown.spec.calibration.coverage if shown.spec and shown.spec.calibration else None,
            "second": self._said.get(shown.seen.camera),
        }
        return answer, shown.jpeg

    def _held(self, frame: int, hold: bool = False) -> tuple[Watch, Shown] | None:
        for watch in self._watches.values():
            if (shown := watch.held(frame, hold)) is not None:
                return watch, shown
        return None

    def _kept(self, frame: int) -> bytes | None:
        with (
            contextlib.suppress(AgriKDError, OSError, sqlite3.Error),
            contextlib.closing(records.read(self._recorder.folder)) as db,
        ):
            row = db.execute("SELECT file FROM pictures WHERE frame = ?", (frame,)).fetchone()
            return (self._recorder.folder / row["file"]).read_bytes() if row else None
        return None


def _word(said: Opinion, spec: ModelSpec) -> str:
    """A class, or `NOT_A_PLANT`: whatever is likeliest of what is no plant means nothing."""
    return NOT_A_PLANT if said.unknown else spec.classes[said.top]


def _scale(spec: ModelSpec | None) -> dict[str, Any] | None:
    return asdict(spec.scale) if spec and spec.scale else None


@contextlib.contextmanager
def listening(path: Path, verbs: dict[str, Callable[[Any], Reply]], patience_s: float) -> Iterator[None]:
    """A Unix socket that answers; a disk that takes none costs the answers, not the agent."""
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            path.unlink(missing_ok=True)
            door.bind(str(path))
            path.chmod(0o600)
            door.listen()
            threading.Thread(target=_answer_all, args=(door, ended, verbs, patience_s), daemon=True).start()
        except OSError as error:
            console.say(f"{path}: nobody can ask this agent ({error})")
        yield
        ended.set()
    with contextlib.suppress(OSError):
        path.unlink()


def _answer_all(
    door: socket.socket, ended: threading.Event, verbs: dict[str, Callable[[Any], Reply]], patience_s: float
) -> None:
    free = threading.BoundedSemaphore(_AT_ONCE)
    while not ended.is_set():
        try:
            link, _ = door.accept()
        except OSError:  # closed at the end, or too many files are open
            time.sleep(_TICK_S)
            continue
        free.acquire()
        threading.Thread(target=_answer, args=(link, verbs, patience_s, free), daemon=True).start()


def _answer(
    link: socket.socket,
    verbs: dict[str, Callable[[Any], Reply]],
    patience_s: float,
    free: threading.BoundedSemaphore,
) -> None:
    """Until the other side is gone, or says nothing for `patience_s`."""
    link.settimeout(patience_s)
    with contextlib.ExitStack() as held:
        held.callback(
            free.release
        )  # whatever happens: a place that is never given back is one connection less for ever
        held.enter_context(contextlib.suppress(WireError, OSError))
        held.enter_context(link)
        reader, writer = held.enter_context(link.makefile("rb")), held.enter_context(link.makefile("wb"))
        wire = Wire(reader, writer)
        while True:
            said, data = _reply(wire.hear(), verbs)
            wire.say(**said)
            if data is not None:
                wire.send(data)


def _reply(asked: dict[str, Any], verbs: dict[str, Callable[[Any], Reply]]) -> Reply:
    try:
        ((verb, what),) = asked.items()
        return verbs[verb](what)
    except AgriKDError as error:
        return {"failed": str(error)}, None
    except (KeyError, TypeError, ValueError, IndexError, sqlite3.Error, OSError) as error:
        return {"failed": f"is no question ({type(error).__name__}: {error})"}, None
