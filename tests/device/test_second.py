"""What waits for the teacher is asked once the teacher is there, in its order, and no answer goes to another frame."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_kit import SPEC, TOKEN, opinion, record, recording, rows_here, served, until

from agrikd import image, records, serve
from agrikd.device.post import AwayError
from agrikd.device.recorder import Recorder
from agrikd.device.second import Options, Second
from agrikd.predict._base import FakePredictor
from agrikd.records import Opinion
from agrikd.serve import Teacher
from agrikd.types import Image, ModelSpec, Prediction
from agrikd.wire import Wire, WireError

LEAF = image.encode_jpeg(np.full((30, 40, 3), (200, 60, 40), np.uint8))


class Agent(threading.Thread):
    """The agent's socket as its protocol says. memory: frames that are not kept. watched: a frame somebody looks at."""

    def __init__(self, path: Path, recorder: Recorder) -> None:
        super().__init__(daemon=True)
        self._recorder = recorder
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(str(path))
        self._door.listen()
        self.memory: dict[int, bytes] = {}
        self.watched: int | None = None
        self.said: list[tuple[int, Opinion]] = []
        self.forgotten: list[tuple[int, str]] = []
        self.fails = ""
        self.start()

    def run(self) -> None:
        while True:
            link, _ = self._door.accept()
            threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, link: socket.socket) -> None:
        with link, contextlib.suppress(WireError):
            wire = Wire(link.makefile("rb"), link.makefile("wb"))
            while True:
                self._answer(wire, wire.hear())

    def _answer(self, wire: Wire, asked: dict[str, Any]) -> None:
        if "frame" in asked or "watched" in asked:
            frame = asked.get("frame", self.watched)
            if frame not in self.memory:
                return wire.say(absent=True)
            wire.say(frame=frame, camera="north")
            return wire.send(self.memory[frame])
        if self.fails:
            return wire.say(failed=self.fails)
        if "forget" in asked:
            self._recorder.forget(asked["forget"]["frame"], asked["forget"]["why"])
            settled(self._recorder)
            self.forgotten.append((asked["forget"]["frame"], asked["forget"]["why"]))
        else:
            said = asked["opinion"]
            found = Opinion.from_json(said["opinion"])
            self._recorder.opinion(said["frame"], found, ModelSpec.from_json(said["spec"]))
            self.said.append((said["frame"], found))
        return wire.say(done=True)

    @property
    def frames(self) -> list[int]:
        return [frame for frame, _ in self.said]


@pytest.fixture
def folder(short: Path) -> Path:
    return short / "records"


@pytest.fixture
def recorder(folder: Path) -> Iterator[Recorder]:
    with recording(folder) as made:
        yield made


@pytest.fixture
def agent(short: Path, recorder: Recorder) -> Agent:
    return Agent(short / "agent.sock", recorder)


@pytest.fixture
def told(short: Path, folder: Path) -> Callable[..., dict[str, Any]]:
    (short / "token").write_text(TOKEN)

    def make(url: str, **changes: Any) -> dict[str, Any]:
        own = {"records": str(folder), "token_file": str(short / "token"), "socket": str(short / "agent.sock")}
        return {"url": url, **own, **changes}

    return make


@pytest.fixture
def make(told: Callable[..., dict[str, Any]], agent: Agent) -> Callable[..., Second]:
    return lambda url, **changes: Second(Options(**told(url, **changes)))


@pytest.fixture
def url() -> Iterator[str]:
    with served(serve.app(Teacher(FakePredictor(SPEC), "a" * 64), None, TOKEN)) as url:
        yield url


def asks(folder: Path) -> list[int]:
    with contextlib.closing(records.read(folder)) as db:
        return [frame for (frame,) in db.execute("SELECT frame FROM asks ORDER BY frame")]


def settled(recorder: Recorder) -> None:
    until(lambda: not recorder.health()["waiting"])


