"""Cameras: what they show, and what they live through. The streams come from a real RTSP server."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtsp_kit
from fakes.stuck import all_stuck
from rtsp_kit import Line, Server, until

from agrikd import image
from agrikd.device import camera
from agrikd.device.camera import Camera, Frame, Options
from agrikd.errors import InputError

RETURN_S = 10.0
READER = "agrikd.device.reader"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that nobody hurts."""
    rtsp_kit.require()
    made = Server()
    yield made
    made.kill()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, which are gone at the end."""
    rtsp_kit.require()
    made: list[Server] = []

    def start(*words: str, **options: Any) -> Server:
        made.append(Server(*words, **options))
        return made[-1]

    yield start
    for one in made:
        one.kill()


@pytest.fixture
def opened() -> Iterator[list[Camera]]:
    """Cameras to stop at the end."""
    cameras: list[Camera] = []
    yield cameras
    for one in cameras:
        one.stop()


def look(opened: list[Camera], source: str | Path, options: Options | None = None) -> Camera:
    opened.append(Camera(str(source), options))
    return opened[-1]


def first(one: Camera, after: int = 0, seconds: float = RETURN_S) -> Frame:
    """The next frame; asked for as the agent asks."""
    end = time.monotonic() + seconds
    while (frame := one.next(after, 0.2)) is None:
        assert time.monotonic() < end, one.health()
    return frame


def reader() -> int:
    """The one reader's process."""
    until(lambda: len(list(rtsp_kit.children(READER))) == 1, 5)
    return next(rtsp_kit.children(READER))


