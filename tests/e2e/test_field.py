"""A device with its agent, a teacher and a hub, all real processes, of which any may be killed at any moment."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_kit import Device, Pack, net
from field_kit import Field, film, free_port

from agrikd import files, records
from agrikd.hub import AbsentError, Hub, Source

TOKEN = "a-token-for-tests"


class Lab:
    """The server of teacher and hub, which is begun again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "teacher.onnx").write_bytes(net())
        (folder / "token").write_text(TOKEN + "\n")
        self.start()

    def start(self) -> None:
        words = ["--teacher", self.folder / "teacher.onnx", "--hub", self.folder / "hub", "--port", self.port]
        words += ["--token-file", self.folder / "token"]
        command = [sys.executable, "-m", "agrikd", "serve", *map(str, words)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def settings(self) -> dict[str, str]:
        return {"url": f"http://127.0.0.1:{self.port}", "token_file": str(self.folder / "token")}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    (tmp_path / "lab").mkdir()
    one = Lab(tmp_path / "lab")
    yield one
    one.kill()


@pytest.fixture
def field(device: Device, packed: Pack, tmp_path: Path, lab: Lab) -> Iterator[Field]:
    """Every tenth frame is of the audit, so that pictures are kept and the teacher is asked all the time."""
    more = {"teacher": lab.settings, "hub": {**lab.settings, "heartbeat_s": 1}}
    one = Field(device, str(film(tmp_path / "film.mp4", fps=10)), records={"free_gb": 0, "audit_share": 0.1}, **more)
    device.start()
    done = device.run("install", str(packed(1)))
    assert done.returncode == 0, done.stderr
    one.wait(lambda said: said["serving"].startswith("1-") and said["aides"]["sync"]["pid"])
    yield one
    device.stop()


def labelled(field: Field, key: str) -> bool:
    """Whether a label of the newest frame was acknowledged."""
    with contextlib.suppress(OSError, KeyError, http.client.HTTPException):
        frame = field.health()["cameras"]["row-7"]["frame"]
        link = http.client.HTTPConnection("127.0.0.1", field.port, timeout=15)
        with contextlib.closing(link):
            body = json.dumps({"key": key, "frame": frame, "label": "rust"})
            signed = {"Authorization": f"Bearer {field.token}", "Content-Type": "application/json"}
            link.request("POST", "/label", body, signed)
            return link.getresponse().status == 200
    return False


def arrived(field: Field, lab: Lab) -> bool:
    """Whether the hub has each row and each kept picture of the device, once and as it is there."""
    with contextlib.closing(records.read(field.records)) as db:
        source = Source("orchard-1", records.meta(db, "series"))
        here = {name: records.beyond(db, name, 0, 1_000_000) for name in records.TABLES}
    with contextlib.closing(sqlite3.connect(lab.folder / "hub" / "hub.db")) as db:
        there = {name: db.execute(f"SELECT COUNT(*), COUNT(DISTINCT id) FROM {name}").fetchone() for name in here}
    if any(there[name] != (len(rows), len(rows)) for name, rows in here.items()):
        return False
    hub = Hub.open(str(lab.folder / "hub"), None)
    with contextlib.closing(hub), contextlib.suppress(AbsentError):
        here_and_there = [(row["sha256"], hub.picture(source, row["frame"])) for row in here["pictures"]]
        return all(files.sha256_of(path) == sha256 for sha256, path in here_and_there)
    return False


@pytest.mark.torture
def test_whoever_is_killed_nothing_acknowledged_is_lost_and_all_of_it_reaches_the_hub_once(
    field: Field, lab: Lab
) -> None:
    """Thirty kills of agent, teacher and hub, sync and second opinion; 200 and more by `make torture`."""
    rng, acknowledged = random.Random(7), []
    for kill in range(30 if "AGRIKD_TORTURE" not in os.environ else 200):
        victim = rng.choice(["agent", "lab", "sync", "second"])
        end = time.monotonic() + rng.random()
        while time.monotonic() < end:
            key = f"click-{kill:03d}-{len(acknowledged):05d}"
            if labelled(field, key):
                acknowledged.append(key)
        if victim == "agent":
            field.device.stop(signal.SIGKILL)
            with contextlib.closing(sqlite3.connect(field.records / "records.db")) as db:
                assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            field.device.start()
            field.wait(lambda said: said["cameras"]["row-7"]["frame"] and said["aides"]["live"]["pid"])
        elif victim == "lab":
            lab.kill()
            lab.start()
        else:
            pid = field.wait(lambda said, victim=victim: said["aides"][victim]["pid"])["aides"][victim]["pid"]
            os.kill(pid, signal.SIGKILL)
    field.wait(lambda said: labelled(field, "click-the-last"))
    asked = "SELECT (SELECT COUNT(*) FROM asks), (SELECT COUNT(*) FROM predictions WHERE role = 'teacher')"
    end = time.monotonic() + 90
    while True:  # a camera that goes on looking is never at an end
        with contextlib.closing(records.read(field.records)) as db:
            waiting, answered = db.execute(asked).fetchone()
        if waiting <= 3 and answered > 10:
            break
        assert time.monotonic() < end, (waiting, answered)
        time.sleep(0.2)
    (field.folder / "agent.yaml").write_text((field.folder / "agent.yaml").read_text().replace("film.mp4", "none.mp4"))
    field.device.stop()
    field.device.start()
    end = time.monotonic() + 90
    while not arrived(field, lab):
        assert time.monotonic() < end, "not all of it reached the hub"
        time.sleep(0.5)
    with contextlib.closing(records.read(field.records)) as db:
        keys = {row["key"] for row in db.execute("SELECT key FROM labels")}
        pictures = db.execute("SELECT COUNT(*) FROM pictures").fetchone()[0]
    assert set(acknowledged) <= keys and len(acknowledged) >= 30 and pictures >= 30
