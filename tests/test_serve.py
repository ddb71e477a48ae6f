"""What a server says to devices: the teacher's answers, the hub over HTTP, and no word to who has no token."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_kit import net
from serve_kit import SPEC, TOKEN, picture, served, until

from agrikd import files, image, serve, web
from agrikd.device.post import Answer, AwayError, Server
from agrikd.errors import InputError
from agrikd.hub import Hub
from agrikd.predict._base import FakePredictor
from agrikd.predict.ort import OrtPredictor
from agrikd.records import Opinion
from agrikd.serve import Teacher
from agrikd.types import Image, ModelSpec, Prediction
from agrikd.wire import MAX_BYTES

SOURCE = "/hub/orchard-1/" + "0123456789abcdef" * 2
OTHER = "/hub/orchard-2/" + "0123456789abcdef" * 2
LEAF = image.encode_jpeg(np.full((30, 40, 3), (200, 60, 40), np.uint8))
Call = Callable[..., Answer]


class Slow(FakePredictor):
    """Answers when it is let; counts how many it answers at once."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.go = threading.Event()
        self.begun = self.now = self.most = 0

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        self.begun, self.now = self.begun + 1, self.now + 1
        self.most = max(self.most, self.now)
        assert self.go.wait(30)
        self.now -= 1
        return super().__call__(images)


