"""The process that holds a camera: python -m agrikd.device.reader FD.

Whatever a decoder does to it, the agent lives on. Its first frame on stdin is {"source": …, "options": {…}}: not an
argument, for arguments show in `ps` and a camera's address holds its password. Then it answers each {"after": N} with
the newest frame if that has a higher number: {"number", "t", "mono", "shape", "quality"} and the JPEG, the RGB pixels
being in the shared memory behind FD by then; else with {"waiting": why} after half a second, or at once where N is
null. Every answer says {"newest", "newest_mono", "live", "why", "refused": {cause: [times, words]}} too, and
{"failed": why} is its last.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from agrikd import errors, image
from agrikd.device import quality
from agrikd.device.camera import KINDS, MEMORY_BYTES, MOST_PIXELS, PORTS, Options, hidden, kind
from agrikd.device.tether import die_with_parent
from agrikd.types import Image
from agrikd.wire import MAX_BYTES, Wire, WireError

_ANSWER_S = 0.5
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 3.0
"""Between the beginnings of two tries to open a source: doubled from the one to the other."""
_REACH_S, _GREET_S = 2.0, 5.0
"""For a stream's address to answer, and for its server to describe the stream: one that does not is asked again."""
_SPOILT = 5
"""Frames in a row that cannot be decoded, before the source is opened anew: a USB camera's first one often cannot."""
_JPEG_QUALITIES = (85, 60, 30)
"""The first that the wire takes: 12 million pixels of noise are 11 MB at 85."""
_CSI = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM), width={width}, height={height}, "
    "framerate={fps}/1 ! nvvidconv ! video/x-raw, format=BGRx"
)
_APPSINK = " ! videoconvert ! video/x-raw, format=BGR ! appsink drop=true max-buffers=1 sync=false"


class SourceError(Exception):
    """A source gives no frames: cause, in a word or two to count by, and why in words."""

    def __init__(self, cause: str, words: str) -> None:
        self.cause = cause
        super().__init__(words)


@dataclass(frozen=True)
class Shot:
    """A frame in OpenCV's order BGR, when it arrived, by both clocks, and how long the next one has to wait."""

    pixels: Image
    t: float
    mono: float
    hold_s: float = 0.0


Shots = Generator[Shot, None, None]
Refuse = Callable[[SourceError], None]


class Feed:
    """The newest frame of a source, and how the source fares; `run` is a thread's, the rest the conversation's."""

    def __init__(self, source: str, options: Options) -> None:
        self._source, self._options, self._kind = source, options, kind(source)
        self._news = threading.Condition()
        self._newest: tuple[int, Shot] | None = None
        self._number, self._live, self._why = 0, False, ""
        self._refused: dict[str, tuple[int, str]] = {}
        self._called: float | None = None

    def run(self) -> None:
        """For ever: what ends or fails is opened anew."""
        pause_s = _PAUSE_S
        while True:
            begun, before = time.monotonic(), self._number
            try:
                self._play()
            except Exception as error:  # whatever a decoder throws
                self._lose(error)
            pause_s = _PAUSE_S if self._number > before else min(2 * pause_s, _LONGEST_PAUSE_S)
            time.sleep(max(_PAUSE_S, begun + pause_s - time.monotonic()))

    def newer(self, after: int) -> tuple[int, Shot] | None:
        """The newest frame if its number is higher, else that which comes within half a second."""
        with self._news:
            self._news.wait_for(lambda: self._number > after, _ANSWER_S)
            return self._newest if self._number > after else None

    def fares(self) -> dict[str, Any]:
        """What every answer says; what was refused is told once."""
        with self._news:
            refused, self._refused = self._refused, {}
            mono = self._newest[1].mono if self._newest else None
            said = {"newest": self._number, "newest_mono": mono, "live": self._live, "why": self._why}
            return {**said, "refused": refused}

    @property
    def can_freeze(self) -> bool:
        """A photo of a folder may well be shown for long."""
        return self._kind in ("stream", "usb", "csi", "gst")

    def stuck(self) -> str:
        """Why nothing will come of the call that the thread is in; empty where something may."""
        called, live = self._called, self._live
        seconds = 0.0 if called is None else time.monotonic() - called
        if live and seconds > self._options.stall_s:
            return f"no frame came for {self._options.stall_s:g} s"
        if not live and seconds > self._options.open_s + _REACH_S:
            return f"no frame came within {self._options.open_s:g} s of opening it"
        return ""

    def _play(self) -> None:
        due, shots = time.monotonic(), _shots(self._source, self._kind, self._options, self._refuse)
        self._live = False
        with contextlib.closing(shots):
            while True:
                self._called = time.monotonic()
                shot = next(shots)
                self._called = None
                with self._news:
                    self._number += 1
                    self._newest, self._live, self._why = (self._number, shot), True, ""
                    self._news.notify_all()
                due = max(due + shot.hold_s, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()) if shot.hold_s else 0)

    def _lose(self, error: Exception) -> None:
        words = hidden(str(error) or type(error).__name__)
        self._refuse(SourceError(error.cause if isinstance(error, SourceError) else "failed", words))
        self._live, self._why, self._called = False, words, None

    def _refuse(self, error: SourceError) -> None:
        with self._news:
            times = self._refused.get(error.cause, (0, ""))[0]
            self._refused[error.cause] = times + 1, hidden(str(error))


