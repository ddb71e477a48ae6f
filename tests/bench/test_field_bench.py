"""The whole chain on one machine: an RTSP camera of 640 x 480 at 30 frames a second, the student, the records and a
viewer; then the same with a large teacher on the same cores."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtsp_kit
import yaml
from field_kit import free_port
from live_kit import parsed
from websockets.sync.client import connect

from agrikd import image, records
from agrikd.device.question import ask
from agrikd.device.store import Store

pytestmark = pytest.mark.bench
MINUTES = float(os.environ.get("AGRIKD_FIELD_MINUTES") or 5)
CLASSES = ("healthy", "miner", "rust", "phoma", "cercospora")


def exported(path: Path, name: str) -> Path:
    """A net at 224 px; its weights are random, which its time does not know."""
    from agrikd.export.onnx import describe, fold, write_graph
    from agrikd.nets.sources import open_net
    from agrikd.recipe import NetSpec
    from agrikd.types import ModelSpec

    net = open_net(NetSpec(timm=name, input_size=(224, 224)), CLASSES).eval()
    spec = ModelSpec(name, "classification", CLASSES, (224, 224))
    write_graph(net, spec, path)
    fold(path)
    describe(path, spec, 0)
    return path


class Viewer(threading.Thread):
    """Looks at every frame, reads its burnt number, and notes how old it is."""

    def __init__(self, port: int, token: str) -> None:
        super().__init__(daemon=True)
        self._url = f"ws://127.0.0.1:{port}/live?token={token}"
        self.stop = threading.Event()
        self.ages_ms: list[float] = []
        self.numbers: list[int] = []
        self.seconds = 0.0

    def run(self) -> None:
        with connect(self._url, max_size=None, proxy=None) as link:
            link.send("next")
            link.send("next")
            begun = time.monotonic()
            while not self.stop.is_set():
                link.send("next")
                said, jpeg = parsed(link.recv(timeout=30))
                self.ages_ms.append(1000 * (time.time() - said["t"]))
                if len(self.ages_ms) % 10 == 0:
                    self.numbers.append(rtsp_kit.number(image.decode(jpeg, "frame")))
            self.seconds = time.monotonic() - begun


@contextlib.contextmanager
def agent(folder: Path, model: Path, more: dict[str, Any]) -> Iterator[int]:
    """An agent over a camera of its own; the port of its live view."""
    port, server = free_port(), rtsp_kit.Server(fps=33)  # a little more than is asked for
    folder.mkdir()
    said = {"cameras": [{"name": "row-7", "source": server.url}], "live": {"port": port}, **more}
    (folder / "agent.yaml").write_text(yaml.safe_dump(said))
    words = [sys.executable, "-m", "agrikd", "agent", str(model), "--folder", str(folder)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)
        server.kill()


def measured(folder: Path, port: int, minutes: float) -> dict[str, float]:
    """Frames a second and ages, after the first seconds."""
    store = Store(folder)
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if ask(store, 5, health=True)["cameras"]["row-7"]["fps"] > 10:
                break
        assert time.monotonic() < end
        time.sleep(0.2)
    viewer = Viewer(port, (folder / "live.token").read_text().strip())
    viewer.start()
    time.sleep(5)
    begun = time.time()
    time.sleep(60 * minutes)
    took, health = time.time() - begun, ask(store, 5, health=True)
    viewer.stop.set()
    viewer.join(10)
    with contextlib.closing(records.read(folder / "records")) as db:
        count = "SELECT COUNT(*) FROM frames JOIN predictions ON frame = frames.id WHERE frames.t BETWEEN ? AND ?"
        frames = db.execute(f"{count} AND role = 'student'", (begun, begun + took)).fetchone()[0]
        answers = db.execute(f"{count} AND role = 'teacher'", (begun, begun + took)).fetchone()[0]
    said = {
        "source fps": health["cameras"]["row-7"]["camera"]["fps"],
        "recorded fps": frames / took,
        "record p50 ms": health["records"]["p50_ms"],
        "record p99 ms": health["records"]["p99_ms"],
        "viewer fps": len(viewer.ages_ms) / viewer.seconds,
        "viewer p50 ms": float(np.percentile(viewer.ages_ms, 50)),
        "viewer p95 ms": float(np.percentile(viewer.ages_ms, 95)),
        "teacher per s": answers / took,
        "dropped": health["records"]["dropped"],
    }
    print("\n" + ", ".join(f"{name} {value:.1f}" for name, value in said.items()))
    assert viewer.numbers == sorted(viewer.numbers) and health["records"]["waiting"] <= 5
    return said


def test_thirty_frames_a_second_with_a_viewer(tmp_path: Path) -> None:
    rtsp_kit.require()
    student = exported(tmp_path / "student.onnx", "mobilenetv3_small_050")
    with agent(tmp_path / "f", student, {}) as port:
        said = measured(tmp_path / "f", port, MINUTES)
    assert said["recorded fps"] >= 30 and said["record p99 ms"] <= 50 and said["dropped"] == 0
    assert said["viewer fps"] >= 27 and said["viewer p95 ms"] <= 60


def test_with_the_teacher_on_the_same_cores(tmp_path: Path) -> None:
    rtsp_kit.require()
    student = exported(tmp_path / "student.onnx", "mobilenetv3_small_050")
    teacher, token = exported(tmp_path / "teacher.onnx", "tf_efficientnet_lite2"), tmp_path / "token"
    token.write_text("a-token-for-tests\n")
    port = free_port()
    words = ["--teacher", str(teacher), "--port", str(port), "--token-file", str(token)]
    serving = subprocess.Popen([sys.executable, "-m", "agrikd", "serve", *words], stderr=subprocess.DEVNULL)
    asked = {"teacher": {"url": f"http://127.0.0.1:{port}", "token_file": str(token)}}
    try:
        with agent(tmp_path / "f", student, asked) as live:
            said = measured(tmp_path / "f", live, MINUTES)
    finally:
        serving.terminate()
        serving.wait(10)
    assert said["recorded fps"] >= 15 and said["teacher per s"] >= 0.5