def drained(second: Second) -> None:
    """Until there is nothing more to ask."""
    while second.step() or second.step():
        pass


# What is asked


def test_what_waits_is_answered_and_recorded(
    url: str, folder: Path, recorder: Recorder, agent: Agent, make: Callable[..., Second]
) -> None:
    frames = [record(recorder, number, LEAF, "doubt") for number in range(8)]
    plain = record(recorder, 9)
    settled(recorder)
    drained(make(url))
    assert agent.frames == frames and asks(folder) == [] and not agent.forgotten
    said = [row for row in rows_here(folder)["predictions"] if row["role"] == "teacher"]
    assert [row["frame"] for row in said] == frames and plain not in frames
    (expected,) = FakePredictor(SPEC)([image.decode(LEAF, "leaf")])
    assert np.allclose(json.loads(said[0]["probabilities"]), expected.probabilities, atol=1e-5)
    models = {row["name"]: json.loads(row["spec"]) for row in rows_here(folder)["models"]}
    assert ModelSpec.from_json(models[said[0]["model"]]) == SPEC


def test_the_button_first_then_what_is_watched_then_the_oldest(
    url: str, recorder: Recorder, agent: Agent, make: Callable[..., Second]
) -> None:
    doubts = [record(recorder, number, LEAF, "doubt") for number in range(3)]
    agent.watched = record(recorder, 4)
    agent.memory[agent.watched] = LEAF
    buttons = [record(recorder, number, LEAF, "button") for number in (5, 6)]
    settled(recorder)
    drained(make(url))
    assert agent.frames == [*buttons, agent.watched, *doubts]


def test_a_frame_that_is_not_kept_comes_from_the_agent_s_memory(
    url: str, folder: Path, recorder: Recorder, agent: Agent, make: Callable[..., Second]
) -> None:
    held, lost = record(recorder, 1, None, "doubt"), record(recorder, 2, None, "doubt")
    agent.memory[held] = LEAF
    settled(recorder)
    drained(make(url))
    assert agent.frames == [held] and agent.forgotten == [(lost, "its picture is gone")]
    settled(recorder)
    assert asks(folder) == [] and rows_here(folder)["events"][-1]["value"] == f"frame {lost}: its picture is gone"


def test_what_the_teacher_refuses_is_given_up_with_its_words(
    url: str, folder: Path, recorder: Recorder, agent: Agent, make: Callable[..., Second]
) -> None:
    cut, odd = record(recorder, 1, LEAF[:-30], "doubt"), record(recorder, 2, b"no picture", "doubt")
    large, good = record(recorder, 3, bytes(8 * 2**20 + 1), "doubt"), record(recorder, 4, LEAF, "doubt")
    settled(recorder)
    drained(make(url))
    assert agent.frames == [good]
    why = dict(agent.forgotten)
    assert "422: frame " in why[cut] and "cut short" in why[cut]
    assert "415: the body is no JPEG" in why[odd] and why[large] == "its picture is too large to send"
    settled(recorder)
    assert asks(folder) == []


# What may be steady


def test_the_steady_frame_is_asked_no_more_often_than_wanted(
    url: str, recorder: Recorder, agent: Agent, make: Callable[..., Second]
) -> None:
    second, begun = make(url, steady_per_s=10.0), time.monotonic()
    number = 0
    while time.monotonic() < begun + 1.5:
        number += 1
        agent.watched = record(recorder, number)
        agent.memory[agent.watched] = LEAF
        second.step()
        time.sleep(0.01)
    assert 3 <= len(agent.said) <= 16 and len(set(agent.frames)) == len(agent.said)
    agent.watched = None
    second.step()
    before = len(agent.said)
    time.sleep(0.2)
    second.step()
    assert len(agent.said) == before, "nobody watches"


def test_steady_may_be_never(url: str, recorder: Recorder, agent: Agent, make: Callable[..., Second]) -> None:
    agent.watched = record(recorder, 1)
    agent.memory[agent.watched] = LEAF
    drained(make(url, steady_per_s=0))
    assert agent.said == []


