"""The whole agent on a device: camera, model, records and the live view, all of them real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from device_kit import QUICK, WEIGHTS, Device, Pack, contents
from field_kit import Field, film
from live_kit import number_in, parsed

from agrikd import image, records
from agrikd.condition import Condition
from agrikd.device.agent import Agent


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.fixture
def field(device: Device, packed: Pack, moving: Path) -> Iterator[Field]:
    """A device whose first release serves, and whose camera is live."""
    one = Field(device, str(moving))
    device.start()
    done = device.run("install", str(packed(1)))
    assert done.returncode == 0, done.stderr
    one.wait(lambda said: said["serving"].startswith("1-") and said["cameras"]["row-7"]["fps"] > 5)
    yield one
    device.stop()


def rows(field: Field, what: str) -> list[dict[str, Any]]:
    with contextlib.closing(records.read(field.records)) as db:
        return [dict(row) for row in db.execute(what)]


def post(field: Field, path: str, body: Any) -> int:
    link = http.client.HTTPConnection("127.0.0.1", field.port, timeout=15)
    with contextlib.closing(link):
        signed = {"Authorization": f"Bearer {field.token}", "Content-Type": "application/json"}
        link.request("POST", path, json.dumps(body).encode(), signed)
        return link.getresponse().status


def test_the_viewer_sees_the_picture_and_the_answer_of_one_frame(field: Field) -> None:
    with field.watch() as link:
        link.send("next")
        numbers, ids = [], []
        for _ in range(60):
            link.send("next")
            said, jpeg = parsed(link.recv(timeout=10))
            number = number_in(jpeg)
            assert said["student"]["top"] == number % 3
            assert said["student"]["model"].startswith("1-") and len(said["smoothed"]) == 3
            numbers.append(number)
            ids.append(said["frame"])
    assert ids == sorted(set(ids)) and len(set(numbers)) > 20


def test_a_new_release_costs_no_frame_and_every_record_names_its_model(field: Field, packed: Pack) -> None:
    before = rows(field, "SELECT MAX(id) AS id FROM frames")[0]["id"]
    done = field.device.run("install", str(packed(2, held=contents(WEIGHTS + 1))))
    assert done.returncode == 0, done.stderr
    said = field.wait(lambda said: said["serving"].startswith("2-"))
    assert said["release"] == {"name": "leaf", "version": "2026.2", "expired": ""}
    end = rows(field, "SELECT MAX(id) AS id FROM frames")[0]["id"] + 30
    field.wait(lambda said: said["cameras"]["row-7"]["frame"] > end)
    field.device.stop()
    seen = rows(field, f"SELECT * FROM frames WHERE id > {before} ORDER BY id")
    assert [row["id"] for row in seen] == list(range(before + 1, before + 1 + len(seen)))
    assert max(b["t"] - a["t"] for a, b in pairwise(seen)) <= 1.0
    models = rows(field, f"SELECT frame, model FROM predictions WHERE frame > {before} ORDER BY frame")
    assert [row["frame"] for row in models] == [row["id"] for row in seen]
    turns = [(a["model"], b["model"]) for a, b in pairwise(models) if a["model"] != b["model"]]
    assert len(turns) == 1 and turns[0][0].startswith("1-") and turns[0][1].startswith("2-")
    assert {row["name"] for row in rows(field, "SELECT name FROM models")} == set(turns[0])


def test_what_dies_beside_it_comes_back_and_nothing_recorded_is_lost(field: Field) -> None:
    for victim in ("model", "live", "reader"):
        said = field.health()
        frame = said["cameras"]["row-7"]["frame"]
        pid = {
            "model": lambda said=said: said["pid"],
            "live": lambda said=said: said["aides"]["live"]["pid"],
            "reader": lambda: child_of(field, "agrikd.device.reader"),
        }[victim]()
        os.kill(pid, signal.SIGKILL)
        field.wait(lambda said, frame=frame: said["cameras"]["row-7"]["frame"] > frame + 30 and said["serving"])
    with field.watch() as link:
        link.send("next")
        frame = parsed(link.recv(timeout=10))[0]["frame"]
    assert post(field, "/label", {"key": "click-0001", "frame": frame, "label": "rust", "who": "Ana"}) == 200
    assert rows(field, "SELECT label FROM labels") == [{"label": "rust"}]
    ids = [row["id"] for row in rows(field, "SELECT id FROM frames ORDER BY id")]
    assert ids == list(range(1, len(ids) + 1))
    kept = rows(field, f"SELECT file FROM pictures WHERE frame = {frame}")
    assert (field.records / kept[0]["file"]).is_file()


def test_a_live_view_whose_port_is_taken_is_known(device: Device, moving: Path) -> None:
    field = Field(device, str(moving))
    with socket.create_server(("127.0.0.1", field.port)):
        device.start()
        said = field.wait(lambda said: said["aides"]["live"]["failures"] >= 2)
        device.stop()
    (found,) = Condition.of({"agent": said}).aides
    assert found[0] == "live" and f"port {field.port} of 127.0.0.1: is taken" in found[1]
    (event,) = rows(field, "SELECT key, value FROM events WHERE key = 'live'")
    assert event["value"] == found[1]


def test_a_release_of_other_pixels_than_this_agrikd_makes_is_a_trouble(
    device: Device, packed: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after another agrikd was put beside what serves; no installation looks at it then."""
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    device.stop()
    one = Agent(device.store, QUICK)
    assert "trouble" not in one.health()
    monkeypatch.setattr(image, "RESIZE", image.RESIZE + 1)
    one.trouble = "agent.yaml: no"
    said = one.health()
    assert said["trouble"].startswith("agent.yaml: no\nleaf 2026.1 was taught with pixels of resize")
    assert [wrong.why for wrong in Condition.of({"agent": said}).wrong if wrong.what == "said"] == [said["trouble"]]


def child_of(field: Field, module: str) -> int:
    """The process of a module that the agent has started."""
    assert field.device.agent
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == field.device.agent.pid and module.encode() in (path / "cmdline").read_bytes():
                return int(path.name)
    raise AssertionError(f"no {module} runs")


@pytest.mark.torture
def test_killed_at_any_moment_the_agent_has_every_acknowledged_label(field: Field) -> None:
    labelled: list[str] = []
    for kill in range(3 * int(os.environ.get("AGRIKD_TORTURE") or 1)):
        said = field.wait(lambda said: said["cameras"]["row-7"]["frame"] and said["aides"]["live"]["pid"])
        end, before = time.monotonic() + 0.1 * (kill % 7), len(labelled)
        while len(labelled) == before or time.monotonic() < end:
            assert time.monotonic() < end + 30
            key = f"click-{kill:03d}-{len(labelled):04d}"
            frame = field.health()["cameras"]["row-7"]["frame"] or said["cameras"]["row-7"]["frame"]
            with contextlib.suppress(OSError, http.client.HTTPException):
                if post(field, "/label", {"key": key, "frame": frame, "label": "rust"}) == 200:
                    labelled.append(key)
        field.device.stop(signal.SIGKILL)
        with contextlib.closing(records.create(field.records)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        field.device.start()
    assert set(labelled) <= {row["key"] for row in rows(field, "SELECT key FROM labels")} and len(labelled) >= 3