def settled(one: Camera, after: int = 0, shape: tuple[int, ...] = (480, 640, 3)) -> int:
    """The number of the first frame of that shape that shows what was just drawn, by its bars."""
    end = time.monotonic() + RETURN_S
    while True:
        frame = first(one, after, end - time.monotonic())
        after, late_s = frame.number, rtsp_kit.late_s(frame.image, frame.mono)
        if frame.image.shape == shape and late_s < 0.5:
            return after
        assert time.monotonic() < end, (frame.image.shape, late_s)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of one colour each, among what is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        image.write_jpeg(folder / f"{2 * number}.jpg", np.full((48, 64, 3), 60 + 60 * number, np.uint8))
    whole = (folder / "0.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "3.png").write_bytes(os.urandom(3000))
    image.write_jpeg(folder / "5.jpg", np.zeros((3073, 4096, 3), np.uint8))
    (folder / "notes.txt").write_text("no photo")
    return folder


class TestStream:
    def test_a_slow_taker_sees_the_newest_frame(self, server: Server, opened: list[Camera]) -> None:
        one = look(opened, server.url)
        frame = first(one, settled(one))
        for _ in range(5):
            time.sleep(0.5)  # a taker that takes two a second
            before, drawn = frame.number, rtsp_kit.number(frame.image)
            frame = first(one, before)
            assert rtsp_kit.late_s(frame.image, time.monotonic()) < 0.3
            assert 10 <= frame.number - before == rtsp_kit.number(frame.image) - drawn <= 25
        health = one.health()
        assert health["state"] == "live" and health["age_s"] < 0.5
        assert 25 <= health["fps"] <= 40, "the half second that opening takes comes at once"

    def test_pixels_and_jpeg_are_one_picture(self, server: Server, opened: list[Camera]) -> None:
        one = look(opened, server.url)
        frame = first(one, settled(one))
        assert frame.image.shape == (480, 640, 3) and frame.quality == () and not frame.image.flags.writeable
        assert abs(frame.t - time.time()) < 1 and 0 <= time.monotonic() - frame.mono < 1
        decoded = image.decode(frame.jpeg, "jpeg")
        assert np.abs(decoded.astype(int) - frame.image).mean() < 3
        again = np.frombuffer(os.pread(one.fileno(), frame.image.size, 0), np.uint8)
        assert np.array_equal(again, frame.image.ravel())

    def test_garbage(self, server: Server, opened: list[Camera]) -> None:
        line = Line(server.port)
        one = look(opened, server.url.replace(str(server.port), str(line.port)))
        after = settled(one)
        line.spoil.set()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            frame = one.next(after, 0.2)
            after = frame.number if frame else after
        line.spoil.clear()
        begun = time.monotonic()
        settled(one, after)
        print(f"after garbage: {time.monotonic() - begun:.1f} s")
        line.close()

    def test_a_server_that_speaks_no_rtsp(self, opened: list[Camera]) -> None:
        with rtsp_kit.rubbish() as url:
            one = look(opened, url)
            assert one.next(0, 0.1) is None
            until(lambda: one.health()["state"] == "lost", 8)
            assert "gives no video" in one.health()["why"]

    def test_a_server_that_is_killed_and_comes_again(self, serve: Callable[..., Server], opened: list[Camera]) -> None:
        server = serve()
        one = look(opened, server.url)
        after = settled(one)
        server.kill()
        until(lambda: one.health()["state"] == "lost", 8)
        until(lambda: "nothing answers" in one.health()["why"], 8)
        server = serve(port=server.port, size=(480, 640))
        begun = time.monotonic()
        assert settled(one, after, (640, 480, 3)) > after
        print(f"after a kill: {time.monotonic() - begun:.1f} s")
        assert one.health()["restarts"] == 0

    def test_a_server_that_hangs(self, serve: Callable[..., Server], opened: list[Camera]) -> None:
        server = serve()
        one = look(opened, server.url)
        after = settled(one)
        server.signal(signal.SIGSTOP)
        while (frame := one.next(after, 0.2)) is not None:
            after = frame.number
        begun = time.monotonic()
        until(lambda: one.health()["state"] == "lost", 8)
        print(f"a hang is noticed: {time.monotonic() - begun:.1f} s")
        assert one.health()["why"] == "no frame came for 5 s"
        server.signal(signal.SIGCONT)
        begun = time.monotonic()
        assert settled(one, after) > after
        print(f"after a hang: {time.monotonic() - begun:.1f} s")

    def test_a_password_is_nobodys_to_see(self, serve: Callable[..., Server], opened: list[Camera]) -> None:
        server = serve("private")
        one = look(opened, server.url.replace("//", "//farmer:s3cret@"))
        first(one)
        seen = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert READER in seen and "s3cret" not in seen + str(one.health())
        one.stop()
        wrong = look(opened, server.url.replace("//", "//farmer:wr0ng@"))
        assert wrong.next(0, 0.1) is None
        until(lambda: "password" in wrong.health()["why"], 8)
        assert "wr0ng" not in str(wrong.health())


class TestFiles:
    def test_a_film_begins_again(self, opened: list[Camera], tmp_path: Path) -> None:
        cv2 = image.opencv()
        film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
        for level in range(10):
            film.write(np.full((48, 64, 3), 20 * level, np.uint8))
        film.release()
        one = look(opened, tmp_path / "film.avi")
        frame = first(one)
        begun, after, levels = frame.mono, frame.number, [frame.image.mean()]
        while frame.number < after + 25:
            frame = first(one, frame.number)
            levels.append(frame.image.mean())
        assert (np.diff(levels) < 0).sum() >= 2
        assert 0.9 <= frame.mono - begun < 3
        assert one.health()["refused"] == {} and one.health()["state"] == "live"

    def test_what_is_no_film(self, opened: list[Camera], tmp_path: Path) -> None:
        (tmp_path / "film.mp4").write_bytes(os.urandom(10_000))
        one = look(opened, tmp_path / "film.mp4")
        assert one.next(0, 0.1) is None
        until(lambda: "cannot be decoded as a video" in one.health()["why"], 8)

    def test_a_folder_of_photos_and_others(self, opened: list[Camera], photos: Path) -> None:
        one = look(opened, photos, Options(every_s=0.1))
        frame = first(one)
        levels, steps = [], []
        for _ in range(8):
            levels.append(round(frame.image.mean() / 60) - 1)
            steps.append((levels[-1] - frame.number) % 3)  # a picture that comes before the last was taken replaces it
            frame = first(one, frame.number)
        assert set(levels) == {0, 1, 2} and len(set(steps)) == 1
        refused = one.health()["refused"]
        assert set(refused) == {"undecodable", "too large"}
        assert refused["undecodable"]["times"] >= 4
        until(lambda: "1.jpg" in one.health()["refused"]["undecodable"]["last"], 8)
        until(lambda: "3.png" in one.health()["refused"]["undecodable"]["last"], 8)
        assert "5.jpg" in refused["too large"]["last"] and "4096 × 3073" in refused["too large"]["last"]

    def test_a_folder_of_nothing_and_what_is_not_there(self, opened: list[Camera], tmp_path: Path) -> None:
        empty, gone = look(opened, tmp_path), look(opened, tmp_path / "gone")
        assert empty.next(0, 0.1) is None and gone.next(0, 0.1) is None
        until(lambda: "holds no photo" in empty.health()["why"], 8)
        until(lambda: "there is no such file or folder" in gone.health()["why"], 8)


class TestReader:
    def test_a_death_and_a_hang(self, opened: list[Camera]) -> None:
        one = look(opened, "demo")
        after = first(one).number
        for which, patience, why in ((signal.SIGKILL, 2, "ended by SIGKILL"), (signal.SIGSTOP, 6, "hangs")):
            until(lambda: one.health()["state"] == "live", 5)
            pid = reader()
            os.kill(pid, which)
            begun = time.monotonic()
            while one.health()["state"] == "live":
                asked = time.monotonic()
                frame = one.next(after, 0.2)
                assert time.monotonic() - asked < 0.4, "a reader that hangs holds nobody up"
                after = frame.number if frame else after
                assert time.monotonic() < begun + patience
            assert why in one.health()["why"]
            after = first(one, after).number
            assert reader() != pid
            print(f"after {which.name}: {time.monotonic() - begun:.1f} s")
        assert one.health()["restarts"] == 2

    def test_too_much_memory(self, opened: list[Camera]) -> None:
        one = look(opened, "demo", Options(memory_mib=10))
        until(lambda: one.next(0, 0.1) or "10 at most" in one.health()["why"], 8)

    @pytest.mark.parametrize("said", ["print('no frame')", "wire.say(live=1)", "1 / 0"])
    def test_nonsense(self, said: str, opened: list[Camera], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "python"
        head = f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(Path(camera.__file__).parents[2])!r})\n"
        head += "from agrikd.wire import Wire; wire = Wire(sys.stdin.buffer, sys.stdout.buffer); wire.hear()\n"
        program.write_text(head + said)
        program.chmod(0o755)
        one = look(opened, "demo")
        monkeypatch.setattr(sys, "executable", str(program))
        assert one.next(0, 0.1) is None
        until(lambda: one.health()["restarts"] > 0, 8)
        assert one.health()["state"] == "lost" and one.health()["why"].startswith("the camera's process ")
        monkeypatch.undo()
        first(one)

    def test_while_the_kernel_holds_two_no_third_is_begun(
        self, opened: list[Camera], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, begun = look(opened, "demo"), all_stuck(monkeypatch)
        assert one.next(0, 0.1) is None
        until(lambda: "restart the board" in one.health()["why"], 8)
        time.sleep(2 * camera._PAUSE_S)
        assert len(begun) == 2 and all(str(it.pid) in one.health()["why"] for it in begun)
        monkeypatch.undo()
        for it in begun:
            it.let_go()
        first(one)

    def test_it_dies_with_the_agent(self) -> None:
        code = (
            "import time; from agrikd.device.camera import Camera; Camera('demo').next(0, 9); print(); time.sleep(99)"
        )
        agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert agent.stdout and agent.stdout.readline()
        child = next(rtsp_kit.children(READER, agent.pid))
        agent.kill()
        agent.wait(5)
        agent.stdout.close()
        until(lambda: not Path(f"/proc/{child}").exists(), 5)

    def test_nothing_is_left_after_many_restarts(self, photos: Path) -> None:
        def held() -> tuple[int, int]:
            gc.collect()
            return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

        before = held()
        one, after = Camera(str(photos)), 0
        for _ in range(20):
            after = first(one, after).number
            os.kill(reader(), signal.SIGKILL)
        assert first(one, after).number > after and one.health()["restarts"] == 20
        one.stop()
        assert list(rtsp_kit.children(READER)) == []
        del one
        assert held() == before

    def test_closed_and_opened_again(self, opened: list[Camera]) -> None:
        one = look(opened, "demo")
        assert one.health()["state"] == "closed" and not list(rtsp_kit.children(READER))
        after = first(one).number
        one.close()
        until(lambda: not list(rtsp_kit.children(READER)), 3)
        assert one.health()["state"] == "closed"
        assert first(one, after).number > after
        one.stop()
        assert one.next(0, 5) is None


@pytest.mark.parametrize(
    "source",
    ["", " ", "usb:", "usb:x", "csi:-1", "gst:", "rtsp://", "rtsp:/cam", "rtsp://a:99999/", "http://:80", "a\0b"],
)
def test_what_is_no_source(source: str) -> None:
    with pytest.raises(InputError, match="is no source"):
        Camera(source)


@pytest.mark.parametrize("source", ["usb:0", "/dev/video7", "csi:0", "gst:videotestsrc"])
def test_what_this_machine_cannot_open(source: str, opened: list[Camera]) -> None:
    one = look(opened, source)
    assert one.next(0, 0.1) is None
    until(lambda: one.health()["state"] == "lost", 8)
    assert any(words in one.health()["why"] for words in ("plugged in", "without GStreamer", "cannot"))


@pytest.mark.parametrize(
    "words",
    [
        "rtsp://farmer:s3cret@10.0.0.9/cam",
        "it says rtsp://farmer:s3cret@x, and rtsp://farmer:s3cret@y/?a=1",
        "rtsp://10.0.0.9/user=admin&password=s3cret&channel=1",
        "gst:rtspsrc location=rtsp://10.0.0.9/ user-id=farmer user-pw=s3cret ! fakesink",
        "rtsp://farmer:s3cr@t:s3cret@10.0.0.9/cam",
    ],
)
def test_no_password_is_shown(words: str) -> None:
    assert "s3cret" not in camera.hidden(words)