def _shots(source: str, what: str, options: Options, refuse: Refuse) -> Shots:
    if what == "demo":
        from agrikd.device import demo_source  # draws with more of agrikd than a camera needs

        return (_now(pixels, demo_source.HOLD_S) for pixels in demo_source.frames())
    if what != "path":
        return _camera(source, what, options, refuse)
    path = Path(source)
    if path.is_dir():
        return _folder(path, options.every_s, refuse)
    if not path.exists():
        raise SourceError("absent", f"{source}: there is no such file or folder; expected {KINDS}")
    return _film(path, refuse)


def _now(pixels: Image, hold_s: float) -> Shot:
    return Shot(pixels, time.time(), time.monotonic(), hold_s)


def _camera(source: str, what: str, options: Options, refuse: Refuse) -> Shots:
    open_one = {"stream": _open_stream, "usb": _open_usb, "csi": _open_gstreamer, "gst": _open_gstreamer}[what]
    capture = open_one(source, options)
    try:
        yield from _taken(capture, refuse, 0.0)
    finally:
        capture.release()
    raise SourceError("ended", "the camera gives no more frames")


def _film(path: Path, refuse: Refuse) -> Shots:
    """At its own speed, from its beginning again when it has ended."""
    cv2 = image.opencv()
    while True:
        capture = cv2.VideoCapture(str(path))
        fps = capture.get(cv2.CAP_PROP_FPS)
        try:
            shots = _taken(capture, refuse, 1 / fps if 0 < fps <= 240 else 1 / 25)
            if (first := next(shots, None)) is None:
                raise SourceError("undecodable", f"{path}: cannot be decoded as a video")
            yield first
            yield from shots
        finally:
            capture.release()


def _folder(folder: Path, every_s: float, refuse: Refuse) -> Shots:
    """By name, and looked at anew after the last."""
    while True:
        shown = 0
        for path in sorted(one for one in folder.iterdir() if one.suffix.lower() in image.SUFFIXES):
            try:
                shot = _now(_fitting(image.read(path)[..., ::-1]), every_s)
            except (errors.AgriKDError, SourceError) as error:
                cause = error.cause if isinstance(error, SourceError) else "undecodable"
                refuse(SourceError(cause, f"{path.name}: {str(error).splitlines()[0]}"))
                continue
            shown += 1
            yield shot
        if not shown:
            raise SourceError("absent", f"{folder}: holds no photo that can be shown")


def _taken(capture: Any, refuse: Refuse, hold_s: float) -> Shots:
    """The frames of an open capture until it has no more."""
    spoilt = 0
    while capture.grab():
        t, mono = time.time(), time.monotonic()
        try:
            shot = Shot(_fitting(capture.retrieve()[1]), t, mono, hold_s)
        except SourceError as error:
            spoilt += 1
            if error.cause != "corrupt" or spoilt == _SPOILT:
                raise
            refuse(error)
            continue
        spoilt = 0
        yield shot


def _fitting(pixels: Any) -> Image:
    if pixels is None or pixels.dtype != np.uint8 or not pixels.size or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise SourceError("corrupt", "a frame could not be decoded to colours of 8 bits")
    height, width = pixels.shape[:2]
    if height * width > MOST_PIXELS:
        raise SourceError("too large", f"its frames have {width} × {height} pixels; 4096 × 3072 at most")
    return np.asarray(pixels)


def _open_stream(source: str, options: Options) -> Any:
    """A stream whose size changes while it plays is stretched to its first size by OpenCV 5, which says nothing of it
    (opencv/opencv#27116)."""
    cv2 = image.opencv()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        raise SourceError("no backend", "this OpenCV is built without FFmpeg: use gst:rtspsrc location=…")
    address = urlsplit(source)
    place = str(address.hostname), address.port or PORTS[address.scheme]
    try:  # OpenCV would try for long, and not say why
        with socket.create_connection(place, _REACH_S):
            pass
    except OSError as error:
        raise SourceError("unreachable", f"nothing answers at its address ({error.strerror or error})") from None
    greet_ms, first_ms = int(1000 * _GREET_S), int(1000 * options.open_s)
    waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, greet_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, first_ms]
    capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, [*waits, cv2.CAP_PROP_N_THREADS, options.threads])
    if not capture.isOpened():
        mend = "look at its path, user and password"
        raise SourceError("not opened", f"something answers at its address, but gives no video: {mend}")
    return capture


