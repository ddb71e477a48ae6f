"""The devices of the app: how they are said to be, the way back to a release, the hub, and the page of all that."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from device_kit import Device, Pack
from fakes.installing import given, install
from hypothesis import given as drawn
from hypothesis import settings as effort
from hypothesis import strategies as st
from serve_kit import SPEC, TOKEN, opinion, served, until
from streamlit.testing.v1 import AppTest

from agrikd import files, fleet, image, records, serve, site
from agrikd.access import Visitor
from agrikd.condition import HOT_C, Condition, Eye, Wrong, age
from agrikd.device import installer
from agrikd.device.desk import listening
from agrikd.device.store import BusyError
from agrikd.device.sync import NO_SERIES
from agrikd.errors import AgriKDError, DeviceError, InputError, StorageError
from agrikd.fleet import Hub
from agrikd.heard import Beat, Member, Said, Sight, beats, members, sights
from agrikd.hub import Hub as Keeper
from agrikd.hub import Source
from agrikd.records import Place, Seen

ANA, VIEWER = Visitor("Ana", "reviewer"), Visitor("Luis", "viewer")
EVIL = "<img src=x onerror=alert(1)> **b** [x](javascript:alert(1)) `c` $d$ \"'" + 300 * "é"
NEW, OLD = "a" * 32, "b" * 32


def health(model: str = "2-abc", **cameras: Any) -> dict[str, Any]:
    """As an agent says it."""
    eye = {"camera": {"state": "live", "why": "", "fps": 10.0}, "fps": 9.5, "frame": 7, "age_s": 0.1}
    written = {"waiting": 3, "dropped": 0, "trouble": "", "rows": 1234}
    said = {"wanted": model, "serving": model, "backend": "onnxruntime", "why": "", "records": written}
    return {**said, "cameras": {"row-7": eye, **cameras}}


def vitals(**changes: Any) -> dict[str, Any]:
    """A heartbeat's, of a device that is well."""
    said = {
        "celsius": {"cpu": 51.0, "gpu": 62.5},
        "memory_mib": 8000,
        "memory_free_mib": 2000,
        "disk_bytes": 100e9,
        "disk_free_bytes": 40e9,
        "load": [1.5, 1.0, 0.5],
        "uptime_s": 7300.0,
        "agent": health(),
        "sync": None,
    }
    return {**said, **changes}


# How a device is


def test_a_device_that_is_well() -> None:
    one = Condition.of(vitals())
    assert (one.serving, one.fps, one.celsius, one.memory, one.disk) == ("2-abc", 9.5, 62.5, 0.25, 0.4)
    assert one.eyes == (Eye("row-7", "live", "", 9.5, None, 7, 0.1),) and not one.wrong
    assert (one.load, one.uptime_s, one.rows, one.waiting, one.dropped) == (1.5, 7300, 1234, 3, 0)


def test_what_a_person_should_look_at() -> None:
    lost = {"camera": {"state": "lost", "why": "nothing answers"}}
    frozen = {"camera": {"state": "live"}, "age_s": 300.0}
    seldom = {"camera": {"state": "live"}, "age_s": 1500.0, "every_s": 600.0}
    asleep = {"camera": {"state": "closed"}, "age_s": 30_000.0}
    agent = health("", gate=lost, shed=frozen, barn=asleep, hill=seldom) | {
        "why": "no memory",
        "trouble": "agent.yaml: no",
    }
    agent["records"] |= {"dropped": 4, "trouble": "the disk is full"}
    agent["aides"] = {"live": {"failures": 2, "why": "port 8600 is taken"}, "sync": {"failures": 1, "why": "once"}}
    agent["aides"] |= {"second": {"failures": 7}, "odd": None}
    agent["release"] = {"name": "leaf", "version": "2026.2", "expired": "2026-01-01"}
    changes = {"celsius": {"cpu": HOT_C}, "memory_free_mib": 80, "disk_free_bytes": 1e9, "sync": "events: 422"}
    assert Condition.of(vitals(agent=agent, **changes)).wrong == [
        Wrong("model", why="no memory"),
        Wrong("lost", "gate", "nothing answers"),
        Wrong("old", "shed", number=300.0),
        Wrong("aide", "live", "port 8600 is taken"),
        Wrong("said", why="agent.yaml: no"),
        Wrong("said", why="the disk is full"),
        Wrong("said", why="events: 422"),
        Wrong("expired", why="2026-01-01"),
        Wrong("hot", number=HOT_C),
        Wrong("disk", number=0.01),
        Wrong("memory", number=0.01),
        Wrong("dropped", number=4.0),
    ]
    assert Condition.of(vitals(agent=None)).wrong == [Wrong("agent")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(["agent", "cameras", "fps", "x"]), some),
    max_leaves=12,
)