class Broken(FakePredictor):
    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        raise RuntimeError("out of memory")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    return str(path)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = Hub.open(str(tmp_path_factory.mktemp("hub")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def call(hub: Hub, token: str) -> Iterator[Call]:
    with served(serve.app(Teacher(FakePredictor(SPEC), "a" * 64), hub, TOKEN)) as url:
        yield Server(url, token).call


# The door


def test_no_route_answers_without_the_token(hub: Hub, tmp_path: Path) -> None:
    made = serve.app(Teacher(FakePredictor(SPEC), "a" * 64), hub, TOKEN)
    (tmp_path / "wrong").write_text(TOKEN + "x")
    with served(made) as url:
        wrong, seen = Server(url, str(tmp_path / "wrong")), 0
        assert wrong.call("GET", "/health").json() == {"teacher": True, "hub": True}
        for path, verbs in made.openapi()["paths"].items():
            for verb in verbs:
                answer = wrong.call(verb.upper(), path.replace("{", "").replace("}", ""))
                assert (answer.status == 401) == (path != "/health"), path
                seen += 1
        assert seen >= 11
        assert wrong.call("GET", "/openapi.json").status == 401
        assert wrong.call("GET", "/nothing").status == 401
        assert "token is missing or wrong" in str(wrong.call("GET", "/hub/devices").away())


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config" / "token"
    made = web.token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(made) >= 40 and web.token(path) == made
    assert capsys.readouterr().err.count("a new token") == 1
    path.write_text("short\n")
    with pytest.raises(InputError, match="holds no token of 16 characters"):
        web.token(path)


# The teacher


def test_an_opinion_of_a_frame(call: Call) -> None:
    answer = call("POST", "/ask/17", LEAF)
    assert answer.status == 200
    said = answer.json()
    assert said["frame"] == 17 and ModelSpec.from_json(said["spec"]) == SPEC
    opinion = Opinion.from_json(said["opinion"])
    (expected,) = FakePredictor(SPEC)([image.decode(LEAF, "leaf")])
    assert opinion.role == "teacher" and opinion.model.startswith("leaf-") and len(opinion.model) == len("leaf-") + 8
    assert np.allclose(opinion.probabilities, expected.probabilities, atol=1e-5) and opinion.top == expected.top
    assert abs(opinion.t - time.time()) < 30


def test_a_teacher_is_known_by_its_weights_and_what_is_said_of_them(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(net())
    teacher = Teacher.open(path)
    assert teacher.id == Teacher(OrtPredictor(path), files.sha256_of(path)).id
    others = [
        Teacher(FakePredictor(SPEC), "b" * 64),
        Teacher(FakePredictor(ModelSpec("leaf", "x", ("a",), (8, 8))), "b" * 64),
    ]
    assert len({teacher.id, *(other.id for other in others)}) == 3


@pytest.mark.parametrize(
    ("frame", "body", "status", "said"),
    [
        ("1", b"", 415, "no JPEG"),
        ("1", b"\x89PNG\r\n\x1a\n", 415, "no JPEG"),
        ("1", LEAF[:-20], 422, "frame 1: is cut short"),
        ("1", b"\xff\xd8\xff\xda\x00\x02" + b"\xff\xd9", 422, "cannot be decoded"),
        ("1", b"\xff\xd8" + bytes(MAX_BYTES), 413, "at most 8388608 bytes"),
        ("-1", LEAF, 422, "from 0 to"),
        ("x", LEAF, 422, "valid integer"),
        (str(2**63), LEAF, 422, "from 0 to"),
    ],
)
def test_what_is_no_question(call: Call, frame: str, body: bytes, status: int, said: str) -> None:
    try:
        answer = call("POST", f"/ask/{frame}", body)
    except AwayError as error:  # it hung up while the rest was still being sent
        assert status == 413, error
    else:
        assert answer.status == status and said in str(answer.away())
    assert call("POST", "/ask/2", LEAF).status == 200


def test_one_at_a_time_and_no_more_than_the_queue(token: str) -> None:
    slow = Slow()
    with served(serve.app(Teacher(slow, "a" * 64, most=2), None, TOKEN)) as url:
        found: list[Answer] = []
        threads = [
            threading.Thread(target=lambda n=n: found.append(Server(url, token).call("POST", f"/ask/{n}", LEAF, 60)))
            for n in range(7)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(found) == 4)
        assert {one.status for one in found} == {503} and all(1 <= one.wait_s <= 60 for one in found)
        assert "busy" in str(found[0].away())
        slow.go.set()
        for thread in threads:
            thread.join(30)
    done = [one.json() for one in found if one.status == 200]
    assert len(done) == 3 and slow.most == 1 and slow.begun == 3


def test_a_teacher_that_stumbles_answers_the_next(token: str) -> None:
    with served(serve.app(Teacher(Broken(SPEC), "a" * 64), None, TOKEN)) as url:
        server = Server(url, token)
        assert [server.call("POST", f"/ask/{n}", LEAF).status for n in range(3)] == [500] * 3
        assert server.call("GET", "/hub/devices").status == 404


def test_answers_are_bound_to_their_questions(call: Call, token: str) -> None:
    """Twelve at once, on connections that are kept, some told to come again."""
    host: str = call.__self__.name  # type: ignore[attr-defined]
    found: list[tuple[int, int]] = []

    def ask(begin: int) -> None:
        server = Server(f"http://{host}", token)
        for frame in range(begin, begin + 15):
            while (said := server.call("POST", f"/ask/{frame}", LEAF)).status == 503:
                time.sleep(0.01)
            found.append((frame, said.json()["frame"]))

    threads = [threading.Thread(target=ask, args=(begin,)) for begin in range(0, 12_000, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12 * 15 and all(asked == answered for asked, answered in found)


# The hub, over HTTP


def test_a_device_s_way(call: Call, hub: Hub) -> None:
    data = picture(1)
    row = {"id": 3, "frame": 9, "why": "doubt", "file": "x", "size_bytes": len(data), "sha256": files.sha256(data)}
    said = call("POST", SOURCE + "/heartbeat", {"period_s": 30, "vitals": {"load": [1.0]}}).json()
    assert set(said) == {"beyond", "wanted"} and set(said["beyond"].values()) == {0}
    assert call("POST", SOURCE + "/rows/pictures", {"after": 0, "rows": [row]}).json() == {"at": 3}
    assert call("GET", SOURCE).json()["wanted"] == [[3, 0]]
    assert call("PUT", SOURCE + "/pictures/3?at=0", data[:1000]).json() == {"at": 1000}
    again = call("PUT", SOURCE + "/pictures/3?at=0", data[:1000])
    assert again.status == 409 and again.json()["at"] == 1000
    assert call("PUT", SOURCE + "/pictures/3?at=1000", data[1000:]).json() == {"at": len(data)}
    assert call("GET", SOURCE + "/frames/9/picture").body == data
    assert call("GET", SOURCE + "/frames/8/picture").status == 404
    assert call("PUT", SOURCE + "/pictures/4?at=0", data).status == 404
    assert call("POST", SOURCE + "/pictures/4/gone").json() == {"done": True}
    device = json.loads(call("GET", "/hub/devices").body)[0]
    assert device["device"] == "orchard-1" and not device["stale"] and device["vitals"] == {"load": [1.0]}
    assert len(json.loads(call("GET", SOURCE + "/heartbeats").body)) == 1
    assert json.loads(call("GET", SOURCE + "/frames?before=5&count=3").body) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/rows/events", {"after": 0, "rows": [{"id": 1}]}, 422, "events[0].t: is missing"),
        ("POST", "/rows/events", {"after": 7, "rows": []}, 409, "the hub stands at 0"),
        ("POST", "/rows/daily", {"after": 0, "rows": []}, 422, "is no table of records"),
        ("POST", "/rows/events", {}, 422, "must be a list"),
        ("POST", "/rows/events", b"[1]", 422, "no JSON object"),
        ("POST", "/rows/events", b"{", 422, "no JSON"),
        ("POST", "/rows/events", b"[" * 100_000, 422, "no JSON"),
        ("POST", "/heartbeat", {"period_s": 0, "vitals": {}}, 422, "period_s"),
        ("PUT", "/pictures/-1?at=0", b"x", 422, "an id is"),
        ("PUT", "/pictures/1?at=x", b"x", 422, "valid integer"),
        ("PUT", "/pictures/1?at=0", bytes(2**20 + 1), 413, "at most 1048576 bytes"),
        ("GET", "/../../devices", b"", 404, "Not Found"),
    ],
)
def test_what_the_hub_refuses(call: Call, method: str, path: str, body: Any, status: int, said: str) -> None:
    try:
        answer = call(method, SOURCE + path, body)
    except AwayError as error:
        assert status == 413, error
    else:
        assert answer.status == status and said in str(answer.away())


def test_packed_bodies_are_bounded_too(call: Call) -> None:
    own = call.__self__  # type: ignore[attr-defined]
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
    for body, status in (
        (gzip.compress(b"[" + b" " * 100 * 2**20), 413),
        (gzip.compress(b"{}")[:-4], 413),
        (b"no gzip", 422),
        (gzip.compress(b'{"after": 0, "rows": []}'), 200),
    ):
        assert own._call("POST", SOURCE + "/rows/events", body, head, 20.0).status == status


def test_a_full_disk_is_said(call: Call, hub: Hub) -> None:
    row = {"id": 3, "frame": 9, "why": "doubt", "file": "x", "size_bytes": 5, "sha256": files.sha256(b"12345")}
    call("POST", OTHER + "/rows/pictures", {"after": 0, "rows": [row]})
    before, hub._free_bytes = hub._free_bytes, 10**18
    answer = call("PUT", OTHER + "/pictures/3?at=0", b"12345")
    hub._free_bytes = before
    assert answer.status == 507 and "the disk is full" in str(answer.away())


def test_who_says_nothing_more_is_left(call: Call, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_SILENCE_S", 0.2)
    host, port = call.__self__.name.split(":")  # type: ignore[attr-defined]
    with socket.create_connection((host, int(port)), timeout=20) as link:
        head = f"POST /ask/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        link.sendall(head.encode() + b"Content-Length: 100\r\n\r\nab")
        assert link.recv(1000).startswith(b"HTTP/1.1 408")


# As a command


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "agrikd", "serve", *map(str, words)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def test_it_serves_until_sigterm(tmp_path: Path) -> None:
    """Which ends it within 3 s, whoever is connected and half-way through."""
    (tmp_path / "model.onnx").write_bytes(net())
    token, port = tmp_path / "token", free_port()
    words = ["--teacher", tmp_path / "model.onnx", "--hub", tmp_path / "hub", "--port", port, "--token-file", token]
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    try:
        server = Server(f"http://127.0.0.1:{port}", str(token))
        until(lambda: answers(server), 60)
        assert server.call("POST", "/ask/1", LEAF).json()["opinion"]["model"].startswith("leaf-")
        assert server.call("GET", SOURCE).status == 200
        with socket.create_connection(("127.0.0.1", port)) as half:
            head = f"POST /ask/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token.read_text().strip()}\r\n"
            half.sendall(head.encode() + b"Content-Length: 100\r\n\r\nab")
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            assert time.monotonic() - begun < 3
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()
        _, said = process.communicate()
    assert f"http://127.0.0.1:{port}" in said and "a new token" in said and "Traceback" not in said


def answers(server: Server) -> bool:
    try:
        return server.call("GET", "/health").status == 200
    except (AwayError, InputError):
        return False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name --teacher, --hub or both"),
        (["--hub", "x", "--cert", "y"], "belong together"),
        (["--hub", "postgresql://localhost/hub"], "name --pictures"),
        (["--teacher", "nothing.onnx"], "there is no such file"),
        (["--hub", "x", "--host", "192.0.2.1"], "reverse proxy with TLS"),
    ],
)
def test_what_it_says_of_its_options(tmp_path: Path, words: list[str], said: str) -> None:
    done = subprocess.run(
        command(*words, "--token-file", tmp_path / "token"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
