"""What was made by the demo, at work: a camera of drawn leaves, the student, the teacher, and the app beside them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from agrikd import console, files, site, web
from agrikd.device.store import SETTINGS
from agrikd.errors import AgriKDError, DeviceError

_START_S, _END_S = 120.0, 10.0
_FRAME_EVERY_S = 0.1


def serve_demo(out: Path, port: int) -> None:
    """Until Ctrl-C or SIGTERM. out: of a demo that has ended. port: of the app, on this machine.

    Raises `InputError` for a port that is taken, `DeviceError` where one of them does not begin.
    """
    web.require_port("127.0.0.1", port)
    field, token = site.Field(out / "field"), out / "teacher.token"
    asking, live = _free_port(), _free_port()
    settings = {
        "device": "demo",
        "cameras": [{"name": "drawn-leaves", "source": "demo", "field": "demo", "every_s": _FRAME_EVERY_S}],
        "live": {"port": live},
        "teacher": {"url": f"http://127.0.0.1:{asking}", "token_file": str(token.resolve())},
    }
    files.write_text(field.folder / SETTINGS, yaml.safe_dump(settings, sort_keys=False))
    teacher = ("serve", "--teacher", out / "runs" / "teacher", "--port", asking, "--token-file", token)
    agent = ("agent", out / "runs" / "distilled" / "model.onnx", "--folder", field.folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with _running(teacher) as answering, contextlib.ExitStack() as rest:
        with console.job("start the teacher and the agent") as _:
            _wait(lambda: socket.create_connection(("127.0.0.1", asking), 1).close(), answering)
            looking = rest.enter_context(_running(agent))
            _wait(lambda: field.call("GET", "/status"), looking)
        site.run(field, "127.0.0.1", port, out / "runs")


@contextlib.contextmanager
def _running(words: tuple[object, ...]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "agrikd", *map(str, words)])
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(ask: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Until it answers."""
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(AgriKDError, OSError):
            ask()
            return
        time.sleep(0.2)
    raise DeviceError("the teacher or the agent does not answer\n    → see what it said")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
