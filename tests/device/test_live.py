"""The live server: who gets in, what he sees, how it ends. The agent behind it is a stand-in."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_kit import TOKEN, Live, StandIn, number_in, parsed
from schemathesis import GenerationMode
from serve_kit import until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from agrikd import web
from agrikd.device.aide import Aide
from agrikd.device.live import MOST_AHEAD, Relay, app

SIGNED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l")


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[StandIn]:
    one = StandIn(folder)
    with one.running():
        yield one


@pytest.fixture(scope="module")
def live(folder: Path, agent: StandIn) -> Iterator[Live]:
    one = Live(folder)
    yield one
    one.stop()


def ask(live: Live, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    with contextlib.closing(link):
        data = None if body is None else json.dumps(body).encode()
        link.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = link.getresponse()
        return answer.status, answer.read()


def test_a_message_has_the_picture_and_the_answer_of_one_frame_and_the_newest_wins(live: Live, agent: StandIn) -> None:
    with live.watch() as link:
        numbers = []
        for _ in range(40):
            link.send("next")
            said, jpeg = parsed(link.recv())
            assert said["frame"] == number_in(jpeg) and said["student"]["top"] == said["frame"] % 2
            numbers.append(said["frame"])
        assert numbers == sorted(set(numbers))
        before = agent.frame
        while agent.frame < before + 20:
            time.sleep(0.01)
        link.send("next")
        assert parsed(link.recv())[0]["frame"] >= before + 20  # and not the one after the last


def test_who_comes_late_is_told_how_old_the_last_picture_is(live: Live, agent: StandIn) -> None:
    def first() -> dict[str, Any]:
        with live.watch() as link:
            link.send("next")
            return parsed(link.recv(timeout=10))[0]

    assert first()["age_s"] < 1
    agent.blind = True
    try:
        last = first()
        until(lambda: time.time() > last["t"] + 1.5)
        again = first()
        assert again["frame"] == last["frame"] and again["age_s"] > max(1.5, last["age_s"])
        assert again["age_s"] == pytest.approx(time.time() - last["t"], abs=0.5)
    finally:
        agent.blind = False


def test_what_is_asked_ahead_is_bounded(live: Live) -> None:
    with live.watch() as link:
        for _ in range(100):
            link.send("next")
        got = 0
        with contextlib.suppress(TimeoutError):
            while got <= 100:
                link.recv(timeout=1.0)
                got += 1
        assert 1 <= got <= MOST_AHEAD + 100 * 0.5


def test_all_viewers_see_and_nobody_is_asked_for_when_nobody_looks(live: Live, agent: StandIn) -> None:
    seen: dict[int, int] = {}

    def look(number: int) -> None:
        with live.watch() as link:
            for _ in range(30):
                link.send("next")
                said, jpeg = parsed(link.recv(timeout=10))
                assert said["frame"] == number_in(jpeg)
                seen[number] = seen.get(number, 0) + 1

    viewers = [threading.Thread(target=look, args=(number,)) for number in range(8)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join(30)
    assert seen == dict.fromkeys(range(8), 30)
    end = time.monotonic() + 10
    while True:  # one question may still be on its way
        before, start = len(agent.asked), agent.frame
        while agent.frame < start + 15:
            time.sleep(0.01)
        if len(agent.asked) == before:
            return
        assert time.monotonic() < end


def routes() -> list[tuple[str, str]]:
    paths = app(Relay("", ["row-7"]), web.Guard(TOKEN), Path()).openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_there_are_so_many_routes() -> None:
    assert len(routes()) == 6


@pytest.mark.parametrize(("method", "path"), routes())
def test_no_route_answers_without_the_token_or_to_another_page(
    live: Live, agent: StandIn, method: str, path: str
) -> None:
    label = {"key": "click-0001", "frame": 1, "label": "rust"}
    path, body, before = path.replace("{frame}", "1"), label if path == "/label" else None, len(agent.asked)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": TOKEN}):
        status, said = ask(live, method, path, body, **headers)
        assert status == 401 and b"\xff\xd8" not in said
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{live.port + 1}"):
        status, said = ask(live, method, path, body, **SIGNED, Origin=origin)
        assert status == 403 and b"\xff\xd8" not in said
    assert [what for what, _ in agent.asked[before:] if what != "next"] == []
    for origin in ("https://farm.example", f"http://127.0.0.1:{live.port}"):
        assert ask(live, method, path, body, **SIGNED, Origin=origin)[0] == 200
    assert ask(live, method, f"{path}?token={TOKEN}", body)[0] == 200


@pytest.mark.parametrize("more", [{}, {"origin": "https://evil.example"}])
def test_no_stream_without_the_token_or_to_another_page(live: Live, more: dict[str, str]) -> None:
    shown = TOKEN if more else "wrong"
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{live.port}/live?token={shown}", proxy=None, **more)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_a_stream_of_no_camera_is_refused(live: Live) -> None:
    with pytest.raises(InvalidStatus):
        live.watch("row-99")
    status, said = ask(live, "GET", "/latest.jpg?camera=row-99", **SIGNED)
    assert status == 404 and b"row-7" in said


def test_a_large_body_is_refused_whatever_its_header_says(live: Live) -> None:
    label = {"key": "click-0001", "frame": 1, "label": "rust", "note": "x" * 100_000}
    assert ask(live, "POST", "/label", label, **SIGNED)[0] == 413
    with socket.create_connection(("127.0.0.1", live.port), 10) as link:
        head = f"POST /label HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
        link.sendall(head.encode())
        with contextlib.suppress(OSError):
            for _ in range(1000):
                link.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 413")


def test_pictures_labels_and_questions(live: Live, agent: StandIn) -> None:
    status, jpeg = ask(live, "GET", "/latest.jpg", **SIGNED)
    assert status == 200 and number_in(jpeg) > 0
    status, jpeg = ask(live, "GET", "/frame/12.jpg", **SIGNED)
    assert status == 200 and number_in(jpeg) == 12
    assert ask(live, "GET", "/frame/2000.jpg", **SIGNED)[0] == 404
    label = {"key": "click-0001", "frame": 5, "label": "<b>\"rust'</b>", "who": "Ana"}
    assert ask(live, "POST", "/label", label, **SIGNED) == (200, b'{"id":7}')
    assert agent.asked[-1] == ("label", {**label, "source": "live", "note": ""})
    assert ask(live, "POST", "/label", {**label, "frame": 5000}, **SIGNED)[0] == 409
    assert ask(live, "POST", "/ask-teacher/5", **SIGNED) == (200, b'{"frame":5}')
    assert ask(live, "POST", "/ask-teacher/5000", **SIGNED)[0] == 409
    assert json.loads(ask(live, "GET", "/status", **SIGNED)[1])["serving"] == "3-abc"
    assert json.loads(ask(live, "GET", "/accuracy", **SIGNED)[1]) == {"all": None, "classes": {}}


def test_without_an_agent_it_says_so_and_goes_on_when_there_is_one_again(tmp_path: Path) -> None:
    agent, live = StandIn(tmp_path), Live(tmp_path)
    try:
        assert ask(live, "GET", "/status", **SIGNED)[0] == 503
        with live.watch() as link:
            link.send("next")
            for _ in range(2):
                with agent.running():
                    first = parsed(link.recv(timeout=10))[0]["frame"]
                    agent.frame = 0  # an agent that lost its disk counts anew
                    link.send("next")
                    assert first >= 1
                    link.recv(timeout=10)
                    link.send("next")
    finally:
        live.stop()


def test_a_port_that_is_taken_is_told_with_the_way_out(live: Live, folder: Path) -> None:
    told: list[str] = []
    options = {"port": live.port, "host": "127.0.0.1", "cameras": ["row-7"], "token_file": str(folder / "live.token")}
    aide = Aide("agrikd.device.live", {**options, "socket": "", "records": "", "origins": []}, told.append)
    end = time.monotonic() + 60
    while not aide.failures:
        aide.keep()
        assert time.monotonic() < end
        time.sleep(0.01)
    said = aide.health()
    assert told == [said["why"]] and said["failures"] == 1
    assert f"ended with code 2: error: port {live.port} of 127.0.0.1: is taken" in said["why"]
    assert "as in live: {port: 8601}" in said["why"]


def test_a_terminal_does_not_interrupt_an_aide() -> None:
    aide = Aide("agrikd.device.second", {}, [].append)
    aide.keep()
    pid = aide.health()["pid"]
    assert pid and os.getpgid(pid) == pid
    aide.stop()


def test_it_ends_in_three_seconds_though_people_look(folder: Path, agent: StandIn) -> None:
    one = Live(folder)
    with one.watch() as link, socket.create_connection(("127.0.0.1", one.port)) as idle:
        link.send("next")
        link.recv(timeout=10)
        idle.sendall(b"GET /status HTTP/1.1\r\n")  # and says no more
        assert one.stop() < 3.0
        with pytest.raises(ConnectionClosed):
            while True:
                link.recv(timeout=5)


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first = web.token(tmp_path / "deep" / "token")
    assert web.token(tmp_path / "deep" / "token") == first and len(first) >= 40
    assert (tmp_path / "deep" / "token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_its_schema_allows_and_what_not_is_answered_as_it_says(
    folder: Path, agent: StandIn, live: Live, mode: GenerationMode
) -> None:
    made = app(Relay(str(folder / "agent.sock"), ["row-7"]), web.Guard(TOKEN), folder / "records")
    schema, seen = schemathesis.openapi.from_asgi("/openapi.json", made), 0
    for found in schema.get_all_operations():
        operation, seen = found.ok(), seen + 1

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            answer = case.call(headers=SIGNED)
            if answer.status_code != 413:  # a refusal, though not one that schemathesis counts
                case.validate_response(answer)

        if mode == GenerationMode.POSITIVE or operation.body or operation.path_parameters:
            holds()
    assert seen == 6
