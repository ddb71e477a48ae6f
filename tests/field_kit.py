"""A device that looks: its settings, a film whose frames say their number, and what a viewer gets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from device_kit import Device
from live_kit import BITS, CELL, burnt
from websockets.sync.client import ClientConnection, connect

from agrikd.device.question import ask

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
"""Of which the nets of `device_kit` say class 0, 1 and 2."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def coloured(number: int) -> np.ndarray[Any, Any]:
    """A picture [480, 640, 3] that carries its number, and is of the class number % 3."""
    picture = burnt(number)
    picture[2 * CELL :] = COLOURS[number % 3]
    rng = np.random.default_rng(number)
    picture[2 * CELL :] = np.clip(picture[2 * CELL :] + rng.normal(0, 25, (480 - 2 * CELL, 640, 1)), 0, 255)
    return picture


def film(path: Path, frames: int = 90, fps: float = 30.0) -> Path:
    """A video of `coloured` pictures."""
    assert frames < 2**BITS
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (640, 480))  # type: ignore[attr-defined]
    for number in range(frames):
        out.write(coloured(number)[..., ::-1])
    out.release()
    return path


class Field:
    """A device with one camera, whose live view is open to this machine."""

    def __init__(self, device: Device, source: str, **more: Any) -> None:
        self.device, self.port, self.folder = device, free_port(), device.store.folder
        said = {
            "device": "orchard-1",
            "cameras": [{"name": "row-7", "source": source, "field": "north", "plot": "7"}],
            "live": {"port": self.port},
            "records": {"free_gb": 0},
            **more,
        }
        (self.folder / "agent.yaml").write_text(yaml.safe_dump(said))

    @property
    def records(self) -> Path:
        return self.folder / "records"

    @property
    def token(self) -> str:
        return (self.folder / "live.token").read_text().strip()

    def health(self) -> dict[str, Any]:
        return ask(self.device.store, 5, health=True)

    def wait(self, what: Callable[[dict[str, Any]], Any], seconds: float = 30) -> dict[str, Any]:
        """The agent's health as soon as it is so."""
        end, said = time.monotonic() + seconds, {}
        while time.monotonic() < end:
            try:
                said = self.health()
                if what(said):
                    return said
            except (OSError, KeyError):
                pass
            time.sleep(0.05)
        raise AssertionError(json.dumps(said))

    def watch(self, seconds: float = 20, **more: Any) -> ClientConnection:
        """The live stream, as soon as it is there."""
        end = time.monotonic() + seconds
        while True:
            try:
                url = f"ws://127.0.0.1:{self.port}/live?token={self.token}"
                return connect(url, max_size=None, proxy=None, **more)
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