@effort(max_examples=200, deadline=None, derandomize=True)
@drawn(st.dictionaries(st.sampled_from([*vitals(), *health(), "age_s", "t", "id", "predictions", "labels"]), JSON))
def test_whatever_a_device_says_it_breaks_nothing(said: dict[str, Any]) -> None:
    for one in (Condition.of(said), Condition.of({"agent": said}), Condition.of({"agent": {"cameras": {"x": said}}})):
        assert isinstance(one.wrong, list) and (one.fps is None or one.fps == one.fps)
    assert len(members([said, {"vitals": said}])) == 1
    assert beats([said, {"t": 1, "vitals": said}])[-1].t == 1 or said.get("t") is not None
    assert all(isinstance(one, Sight) for one in sights([said, {"id": 1, "predictions": [said], "labels": [said]}]))


def test_ages_in_words() -> None:
    assert [age(s) for s in (-1, 0.4, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        *((0, "s"), (0, "s"), (119, "s"), (2, "min"), (119, "min"), (2, "h"), (47, "h"), (2, "d"))
    ]


# What a hub says


def heard(device: str, series: str, age_s: float | None, stale: bool = False, **more: Any) -> dict[str, Any]:
    return {"device": device, "series": series, "age_s": age_s, "stale": stale, "vitals": vitals(**more)}


def test_a_device_is_there_once_as_it_was_heard_last() -> None:
    told = [
        heard("well", OLD, 90.0, True),
        heard("well", NEW, 5.0),
        heard("well", "c" * 32, None, True),
        heard("ill", NEW, 2.0, agent=None),
        heard("away", NEW, 9000.0, True),
        heard("unborn", NO_SERIES, None, True),
    ]
    found = members(told)
    assert [(one.device, one.series, one.age_s, one.stale, one.older) for one in found] == [
        ("away", NEW, 9000.0, True, 0),
        ("unborn", NO_SERIES, None, True, 0),
        ("ill", NEW, 2.0, False, 0),
        ("well", NEW, 5.0, False, 2),
    ]
    assert [one.recorded for one in found] == [True, False, True, True]
    assert Member("a/b", "?", 1.0, False, Condition(False)).path == "/hub/a%2Fb/%3F"


def test_two_devices_of_one_name_are_said() -> None:
    """A database that is heard after another one of the same name began is not that device's former one."""
    told = [
        heard("ubuntu", OLD, 4000.0, True) | {"since_s": 90_000.0},
        heard("ubuntu", NEW, 5.0) | {"since_s": 80_000.0},
        heard("anew", OLD, 400.0) | {"since_s": 90_000.0},
        heard("anew", NEW, 5.0) | {"since_s": 399.0},
        heard("hurt", NO_SERIES, 5.0) | {"since_s": 80_000.0},
        heard("hurt", NEW, 40.0) | {"since_s": 80_000.0},
        heard("long ago", OLD, 8 * 86_400.0, True) | {"since_s": 10 * 86_400.0},
        heard("long ago", NEW, 5.0) | {"since_s": 9 * 86_400.0},
    ]
    found = {one.device: one for one in members(told)}
    assert {name: one.twin for name, one in found.items()} == {
        "ubuntu": True,
        "anew": False,
        "hurt": False,
        "long ago": False,
    }
    assert [one.older for one in found.values()] == [1] * 4 and next(iter(found)) == "ubuntu"
    assert [one.what for one in found["ubuntu"].wrong] == ["twin"]


def test_a_silence_is_a_gap() -> None:
    told = [{"t": t, "period_s": 60, "vitals": vitals()} for t in (1000.0, 760.0, 700.0)]
    number = (62.5, 0.75, 9.5)
    assert beats(told) == [Beat(700, *number), Beat(760, *number), Beat(880), Beat(1000, *number)]
    assert beats([{"t": 1e12, "vitals": {}}, {"t": 1.0, "period_s": 60, "vitals": "x"}]) == [Beat(1.0)]


def test_frames_and_what_was_said_of_them() -> None:
    student = {"role": "student", "model": "m", "top": 2, "probability": 0.9, "value": None, "unknown": 1}
    teacher = {"role": "teacher", "model": "t", "top": 0, "probability": 0.6, "value": 4.5, "unknown": None}
    frame = {"id": 9, "local": "2027-05-04T16:20:01.250+02:00", "camera": EVIL, "quality": "too dark"}
    labels = [{"label": "rust"}, {"label": "healthy"}]
    told = {**frame, "predictions": [student, teacher], "labels": labels, "picture": {"held": "whole"}}
    (one,) = sights([told])
    assert one.when == "2027-05-04 16:20:01" and one.camera == EVIL[:300] and one.pictured
    assert (one.student, one.teacher) == (Said("m", 2, 0.9, None, True), Said("t", 0, 0.6, 4.5, False))
    assert one.label == "healthy" and not sights([{**frame, "picture": {"held": ""}}])[0].pictured


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper.open(str(tmp_path / "hub"))
    yield made
    made.close()


@pytest.fixture
def url(keeper: Keeper, tmp_path: Path) -> Iterator[str]:
    with served(serve.app(None, keeper, TOKEN)) as found:
        yield found


def named(folder: Path, url: str, token: str = TOKEN) -> Path:
    """A folder whose agent.yaml names a hub."""
    (folder / "token").write_text(token)
    told = {"url": url, "token_file": str(folder / "token")}
    said = {"device": "orchard-1", "cameras": [{"name": "row-7", "source": "demo"}], "hub": told}
    (folder / "agent.yaml").write_text(yaml.safe_dump(said))
    return folder


def hub_of(folder: Path, url: str, token: str = TOKEN) -> Hub:
    found = Hub.of(named(folder, url, token))
    assert found
    return found


def sent(keeper: Keeper, source: Source, jpeg: bytes) -> None:
    """A frame with an opinion and a picture."""
    seen = Seen(1, 1.8e9, "row-7", Place("north", "7"), ("blurred",))
    frame = {
        "id": 1,
        "t": seen.t,
        "local": seen.local,
        "camera": "row-7",
        "field": "",
        "plot": "",
        "quality": "blurred",
    }
    keeper.take(source, "frames", 0, [{**frame, "latitude": None, "longitude": None, "audit": None}])
    said = opinion(3)
    row = {"id": 1, "frame": 1, "model": said.model, "role": "student", "t": said.t, "top": said.top, "value": None}
    rest = {"probability": said.probability, "unsure": 0, "unknown": 0, "interval": None, "latency_ms": 1.0}
    keeper.take(source, "predictions", 0, [{**row, **rest, "probabilities": "[0.98]", "candidates": "[0]"}])
    held = {"id": 1, "frame": 1, "why": "doubt", "file": "x", "size_bytes": len(jpeg), "sha256": files.sha256(jpeg)}
    keeper.take(source, "pictures", 0, [held])
    keeper.put(source, 1, 0, jpeg)


def test_a_hub_is_read(keeper: Keeper, url: str, tmp_path: Path) -> None:
    source, hub = Source("orchard-1", NEW), hub_of(tmp_path, url)
    assert hub.members() == []
    keeper.beat(Source("orchard-1", OLD), 60, vitals())
    keeper.beat(source, 60, vitals())
    sent(keeper, source, image.encode_jpeg(np.zeros((1200, 1920, 3), np.uint8)))
    (one,) = hub_of(tmp_path, url).members()
    assert (one.device, one.series, one.older, one.stale) == ("orchard-1", NEW, 1, False)
    assert [beat.celsius for beat in hub.beats(one)] == [62.5]
    (sight,) = hub.sights(one)
    assert sight.pictured and sight.quality == "blurred" and sight.student
    assert image.decode(hub.picture(one, 1), "x").shape == (600, 960, 3)
    with pytest.raises(AgriKDError, match="404: there is no picture of frame 2"):
        hub.picture(one, 2)


def test_a_picture_that_is_none_is_said(keeper: Keeper, url: str, tmp_path: Path) -> None:
    source = Source("orchard-1", NEW)
    sent(keeper, source, b"\xff\xd8<script>alert(1)</script>")
    with pytest.raises(InputError, match="frame 1 of orchard-1"):
        hub_of(tmp_path, url).picture(Member("orchard-1", NEW, 1.0, False, Condition(False)), 1)


def test_an_answer_is_asked_for_again_when_it_has_grown_old(keeper: Keeper, url: str, tmp_path: Path) -> None:
    hub = hub_of(tmp_path, url)
    assert hub.members() == []
    keeper.beat(Source("orchard-1", NEW), 60, vitals())
    assert hub.members() == []  # a moment later the last answer does
    (question,) = hub._asked.values()
    question._begun = question._told_at = time.monotonic() - 60
    assert [one.device for one in hub.members()] == ["orchard-1"]


def test_a_hub_that_is_away_is_named(tmp_path: Path, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(AgriKDError, match=f"127.0.0.1:{port} does not answer"):
        hub_of(tmp_path, f"http://127.0.0.1:{port}").members()
    with pytest.raises(AgriKDError, match="401: the token is missing or wrong"):
        hub_of(tmp_path, url, "another-token-for-it").members()
    with pytest.raises(AgriKDError, match="is none of agrikd's"):
        Hub._latest(hub_of(tmp_path, url), "/health", 60)
    (tmp_path / "token").unlink()
    with pytest.raises(InputError, match="there is no such file"):
        Hub.of(tmp_path).members()  # type: ignore[union-attr]
    assert Hub.of(tmp_path / "nothing") is None


def test_nobody_waits_long_for_a_hub_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_WAIT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = hub_of(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(3):
            with pytest.raises(AgriKDError, match="has not answered yet"):
                hub.members()


def test_a_hub_that_falls_silent_is_not_shown_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_WAIT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = fleet._Question(
            hub_of(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")._server(), "/hub/devices"
        )
        asked._told, asked._told_at = [], time.monotonic() - 5
        assert asked.latest(4.0) == []
        with pytest.raises(AgriKDError, match="has not answered for 5 s"):
            asked.latest(1.0)


# A device's folder


@pytest.fixture
def two(device: Device, packed: Pack, monkeypatch: pytest.MonkeyPatch) -> Device:
    """With two releases, the second of which serves; the models' answers are given."""
    for path in (packed(1), packed(2)):
        for name in ("_tried", "_ask_agent"):
            monkeypatch.setattr(installer, name, given(path))
        install(device.store, path)
    return device


def first(device: Device) -> str:
    return device.store.linked("previous")


@contextlib.contextmanager
def agent(device: Device, said: dict[str, Any]) -> Iterator[None]:
    """One that stands in and says how it is."""
    with listening(device.store.socket, {"health": lambda _: (said, None)}, 5.0):
        yield


def test_the_way_back_is_for_reviewers(two: Device) -> None:
    folder, before = two.store.folder, two.store.state
    for visitor in (VIEWER, Visitor()):
        with pytest.raises(InputError, match="may look, but not change"):
            fleet.roll_back(visitor, folder, first(two))
    assert two.store.state == before and before.phase == "COMMITTED"
    assert fleet.look(folder).way_back == first(two) and fleet.named(folder, first(two)) == "leaf 2026.1"
    fleet.roll_back(ANA, folder, first(two))
    assert (two.store.state.phase, two.store.state.release) == ("VERIFIED", first(two))
    when, *asked = fleet.log(folder)[0]
    assert asked == ["asked back", first(two), "who: Ana"] and len(when) == 19
    assert fleet.look(folder).installing and not fleet.look(folder).way_back
    with pytest.raises(DeviceError, match="is being installed"):
        fleet.roll_back(ANA, folder, first(two))


def test_what_was_not_shown_is_not_done(two: Device) -> None:
    """Two people ask at once: the second one's wish is of a release that serves by then."""
    folder, serving = two.store.folder, two.store.linked("current")
    with pytest.raises(DeviceError, match="is not the release before this one any more"):
        fleet.roll_back(ANA, folder, serving)
    with two.store.locked(), pytest.raises(BusyError, match="another installation is running"):
        fleet.roll_back(ANA, folder, first(two))
    assert two.store.state.phase == "COMMITTED"


def test_a_release_that_is_damaged_is_no_way_back(two: Device) -> None:
    (two.store.path(first(two)) / "model.onnx").unlink()
    with pytest.raises(InputError, match="no release before this one"):
        fleet.roll_back(ANA, two.store.folder, first(two))


def test_the_agent_goes_back(device: Device, packed: Pack) -> None:
    """As people have it: an agent, two releases, and the trial of the first one."""
    device.start()
    for seq in (1, 2):
        done = device.run("install", str(packed(seq)))
        assert done.returncode == 0, done.stderr
    one, two = first(device), device.store.linked("current")
    assert fleet.look(device.store.folder).way_back == one
    fleet.roll_back(ANA, device.store.folder, one)
    until(lambda: fleet.log(device.store.folder)[0][1:3] == ("COMMITTED", one))  # that of the second stands there first
    assert device.require_whole() == one and first(device) == two
    last = fleet.log(device.store.folder)[0]
    assert installer.BACK in last[3] and last[0]


def test_an_agent_on_a_model_s_file_has_no_way_back(two: Device) -> None:
    with agent(two, health("student-abc")):
        look = fleet.look(two.store.folder)
    assert look.bare and look.model == "student-abc" and not look.way_back
    with agent(two, health(two.store.linked("current"))):
        look = fleet.look(two.store.folder)
    assert not look.bare and look.model == "leaf 2026.2" and look.way_back == first(two)


def test_what_is_wrong_with_the_newest_picture(two: Device) -> None:
    folder = two.store.folder / "records"
    with contextlib.closing(records.create(folder)) as db:
        records.add_frame(db, Seen(7, 1.8e9, "row-7", quality=("too dark",)))
        records.add_model(db, "2-abc", "student", SPEC)
        records.add_event(db, 1.8e9, "clock", EVIL)
        records.add_event(db, 1.8e9 + 1, "teacher", "frame 3: away")
    with agent(two, health(gate={"frame": 8})):
        assert fleet.look(two.store.folder).faults == {"row-7": "too dark"}
    newest, oldest = fleet.events(two.store.folder)
    assert newest[1:] == ("teacher", "frame 3: away") and oldest[2] == EVIL and len(newest[0]) == 19
    assert fleet.holding([newest, oldest], "  CLOCK ") == [oldest]
    assert fleet.spec(two.store.folder, "2-abc") == SPEC and fleet.spec(two.store.folder, "nobody") is None
    assert fleet.spec(two.store.folder, first(two)) == two.store.release(first(two)).spec


def test_a_log_that_was_cut_off_is_shown_as_it_is(two: Device) -> None:
    with (two.store.folder / "log.jsonl").open("a") as out:
        out.write(json.dumps({"what": "failed", "release": EVIL, "reason": EVIL}) + '\n[1]\n{"what": "COMM')
    lines = fleet.log(two.store.folder)
    assert lines[0] == ("", "", "", '{"what": "COMM') and lines[1] == ("", "", "", "[1]")
    assert lines[2] == ("", "failed", EVIL, f"reason: {EVIL}") and lines[3][1] == "COMMITTED" and lines[3][0]
    assert len(fleet.holding([("x",)] * 1000, "")) == fleet.LINES


def test_the_file_for_support_holds_texts_and_no_keys(two: Device) -> None:
    (two.store.folder / "live.token").write_text("secret-of-the-agent")
    with tarfile.open(fileobj=io.BytesIO(fleet.support_file(two.store.folder))) as held:
        names = {entry.name for entry in held}
        texts = b"".join(held.extractfile(name).read() for name in names)  # type: ignore[union-attr]
    assert {"agrikd-logs/status.json", "agrikd-logs/log.jsonl"} <= names and b"secret-of-the-agent" not in texts


def test_a_folder_that_cannot_be_read_is_said(two: Device, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder of an agent"):
        fleet.look(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (two.store.folder / "records").mkdir()
    (two.store.folder / "records" / "records.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        fleet.events(two.store.folder)
    (two.store.folder / "state.json").unlink()
    (two.store.folder / "state.json").mkdir()
    with pytest.raises(StorageError, match="a folder is in the way of a file"):
        fleet.look(two.store.folder)


# The page

Open = Callable[..., AppTest]


@pytest.fixture
def page(two: Device, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a tab of the page for a visitor; the board is well, however this machine is."""
    monkeypatch.setattr(fleet.vitals, "read", lambda folder: vitals())

    def open_it(visitor: Visitor = ANA, tab: str = "", folder: Path = two.store.folder) -> AppTest:
        monkeypatch.setenv(site.FIELD, str(folder))
        monkeypatch.setattr(site, "visitor", lambda: visitor)
        app = AppTest.from_file(str(site.pages() / "main.py"), default_timeout=60)
        if tab:
            app.session_state["devices_tab"] = site.words("en")[tab]
        return app.switch_page("app_pages/devices.py").run()

    return open_it


def shown(app: AppTest) -> str:
    assert not app.exception
    kinds = (app.text, app.markdown, app.caption, app.warning, app.error, app.info, app.success, app.table)
    tables = [one.value.to_string() if hasattr(one.value, "to_string") else one.value for kind in kinds for one in kind]
    return "\n".join(map(str, tables)).replace("\\", "")


def buttons(app: AppTest) -> list[str]:
    return [one.label for one in app.button]


def sure(app: AppTest) -> None:
    """Press the dialog's button; for this stand-in of a browser a dialog is there as long as its opener is pressed."""
    app.button[0].click()
    next(one for one in app.button if one.label == "Go back").click().run()


def unescaped(app: AppTest) -> str:
    """What Markdown takes for its own."""
    kinds = (app.markdown, app.caption, app.warning, app.error, app.info, app.success)
    cells = [text for table in app.table for text in table.value.to_numpy().ravel()]
    return re.sub(r"\\.", "", "\n".join([*(one.value for kind in kinds for one in kind), *cells]))


def test_a_viewer_sees_no_way_to_go_back(page: Open, two: Device) -> None:
    with agent(two, health(two.store.linked("current"))):
        app = page(VIEWER)
    assert "leaf 2026.2 was tried and serves" in shown(app) and "The release before: leaf 2026.1" in shown(app)
    assert not buttons(app) and app.metric[0].value == "9.5"
    (signer,) = two.store.root.keys
    assert re.search(rf"Signed by key +{signer}", shown(app)) and "Board up for" in shown(app)


def test_a_reviewer_goes_back_after_a_question(page: Open, two: Device) -> None:
    with agent(two, health(two.store.linked("current"))):
        app = page()
        assert buttons(app) == ["Go back to the release before"]
        app.button[0].click().run()
        assert "Now serves: leaf 2026.2" in shown(app) and "Then serves: leaf 2026.1" in shown(app)
        assert two.store.state.phase == "COMMITTED" and "Cancel" in buttons(app)
        sure(app)
        assert two.store.state.phase == "VERIFIED" and two.store.state.release == first(two)
        assert "leaf 2026.1 is being prepared" in shown(app) and not buttons(app)
    two.store.move("COMMITTED")
    assert "leaf 2026.1 was tried again and serves: somebody went back to it" in shown(page())
    log = page(tab="devices.logs").dataframe[0].value["What"]
    assert "went back to it" in log[0] and any(line == "leaf 2026.1 was tried and serves." for line in log)
    two.store.move("TRIAL")
    two.store.move("ROLLED_BACK", reason=EVIL)
    app = page()
    assert "leaf 2026.1 was not kept: <img" in shown(app)
    assert "img src" in unescaped(app) and not set("<>[]()*`$") & set(unescaped(app))


def test_a_busy_store_and_a_silent_agent_are_said(page: Open, two: Device) -> None:
    app = page()
    assert "No agent answers" in shown(app)
    app.button[0].click().run()
    with two.store.locked():
        sure(app)
    assert "another installation is running" in app.error[0].value.replace("\\", "")
    fleet.roll_back(ANA, two.store.folder, first(two))
    assert "It goes on as soon as one runs" in shown(page())


def test_a_model_s_file_and_no_release_at_all_are_said(page: Open, two: Device) -> None:
    with agent(two, health("student-abc")):
        app = page()
    assert "student-abc" in shown(app) and "there is nothing to go back to" in shown(app) and not buttons(app)
    two.store.switch("previous", "")
    assert "There is no release before this one" in shown(page())


def test_a_folder_of_no_agent_is_said(page: Open, tmp_path: Path) -> None:
    app = page(folder=tmp_path / "nothing")
    assert "is no folder of an agent" in app.error[0].value.replace("\\", "") and not app.exception


def test_what_keeps_ending_and_what_has_expired_is_not_well(page: Open, two: Device) -> None:
    said = health(two.store.linked("current"))
    with agent(two, said):
        assert "All is well" in shown(page())
    said |= {"aides": {"live": {"failures": 2, "why": "port 8600 of 127.0.0.1: is taken"}}}
    said |= {"release": {"name": "leaf", "version": "2026.2", "expired": "2026-01-01"}}
    with agent(two, said):
        text = shown(page())
    assert "The live view keeps ending: port 8600" in text and "Expired since 2026-01-01" in text
    assert "All is well" not in text


def test_hostile_words_are_shown_as_they_are(page: Open, two: Device) -> None:
    lost = {"camera": {"state": "lost", "why": EVIL}}
    with contextlib.closing(records.create(two.store.folder / "records")) as db:
        records.add_event(db, 1.8e9, EVIL, EVIL)
    two.store.log(EVIL, release=EVIL, reason=EVIL)
    with agent(two, {**health(two.store.linked("current")), "cameras": {EVIL: lost}, "trouble": EVIL}):
        app = page()
    assert "is lost: <img src=x" in shown(app)
    assert "img src" in unescaped(app) and not set("<>[]()*`$") & set(unescaped(app))
    app = page(tab="devices.logs")
    events, log = (one.value for one in app.dataframe)
    assert events.iloc[0, 2] == EVIL and log.iloc[0, 2] == f"reason: {EVIL}"
    assert list(log.columns) == list(events.columns) and len(log.iloc[0, 0]) == 19
    app.text_input[0].set_value("NoT KePt").run()
    assert not app.dataframe and shown(app).count("Nothing to show") == 2
    app.text_input[0].set_value("2026.1 is on TRIAL").run()
    assert len(app.dataframe) == 1 and len(app.dataframe[0].value) >= 1


def test_all_devices_of_a_hub(page: Open, two: Device, keeper: Keeper, url: str) -> None:
    named(two.store.folder, url)
    keeper.beat(Source("orchard-1", OLD), 60, vitals())
    keeper.beat(Source("orchard-1", NEW), 60, vitals(agent=health(two.store.linked("current"))))
    stranger = {"release": {"name": "coffee", "version": "3", "expired": "2026-01-01"}}
    stranger["aides"] = {"live": {"failures": 3, "why": EVIL}}
    keeper.beat(Source("shed", NEW), 60, vitals(agent=health("9-abc") | stranger))
    keeper.beat(Source("barn", NEW), 1e-6, vitals(sync=EVIL))
    keeper.beat(Source("odd", NEW), 60, {"agent": [], "celsius": "hot"})
    sent(keeper, Source("orchard-1", NEW), image.encode_jpeg(np.zeros((48, 64, 3), np.uint8)))
    app = page(VIEWER, "devices.all")
    table = app.dataframe[0].value
    assert list(table.index) == ["barn", "odd", "shed", "orchard-1"] and not app.error
    assert table["Model"]["shed"] == "coffee 3" and "Expired since 2026-01-01" in table["Look at"]["shed"]
    assert f"The live view keeps ending: {EVIL[:300]}" in table["Look at"]["shed"]
    assert [state[0] for state in table["State"]] == ["○", "▲", "▲", "●"] and "silent for" in table["State"]["barn"]
    assert table["Look at"]["barn"] == EVIL[:300] and table["Model"]["orchard-1"] == "leaf 2026.2"
    assert table["°C"]["orchard-1"] == 62.5 and table["Free disk, %"]["orchard-1"] == 40
    app.selectbox(key="devices_picked").select("orchard-1").run()
    assert "Records that this device began before: 1" in shown(app)
    frames = app.dataframe[1].value
    assert frames["Model says"][0] == "class 0 of leaf-1, 98 %" and frames["Picture"][0] == "blurred"
    app.selectbox(key=f"devices_frame_{NEW}").select(1).run()
    assert not app.exception and not app.error and app.session_state["devices_picture"][3][:2] == b"\xff\xd8"
    assert TOKEN not in repr(app)


def test_a_hub_that_is_away_leaves_the_rest_of_the_page(page: Open, two: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    named(two.store.folder, f"http://127.0.0.1:{port}")
    app = page(tab="devices.all")
    assert f"The hub 127.0.0.1:{port} cannot be asked" in app.error[0].value.replace("\\", "")
    assert "leaf 2026.2" in shown(page()) and not page().error
    (two.store.folder / "agent.yaml").write_text("hub: {url: nowhere}")
    app = page()
    assert "agent.yaml" in app.error[0].value.replace("\\", "") and "leaf 2026.2" in shown(app)
