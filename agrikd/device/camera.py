"""A camera as the agent holds it: asked with a deadline; what hangs, dies or eats the memory is a process of its own.

That process (`agrikd.device.reader`) keeps the newest frame only and puts its pixels into memory that both share. A
thread talks to it, ends it when it must be ended, and begins it again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from agrikd.device.tether import Held, ended, environment
from agrikd.errors import DeviceError, InputError, Problem
from agrikd.predict._engines import peak_mib
from agrikd.types import Image
from agrikd.wire import Patient, Wire, WireError

MOST_PIXELS = 4096 * 3072
"""Of a frame; larger ones are refused."""
MEMORY_BYTES = 3 * MOST_PIXELS
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
"""Where an address names none."""
KINDS = "usb:0, csi:0, gst:PIPELINE, rtsp://…, a video file, a folder of photos or demo"

_LOOK_S = 0.25
_FIRST_ANSWER_S, _ANSWER_S = 20.0, 3.0
"""For a process to begin, which a busy board needs, and to answer, half a second of waiting for a frame included."""
_PATIENCE_S = 2.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 2.0
"""Before a process is begun again: doubled while none of them brings a frame."""
_KEPT_S = 1.0
"""A frame that came too late for one call is given to the next, unless it is older."""
_FPS_S = 5.0
_NO_ANSWER = "the camera's process says what is no answer"
_ENVIRONMENT = {
    # TCP: a lost packet is not half a picture. Half a second of looking at the stream (µs), not until 30 frames have
    # come. Without "fflags;nobuffer", which throws the first keyframe away: no picture until the next one, 10 s later
    # on a camera set so (measured with OpenCV 5.0).
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp|analyzeduration;500000",
    "OPENCV_LOG_LEVEL": "ERROR",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Options:
    """Of a camera.

    stall_s: seconds without a frame from an open source, after which its process is ended. open_s: until the first
    frame of a source: a camera may send a keyframe every 10 s only. memory_mib: of the process, at its peak. every_s:
    each photo of a folder is shown for. frozen_s: of one picture repeated to the byte. threads: of FFmpeg's decoder;
    each beyond the first makes frames late by one more (measured). width, height, fps: asked of a USB or CSI camera; 0
    is the camera's own, for CSI 1280 x 720 at 30.
    """

    stall_s: float = 5.0
    open_s: float = 15.0
    memory_mib: float = 1024.0
    every_s: float = 1.0
    frozen_s: float = 10.0
    threads: int = 1
    width: int = 0
    height: int = 0
    fps: int = 0


@dataclass(frozen=True)
class Frame:
    """What a camera saw. number: counts up, whatever happens to the reader. t, mono: when it arrived, by the clock and
    by the monotonic clock, in seconds. image: a view of memory that holds until the next call of `next`, read-only.
    jpeg: the same picture. quality: why nobody should judge a plant by it, in the words of `agrikd.device.quality`."""

    number: int
    t: float
    mono: float
    image: Image
    jpeg: bytes
    quality: tuple[str, ...]


class Camera:
    """A source of frames for one taker; nothing runs before the first `next`. Raises `InputError` where `source` names
    no kind of source; all else that is wrong with it stands in `health`."""

    def __init__(self, source: str, options: Options | None = None) -> None:
        kind(source)
        self._source, self._options = source, options or Options()
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._memory = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by `stop`
        self._memory.truncate(MEMORY_BYTES)
        self._pixels = mmap.mmap(self.fileno(), MEMORY_BYTES, prot=mmap.PROT_READ)
        self._changed = threading.Condition()
        self._wanted, self._over = False, False
        self._wish: int | None = None
        self._frame: Frame | None = None
        self._reader: _Reader | None = None
        self._held = Held("the camera's")
        self._newest, self._newest_mono = 0, 0.0
        self._live, self._why, self._restarts = False, "", 0
        self._refused: dict[str, dict[str, Any]] = {}
        self._times: deque[tuple[float, int]] = deque()
        # The reader dies with the thread that began it, as the kernel sees it: this one lives until `stop`.
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Of the memory, for `pass_fds`: the last frame's RGB pixels at its beginning, until the next call of `next`.
        One file of `MEMORY_BYTES`, sparse, for as long as the camera lives."""
        return self._memory.fileno()

    def next(self, after: int, timeout_s: float) -> Frame | None:
        """The newest frame if its number is higher than `after`, else the next that comes within `timeout_s` seconds;
        opens a camera that is closed. A frame may be older than the call: `mono` says when it came."""
        with self._changed:
            kept, self._frame = self._frame, None
            if kept and kept.number > after and time.monotonic() - kept.mono < _KEPT_S:
                return kept
            self._wish, self._wanted = after, not self._over
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._frame is not None or self._over, timeout_s)
            self._wish = None
            kept, self._frame = self._frame, None
            return kept

    def health(self) -> dict[str, Any]:
        """source: without its password. state: "closed", "opening" until something fails, "live" or "lost"; why, in
        words. fps: of the source, over the last five seconds. age_s: of the newest frame, None before the first.
        restarts: of a process that failed. refused: frames and tries that came to nothing, by cause: {"times": how
        many, "last": why}."""
        now = time.monotonic()
        with self._changed:
            state = "live" if self._live else "lost" if self._why else "opening"
            return {
                "source": hidden(self._source),
                "state": state if self._wanted else "closed",
                "why": self._why,
                "fps": self._fps(now),
                "age_s": round(now - self._newest_mono, 3) if self._newest else None,
                "restarts": self._restarts,
                "refused": {cause: dict(said) for cause, said in self._refused.items()},
            }

    def close(self) -> None:
        """End the process, until `next` is called again."""
        with self._changed:
            self._wanted, self._live, self._why = False, False, ""
        self._end_reader()

    def stop(self) -> None:
        """For good; what `next` gave before holds no longer."""
        with self._changed:
            self._wanted, self._over = False, True
            self._changed.notify_all()
        self._end_reader()
        self._thread.join(2 * _PATIENCE_S)
        self._memory.close()

    def _fps(self, now: float) -> float:
        while self._times and self._times[0][0] < now - _FPS_S:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        (begun, first), (end, last) = self._times[0], self._times[-1]
        return round((last - first) / (end - begun), 1)

    def _end_reader(self) -> None:
        if reader := self._reader:
            reader.kill()

    def _keep(self) -> None:
        """The thread: a reader for as long as one is wanted."""
        pause_s = _PAUSE_S
        while self._is_wanted():
            before = self._newest
            try:
                self._held.require_few()
                self._reader = _Reader(self._source, self._options, self.fileno(), self._held)
                try:
                    self._converse(self._reader)
                finally:
                    self._reader.stop()
            except (DeviceError, OSError) as error:
                self._lose(str(error))
            except Exception:  # this thread outlives whatever it is told
                self._lose(_NO_ANSWER)
            pause_s = _PAUSE_S if self._newest > before else min(2 * pause_s, _LONGEST_PAUSE_S)
            with self._changed:
                self._changed.wait_for(lambda: self._over, pause_s)

    def _is_wanted(self) -> bool:
        """Waits until it is known."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._over)
            return not self._over

    def _lose(self, why: str) -> None:
        with self._changed:
            self._live = False
            if self._wanted:
                self._why, self._restarts = hidden(why), self._restarts + 1

    def _converse(self, reader: _Reader) -> None:
        """Ask until nobody wants to know. Without a wish it asks how the source fares, which leaves the pixels."""
        base = self._newest
        while True:
            with self._changed:
                if self._wish is None:
                    self._changed.wait(_LOOK_S)
                if not self._wanted:
                    return
                wish = self._wish
            said, jpeg = reader.ask(None if wish is None else max(0, wish - base))
            self._note(said, base)
            if jpeg is not None:
                self._give(said, jpeg, base)
            reader.watch(self._options.memory_mib)

    def _note(self, said: dict[str, Any], base: int) -> None:
        with self._changed:
            self._live = bool(said["live"])
            self._why = "" if self._live else hidden(str(said["why"])) or self._why  # a new reader knows of no failure
            if base + int(said["newest"]) > self._newest:
                self._newest, self._newest_mono = base + int(said["newest"]), float(said["newest_mono"])
                self._times.append((self._newest_mono, self._newest))
                self._fps(self._newest_mono)
            for cause, (times, words) in said["refused"].items():
                known = self._refused.setdefault(str(cause), {"times": 0})
                known.update(times=known["times"] + int(times), last=hidden(str(words)))

    def _give(self, said: dict[str, Any], jpeg: bytes, base: int) -> None:
        height, width = map(int, said["shape"])
        pixels = np.frombuffer(self._pixels, np.uint8, height * width * 3).reshape(height, width, 3)
        number, words = base + int(said["number"]), tuple(map(str, said["quality"]))
        with self._changed:
            self._frame = Frame(number, float(said["t"]), float(said["mono"]), pixels, jpeg, words)
            self._wish = None  # from here on the pixels are the taker's
            self._changed.notify_all()


class _Reader:
    """The process. Its source goes to its stdin: what stands in its arguments is everybody's to see."""

    def __init__(self, source: str, options: Options, memory: int, held: Held) -> None:
        self._held = held
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agrikd.device.reader", str(memory)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            pass_fds=(memory,),
            start_new_session=True,
            env={**_ENVIRONMENT, **environment()},
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        os.set_blocking(self._process.stderr.fileno(), False)
        self._words: deque[str] = deque(maxlen=3)
        self._wire = Wire(Patient(self._process.stdout, _FIRST_ANSWER_S), self._process.stdin)
        with contextlib.suppress(WireError):  # `ask` says why
            self._wire.say(source=source, options=asdict(options))

    def ask(self, after: int | None) -> tuple[dict[str, Any], bytes | None]:
        """Its answer, and the JPEG where that is a frame; raises `DeviceError` where it will give no more."""
        assert self._process.stdin and self._process.stdout
        try:
            self._wire.say(after=after)
            said = self._wire.hear()
            if "failed" in said:
                raise DeviceError(str(said["failed"]))
            jpeg = self._wire.receive() if "number" in said else None
        except WireError as error:
            raise DeviceError(self._last_words(error)) from None
        self._wire = Wire(Patient(self._process.stdout, _ANSWER_S), self._process.stdin)
        if isinstance(jpeg, dict):
            raise DeviceError(_NO_ANSWER)
        return said, jpeg

    def watch(self, memory_mib: float) -> None:
        """Raise `DeviceError` if it uses too much memory; let it go on printing."""
        self._drain()
        if (used := peak_mib(self._process.pid)) > memory_mib:
            raise DeviceError(f"the camera's process used {used:.0f} MiB, {memory_mib:.0f} at most")

    def kill(self) -> None:
        if self._process.poll() is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Take its pipes back; a process that the kernel holds is left behind."""
        self.kill()
        self._held.ended(self._process, _PATIENCE_S)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _drain(self) -> None:
        assert self._process.stderr
        with contextlib.suppress(OSError):
            while part := os.read(self._process.stderr.fileno(), 65536):
                self._words.extend(line[-300:] for line in part.decode(errors="replace").splitlines() if line.strip())

    def _last_words(self, error: WireError) -> str:
        try:
            code = self._process.wait(0.1)
        except subprocess.TimeoutExpired:
            return f"the camera's process hangs ({error})"
        self._drain()
        words = " / ".join(self._words)
        return f"the camera's process {ended(code)}" + (f": {words}" if words else "")


def hidden(words: str) -> str:
    """The same words without the passwords of addresses and pipelines that stand in them."""
    words = re.sub(r"://\S*@", "://…@", words)
    return re.sub(r"(?i)\b(\w*pass\w*|\w*pwd|user-pw|token)=\S+", r"\1=…", words)


def kind(source: str) -> str:
    """What a source is: demo, stream, usb, csi, gst or path; raises `InputError` where it is none of these."""
    scheme, _, rest = source.partition(":")
    if source == "demo":
        return "demo"
    if scheme in PORTS:
        with contextlib.suppress(ValueError):  # a port that is no number
            address = urlsplit(source)
            if address.hostname and (address.port is None or address.port > 0):
                return "stream"
    elif source.startswith("/dev/video"):
        return "usb"
    elif scheme in ("usb", "csi"):
        if re.fullmatch(r"\d{1,3}", rest, re.ASCII):
            return scheme
    elif scheme == "gst":
        if rest.strip():
            return "gst"
    elif source.strip() and "\0" not in source:
        return "path"
    raise InputError(Problem("camera", f"{hidden(source)!r} is no source", f"expected {KINDS}"))