class Slow(FakePredictor):
    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        time.sleep(0.1)
        return super().__call__(images)


def test_a_slow_teacher_has_time_for_those_that_wait(
    recorder: Recorder, agent: Agent, folder: Path, make: Callable[..., Second]
) -> None:
    """Though it never gets done with what is watched."""
    doubts = [record(recorder, number, LEAF, "doubt") for number in range(6)]
    settled(recorder)
    with served(serve.app(Teacher(Slow(SPEC), "a" * 64), None, TOKEN)) as url:
        second, number = make(url, steady_per_s=30.0), 10
        end = time.monotonic() + 30
        while asks(folder) and time.monotonic() < end:
            number += 1
            agent.watched = record(recorder, number)
            agent.memory[agent.watched] = LEAF
            settled(recorder)
            second.step()
    assert [frame for frame in agent.frames if frame in doubts] == doubts
    assert 3 <= len(set(agent.frames) - set(doubts)) <= 12


# What goes wrong


class Odd(BaseHTTPRequestHandler):
    """A teacher that answers as the test says: `answers` holds (status, body), where a body may be made of a frame."""

    answers: queue.Queue[tuple[int, Any]]
    asked: list[int]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        frame = int(self.path.rpartition("/")[2])
        self.asked.append(frame)
        try:
            status, body = self.answers.get_nowait()
        except queue.Empty:
            status, body = 200, right(frame)
        data = json.dumps(body(frame) if callable(body) else body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def right(frame: int, **changes: Any) -> dict[str, Any]:
    said = {"frame": frame, "spec": SPEC.to_json(), "opinion": asdict(opinion(1, "teacher", "large-1234"))}
    return {**said, **changes}


@pytest.fixture
def odd() -> Iterator[Any]:
    handler = type("One", (Odd,), {"answers": queue.Queue(), "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        handler.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        yield handler
        server.shutdown()


@pytest.mark.parametrize(
    "case",
    [
        (200, lambda frame: right(frame + 1), "asked about frame 1, the teacher speaks of 2"),
        (200, lambda frame: right(str(frame)), "the teacher speaks of '1'"),  # type: ignore[arg-type]
        (200, lambda frame: right(frame, spec={}), "the teacher's answer is none"),
        (200, lambda frame: right(frame, opinion={"model": "x"}), "the teacher's answer is none"),
        (200, lambda frame: right(frame, opinion=asdict(opinion(1))), "a student's"),
        (200, [1], "is none of agrikd's"),
        (500, {"detail": "stumbled"}, "the server says 500: stumbled"),
        (503, {"detail": "busy"}, "the server says 503: busy"),
        (401, {"detail": "the token"}, "the server says 401"),
        (404, {"detail": "Not Found"}, "the server says 404"),
        (302, {}, "the server says 302"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again(
    odd: Any, recorder: Recorder, agent: Agent, folder: Path, make: Callable[..., Second], case: tuple[int, Any, str]
) -> None:
    status, body, words = case
    frame = record(recorder, 1, LEAF, "doubt")
    settled(recorder)
    second = make(odd.url)
    odd.answers.put((status, body))
    with pytest.raises(AwayError) as refused:
        second.step()
    assert words in str(refused.value) and not agent.said and not agent.forgotten and asks(folder) == [frame]
    drained(second)
    assert agent.frames == [frame] and asks(folder) == []


def test_a_frame_that_the_teacher_stumbles_over_keeps_up_no_other(
    odd: Any, recorder: Recorder, agent: Agent, make: Callable[..., Second]
) -> None:
    frames = [record(recorder, number, LEAF, "doubt") for number in range(4)]
    settled(recorder)
    second = make(odd.url)
    odd.answers.put((500, {}))
    with pytest.raises(AwayError):
        second.step()
    drained(second)
    assert agent.frames == [*frames[1:], frames[0]]


def test_one_frame_that_fails_again_and_again_is_sent_ever_less_often(
    odd: Any, recorder: Recorder, agent: Agent, make: Callable[..., Second], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(recorder, 1, LEAF, "doubt")
    settled(recorder)
    second, pauses = make(odd.url), list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(second, "_pause", pause)
    for _ in range(7):
        odd.answers.put((500, {}))
    with pytest.raises(KeyboardInterrupt):
        second.run()
    assert all(2**n / 2 <= one <= 2**n for n, one in enumerate(pauses[:6])) and 30 <= pauses[6] <= 60


def test_an_agent_that_cannot_record_is_told_again(
    url: str, recorder: Recorder, agent: Agent, folder: Path, make: Callable[..., Second]
) -> None:
    frame = record(recorder, 1, LEAF, "doubt")
    settled(recorder)
    second, agent.fails = make(url), "the disk is full"
    with pytest.raises(AwayError, match=f"frame {frame}: the disk is full"):
        second.step()
    assert asks(folder) == [frame]
    agent.fails = ""
    drained(second)
    assert agent.frames == [frame]


def test_without_an_agent_nobody_is_asked(odd: Any, folder: Path, recorder: Recorder, told: Any) -> None:
    record(recorder, 1, LEAF, "doubt")
    settled(recorder)
    second = Second(Options(**told(odd.url)))
    with pytest.raises(AwayError, match="the agent does not answer"):
        second.step()
    assert odd.asked == []


# The process


@contextlib.contextmanager
def running(options: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "agrikd.device.second"], stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(json.dumps(options).encode())
    process.stdin.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_a_teacher_that_is_away_and_killed_and_back(
    recorder: Recorder, agent: Agent, folder: Path, told: Callable[..., dict[str, Any]]
) -> None:
    """Nothing is lost, and nothing is recorded twice; a button that is pressed meanwhile is not waited with."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    app = serve.app(Teacher(FakePredictor(SPEC), "a" * 64), None, TOKEN)
    frames = [record(recorder, number, LEAF, "doubt") for number in range(5)]
    settled(recorder)
    with running(told(f"http://127.0.0.1:{port}")):
        with served(app, port):
            until(lambda: not asks(folder))
        frames += [record(recorder, number, LEAF, "doubt") for number in range(5, 9)]
        time.sleep(1.0)  # so that it has found nobody, and waits
        with served(app, port):
            begun = time.monotonic()
            pressed = record(recorder, 10, LEAF, "button")
            until(lambda: pressed in agent.frames)
            assert time.monotonic() - begun < 10
            until(lambda: not asks(folder))
    assert sorted(agent.frames) == sorted([*frames, pressed])
    said = [row["frame"] for row in rows_here(folder)["predictions"] if row["role"] == "teacher"]
    assert sorted(said) == sorted([*frames, pressed])


def test_killed_between_two_questions_it_goes_on(
    url: str, recorder: Recorder, agent: Agent, folder: Path, told: Callable[..., dict[str, Any]]
) -> None:
    frames = [record(recorder, number, LEAF, "doubt") for number in range(60)]
    settled(recorder)
    while asks(folder):
        seen = len(agent.said)
        with running(told(url)) as process:
            until(lambda seen=seen: len(agent.said) >= min(seen + 15, 60) or not asks(folder))  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
    said = [row["frame"] for row in rows_here(folder)["predictions"] if row["role"] == "teacher"]
    assert said == frames


def test_sigterm_ends_it_though_the_teacher_thinks(
    recorder: Recorder, agent: Agent, told: Callable[..., dict[str, Any]]
) -> None:
    record(recorder, 1, LEAF, "doubt")
    settled(recorder)
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        with running(told(f"http://127.0.0.1:{door.getsockname()[1]}")) as process:
            link, _ = door.accept()
            begun = time.monotonic()
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM and time.monotonic() - begun < 3
            link.close()
