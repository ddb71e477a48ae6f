"""The live server as a process of its own, and an agent that stands in for the one with cameras."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from agrikd import image, records
from agrikd.device.desk import Reply, listening

BITS, CELL = 24, 16
TOKEN = "a-token-for-tests"


def burnt(number: int, width: int = 640, height: int = 480) -> np.ndarray[Any, Any]:
    """A picture [H, W, 3] that carries its number as a row of black and white cells; as a JPEG it has 25 kB."""
    small = np.random.default_rng(0).integers(80, 160, (height // 24, width // 24, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if number >> bit & 1 else 0
    return picture


def number_in(jpeg: bytes) -> int:
    """The number that a JPEG carries."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    cells = picture[CELL // 2, CELL // 2 : BITS * CELL : CELL] > 127
    return int(sum(1 << bit for bit, on in enumerate(cells) if on))


class StandIn:
    """Answers as an agent does: a new frame so many times a second, and what was asked of it."""

    def __init__(self, folder: Path, fps: float = 30.0) -> None:
        self.folder, self.fps = folder, fps
        self.frame, self._jpeg, self._t = 0, b"", 0.0
        self.asked: list[tuple[str, Any]] = []
        self.blind = False
        """Its camera gives no more pictures."""
        self._changed, self._ended = threading.Condition(), threading.Event()
        self.verbs = {name: getattr(self, f"_{name}") for name in ("health", "next", "frame_", "label", "ask")}
        self.verbs["frame"] = self.verbs.pop("frame_")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        drawing = threading.Thread(target=self._draw, daemon=True)
        self._ended.clear()
        with listening(self.folder / "agent.sock", self.verbs, 60.0):
            drawing.start()
            yield
        self._ended.set()
        drawing.join()

    def _draw(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due += 1 / self.fps
            jpeg = image.encode_jpeg(burnt(self.frame + 1), 85)
            with self._changed:
                self.frame, self._jpeg, self._t = self.frame + 1, jpeg, time.time()
                self._changed.notify_all()

    def _health(self, _: Any) -> Reply:
        return {"serving": "3-abc", "cameras": {"row-7": {"fps": self.fps}}}, None

    def _next(self, asked: dict[str, Any]) -> Reply:
        self.asked.append(("next", asked))
        with self._changed:
            if not self._changed.wait_for(lambda: self.frame > asked["after"] and not self.blind, 1.0):
                return {"absent": True}, None
            return {**_said(self.frame), "t": self._t, "camera": asked["camera"]}, self._jpeg

    def _frame_(self, frame: int) -> Reply:
        return ({"frame": frame}, image.encode_jpeg(burnt(frame))) if frame < 1000 else ({"absent": True}, None)

    def _label(self, asked: dict[str, Any]) -> Reply:
        self.asked.append(("label", asked))
        return ({"done": 7}, None) if asked["frame"] < 1000 else ({"failed": "frame is not in the records"}, None)

    def _ask(self, asked: dict[str, Any]) -> Reply:
        self.asked.append(("ask", asked))
        return ({"done": True}, None) if asked["frame"] < 1000 else ({"failed": "the picture is gone"}, None)


def _said(frame: int) -> dict[str, Any]:
    """What an agent says of a frame: of two classes one, in turns."""
    top = frame % 2
    shares = [0.2, 0.8] if top else [0.8, 0.2]
    student = {"top": top, "probabilities": shares, "candidates": [top], "unsure": False, "unknown": False}
    return {
        "frame": frame,
        "quality": [],
        "student": student,
        "smoothed": shares,
        "classes": ["rust", "healthy"],
        "second": None,
    }


class Live:
    """The server over a folder's agent. port: of one that ended; else one that is free."""

    def __init__(self, folder: Path, cameras: tuple[str, ...] = ("row-7",), port: int = 0) -> None:
        (folder / "live.token").write_text(TOKEN)
        records.create(folder / "records").close()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
        told = {
            "socket": str(folder / "agent.sock"),
            "records": str(folder / "records"),
            "cameras": cameras,
            "token_file": str(folder / "live.token"),
            "host": "127.0.0.1",
            "port": self.port,
            "origins": ["https://farm.example"],
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agrikd.device.live"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(told).encode())
        self.process.stdin.close()
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None and time.monotonic() < end, self.process.stderr
            time.sleep(0.05)

    def watch(self, camera: str = "", **more: Any) -> ClientConnection:
        url = f"ws://127.0.0.1:{self.port}/live?camera={camera}&token={TOKEN}"
        return connect(url, max_size=None, proxy=None, **more)

    def stop(self) -> float:
        """How many seconds it took to end."""
        begun = time.monotonic()
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stderr
        self.process.stderr.close()
        return time.monotonic() - begun


def parsed(message: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the picture of a message of the stream."""
    (length,) = struct.unpack(">I", message[:4])
    said: dict[str, Any] = json.loads(message[4 : 4 + length])
    return said, message[4 + length :]
