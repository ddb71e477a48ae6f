"""RTSP cameras for tests: a real server in a process of its own, a line that spoils what it carries, bars to read."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from needs import absent

PYTHON = "/usr/bin/python3"
PROGRAM = Path(__file__).parent / "fakes" / "rtsp_server.py"
PACKAGES = "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
INSTALL = f"apt-get install {PACKAGES} gstreamer1.0-plugins-ugly"
_BITS, _ROW_PX = 24, 32


def require() -> None:
    """Skip where Debian's GStreamer is not there, and say how to get it."""
    code = """
import gi
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert all(Gst.ElementFactory.find(name) for name in ("appsrc", "x264enc", "rtph264pay"))
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, check=False) if Path(PYTHON).exists() else None
    if done is None or done.returncode:
        absent(f"there is no RTSP server: {INSTALL}")


def number(picture: np.ndarray[Any, Any]) -> int:
    """Of a frame, as burnt in."""
    return _bars(picture, 0)


def late_s(picture: np.ndarray[Any, Any], mono: float) -> float:
    """From the drawing of a frame to `mono`."""
    return ((int(1000 * mono) - _bars(picture, 1)) % 2**_BITS) / 1000


def _bars(picture: np.ndarray[Any, Any], row: int) -> int:
    wide = picture.shape[1] // _BITS // 2 * 2
    line = picture[row * _ROW_PX + _ROW_PX // 2].mean(axis=-1)
    return sum(int(line[wide * bit + wide // 2] > 128) << bit for bit in range(_BITS))


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


class Server:
    """H.264, a keyframe each second."""

    def __init__(self, *words: str, port: int = 0, size: tuple[int, int] = (640, 480), fps: int = 30) -> None:
        self.port = port or free_port()
        command = [PYTHON, PROGRAM, *map(str, (self.port, *size, fps, fps)), *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout
        assert select.select([self._process.stdout], [], [], 30)[0], "the RTSP server did not start"
        assert self._process.stdout.readline() == b"ready\n"

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def signal(self, which: int) -> None:
        self._process.send_signal(which)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)


class Line:
    """A TCP line to a port. spoil: while set, a byte in 50 of what comes back is another one."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.spoil = threading.Event()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            while True:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    if one is far:
                        data = self._back(data)
                    (near if one is far else far).sendall(data)

    def _back(self, data: bytes) -> bytes:
        if not self.spoil.is_set():
            return data
        spoilt = bytearray(data)
        for _ in range(len(data) // 50 + 1):
            spoilt[random.randrange(len(data))] = random.randrange(256)
        return bytes(spoilt)


@contextlib.contextmanager
def rubbish() -> Iterator[str]:
    """The address of a server that answers whatever it hears with noise."""

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = door.accept()
                with near, contextlib.suppress(OSError):
                    near.recv(1000)
                    near.sendall(os.urandom(20_000))

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=talk, daemon=True).start()
        yield f"rtsp://127.0.0.1:{door.getsockname()[1]}/cam"
        door.shutdown(socket.SHUT_RDWR)


def until(holds: Callable[[], Any], seconds: float, what: str = "") -> float:
    """Wait until it holds, and say how many seconds that took."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + seconds, what or "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - begun


def children(module: str, parent: int = 0) -> Iterator[int]:
    """Processes that this one, or another, began with `python -m module`, and that live."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            begun_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if begun_by == (parent or os.getpid()) and module.encode() in words:
                yield int(folder.name)