def _open_usb(source: str, options: Options) -> Any:
    cv2 = image.opencv()
    place = source if source.startswith("/dev/") else f"/dev/video{source[4:]}"
    if not Path(place).exists():
        raise SourceError("absent", f"there is no {place}: is the camera plugged in?")
    capture = cv2.VideoCapture(place, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise SourceError("not opened", f"{place} cannot be opened: another program may hold it")
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))  # raw frames fill a USB 2 bus at 640 x 480
    wishes = (cv2.CAP_PROP_FRAME_WIDTH, options.width), (cv2.CAP_PROP_FRAME_HEIGHT, options.height)
    for what, value in (*wishes, (cv2.CAP_PROP_FPS, options.fps), (cv2.CAP_PROP_BUFFERSIZE, 1)):
        if value:
            capture.set(what, value)
    return capture


def _open_gstreamer(source: str, options: Options) -> Any:
    cv2 = image.opencv()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise SourceError("no backend", "this OpenCV is built without GStreamer: a board's own has it, pip's has not")
    scheme, _, pipeline = source.partition(":")
    if scheme == "csi":
        width, height, fps = options.width or 1280, options.height or 720, options.fps or 30
        pipeline = _CSI.format(number=pipeline, width=width, height=height, fps=fps)
    capture = cv2.VideoCapture(pipeline if "appsink" in pipeline else pipeline + _APPSINK, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise SourceError("not opened", "GStreamer cannot play the pipeline: try it with gst-launch-1.0")
    return capture


class Answers:
    """What is said of a feed, and what is put into the shared memory before."""

    def __init__(self, wire: Wire, memory: int, feed: Feed, options: Options) -> None:
        self._wire, self._memory, self._feed = wire, memory, feed
        self._pixels = mmap.mmap(memory, MEMORY_BYTES)
        self._room, self._still = 0, quality.Still(options.frozen_s)

    def answer(self, after: int | None) -> bool:
        """Say what there is; False where that was the last word."""
        if why := self._feed.stuck():
            self._wire.say(failed=why)
            return False
        found = None if after is None else self._feed.newer(after)
        try:
            frame = self._put(*found) if found else None
        except OSError as error:
            frame, why = None, f"a frame has no room in shared memory ({error.strerror})"
            time.sleep(_ANSWER_S)
        fares = self._feed.fares()
        if frame is None:
            why = why or fares["why"] or ("no new frame has come" if fares["live"] else "the source is being opened")
            self._wire.say(waiting=why, **fares)
        else:
            self._wire.say(**frame[0], **fares)
            self._wire.send(frame[1])
        return True

    def _put(self, number: int, shot: Shot) -> tuple[dict[str, Any], bytes]:
        cv2 = image.opencv()
        size, shape = shot.pixels.size, shot.pixels.shape
        if size > self._room:  # a full tmpfs would kill who writes
            os.posix_fallocate(self._memory, 0, size)
            self._room = size
        view: Image = np.frombuffer(self._pixels, np.uint8, size).reshape(shape)
        cv2.cvtColor(shot.pixels, cv2.COLOR_BGR2RGB, dst=view)
        small = quality.grey(view)
        said = quality.faults(small) + (self._still.seen(small, shot.mono) if self._feed.can_freeze else ())
        jpegs = (image.encode_jpeg(view, each) for each in _JPEG_QUALITIES)
        jpeg = next(data for data in jpegs if len(data) <= MAX_BYTES)
        told = {"number": number, "t": shot.t, "mono": shot.mono, "shape": shape[:2], "quality": said}
        return told, jpeg


def main(memory: int) -> None:
    """Answer until stdin ends. Of all processes, the system may end this one first when memory is short."""
    die_with_parent()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    wire = Wire(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what a decoder prints would break the frames
    with contextlib.suppress(WireError):
        try:
            answers = _begun(wire, memory)
            while answers.answer(wire.hear()["after"]):
                pass
        except errors.AgriKDError as error:
            wire.say(failed=str(error))


def _begun(wire: Wire, memory: int) -> Answers:
    told = wire.hear()
    options = Options(**told["options"])
    feed = Feed(told["source"], options)
    image.opencv().setNumThreads(1)  # the model needs the other cores
    threading.Thread(target=feed.run, daemon=True).start()
    return Answers(wire, memory, feed, options)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # the thread may be in a decoder that never returns
