"""Every row and every kept picture comes to the hub once and as it is, whatever the link, the hub or the process do."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_kit import (
    LENGTH,
    TOKEN,
    Link,
    behind,
    files_held,
    picture,
    record,
    recording,
    rows_here,
    rows_there,
    served,
    source_of,
    until,
    url_of,
)

from agrikd import device_report, records, serve
from agrikd.device import post, vitals
from agrikd.device.post import AwayError, Bucket, Patience
from agrikd.device.sync import NO_SERIES, Options, Sync
from agrikd.errors import AgriKDError, InputError
from agrikd.hub import Hub, Source

Make = Callable[..., Sync]


@pytest.fixture(params=["sqlite"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    made = Hub(url_of(request.param, tmp_path), tmp_path / "pictures", free_bytes=0)
    yield made
    made.close()


BOTH = pytest.mark.parametrize("hub", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def url(hub: Hub) -> Iterator[str]:
    with served(serve.app(None, hub, TOKEN)) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "records"


@pytest.fixture
def told(tmp_path: Path, folder: Path) -> Callable[..., dict[str, Any]]:
    """The options of a sync, as the agent tells them."""
    (tmp_path / "token").write_text(TOKEN)

    def make(url: str, **changes: Any) -> dict[str, Any]:
        own = {"records": str(folder), "token_file": str(tmp_path / "token"), "device": "orchard-1", "heartbeat_s": 5.0}
        return {"url": url, **own, **changes}

    return make


@pytest.fixture
def make(told: Callable[..., dict[str, Any]]) -> Make:
    return lambda url, **changes: Sync(Options(**told(url, **changes)))


def drained(sync: Sync, seconds: float = 40) -> int:
    """Go round until there is nothing more; how often the link broke."""
    end, broke, idle = time.monotonic() + seconds, 0, 0
    while idle < 2:
        assert time.monotonic() < end
        try:
            idle = 0 if sync.round() else idle + 1
        except AwayError:
            broke += 1
            sync._beyond = None
    return broke


@contextlib.contextmanager
def running(options: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "agrikd.device.sync"], stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(json.dumps(options).encode())
    process.stdin.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


# All of it, once


@BOTH
def test_all_that_is_recorded_arrives(hub: Hub, url: str, folder: Path, make: Make) -> None:
    with recording(folder) as recorder:
        for number in range(200):
            record(recorder, number, picture(number) if number % 9 == 0 else None)
        recorder.event("☘", "'; DROP TABLE frames; --")
    sync = make(url)
    drained(sync)
    assert behind(folder, hub) == ""
    there = rows_there(hub, source_of(folder))
    assert [len(there[name]) for name in records.TABLES] == [1, 200, 200, 23, 20, 1]
    assert sync.round() is False
    drained(make(url))
    assert behind(folder, hub) == "" and len(files_held(hub._folder)) == 23


@BOTH
def test_devices_and_doubles_at_once(hub: Hub, url: str, tmp_path: Path, make: Make) -> None:
    """Two devices, the first of which has two syncs by mistake, all while they record."""
    folders = {"orchard-1": tmp_path / "one", "orchard-2": tmp_path / "two"}
    troubles: list[BaseException] = []
    done = threading.Event()

    def send(device: str) -> None:
        sync = make(url, records=str(folders[device]), device=device)
        try:
            while not done.is_set():
                drained(sync)
        except BaseException as error:
            troubles.append(error)

    with contextlib.ExitStack() as stack:
        recorders = [stack.enter_context(recording(folder)) for folder in folders.values()]
        threads = [threading.Thread(target=send, args=(name,)) for name in ("orchard-1", "orchard-1", "orchard-2")]
        for thread in threads:
            thread.start()
        for number in range(60):
            for recorder in recorders:
                record(recorder, number, picture(number) if number % 5 == 0 else None)
    until(
        lambda: troubles or not any(behind(folder, hub, name) for name, folder in folders.items()),
        say=lambda: [behind(folder, hub, name) for name, folder in folders.items()],
    )
    done.set()
    for thread in threads:
        thread.join(20)
    assert not troubles and {one["device"] for one in hub.devices()} == set(folders)


@BOTH
def test_a_link_that_is_cut_again_and_again(hub: Hub, url: str, folder: Path, make: Make) -> None:
    with recording(folder) as recorder:
        for number in range(100):
            record(recorder, number, picture(number, 20_000) if number % 10 == 0 else None)
    link = Link(url, cut_bytes=12_000)
    link.start()
    broke = drained(make(link.url))
    sent = sum(count for _, count in link.heard)
    assert behind(folder, hub) == "" and broke >= 10 and link.cuts >= 10
    print(f"cut every 12 kB: {broke} times, {sent} bytes sent for 200 kB of pictures and 5 tables")
    assert sent < 3 * 250_000


def test_a_slow_link(hub: Hub, url: str, folder: Path, make: Make) -> None:
    """50 kB/s: what is sent is little more than the pictures, and a heartbeat is never late by more than a piece."""
    with recording(folder) as recorder:
        for number in range(200):
            record(recorder, number, picture(number, 20_000) if number % 20 == 0 else None)
    link = Link(url, bytes_per_s=50_000)
    link.start()
    begun = time.monotonic()
    drained(make(link.url, heartbeat_s=2.0))
    took, sent = time.monotonic() - begun, sum(count for _, count in link.heard)
    assert behind(folder, hub) == ""
    beats = [one["t"] for one in hub.beats(source_of(folder), 500)]
    late = max(a - b for a, b in itertools.pairwise(beats))
    print(f"50 kB/s: {sent} bytes in {took:.1f} s, {sent / took / 1000:.1f} kB/s, longest silence {late:.1f} s")
    assert sent < 300_000 and took < 15 and late < 5


def test_a_hub_that_is_away_for_a_while(hub: Hub, folder: Path, told: Callable[..., dict[str, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    app = serve.app(None, hub, TOKEN)
    with recording(folder) as recorder, running(told(f"http://127.0.0.1:{port}")):
        for round_ in range(3):
            for number in range(20):
                record(recorder, 20 * round_ + number, picture(number) if number % 5 == 0 else None)
            until(lambda: not recorder.health()["waiting"])
            with served(app, port):
                until(lambda: not behind(folder, hub), say=lambda: behind(folder, hub))
    assert len(rows_there(hub, source_of(folder))["frames"]) == 60


@pytest.mark.torture
def test_killed_at_any_time(hub: Hub, url: str, folder: Path, told: Callable[..., dict[str, Any]]) -> None:
    """While frames, pictures and labels are recorded, and old pictures make room for new ones."""
    kills, rng, done = 4 * LENGTH, random.Random(LENGTH), threading.Event()
    with recording(folder, quota_bytes=2_000_000) as recorder:

        def write() -> None:
            number = 0
            while not done.is_set():
                record(recorder, number, picture(number, rng.randrange(1, 40_000)) if number % 5 == 0 else None)
                number += 1
                done.wait(0.01)

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(kills):
            with running(told(url, heartbeat_s=0.5)) as process:
                seen = len(hub.beats(Source("orchard-1", source_of(folder).series), 500))
                until(lambda seen=seen: len(hub.beats(source_of(folder), 500)) != seen)  # type: ignore[misc]
                time.sleep(rng.uniform(0, 1))
                process.send_signal(signal.SIGKILL)
        done.set()
        writer.join()
        until(lambda: not recorder.health()["waiting"])
        with running(told(url)):
            until(lambda: not missing(folder, hub), 60, lambda: missing(folder, hub))
    assert len(rows_there(hub, source_of(folder))["frames"]) > 10 * kills


def missing(folder: Path, hub: Hub) -> str:
    """As `behind`, where the device has made room meanwhile: the hub may hold pictures that it no longer has."""
    here, there = rows_here(folder), rows_there(hub, source_of(folder))
    kept = {row["id"] for row in here["pictures"]}
    if any(row["id"] not in kept and row["id"] > max(kept, default=0) for row in there["pictures"]):
        return "a picture of the future"
    there["pictures"] = [row for row in there["pictures"] if row["id"] in kept]
    wrong = [name for name in records.TABLES if here[name] != there[name]]
    return f"{wrong}" if wrong else behind_pictures(folder, hub, here["pictures"])


def behind_pictures(folder: Path, hub: Hub, rows: list[dict[str, Any]]) -> str:
    for row in rows:
        try:
            if hub.picture(source_of(folder), row["frame"]).read_bytes() != (folder / row["file"]).read_bytes():
                return f"picture {row['id']} differs"
        except AgriKDError as error:
            return str(error)
    return ""


# What the device may meet


def test_a_picture_that_made_room_is_passed_over(hub: Hub, url: str, folder: Path, make: Make) -> None:
    """Its row is gone, or it is no longer what it was; its file alone may come back, as its disk is mounted again."""
    with recording(folder) as recorder:
        for number in range(4):
            record(recorder, number + 1, picture(number))
    rows = rows_here(folder)["pictures"]
    absent = (folder / rows[0]["file"]).rename(folder / "elsewhere")
    (folder / rows[2]["file"]).write_bytes(b"damaged")
    sync = make(url)
    sync._open()
    sync._beat()
    sync._send_rows("pictures")
    db = records.create(folder)
    records.drop_pictures(db, [rows[1]["frame"]])
    db.close()
    drained(sync)
    source = source_of(folder)
    held = [one["picture"]["held"] for one in hub.frames(source, 10**15, 10)]
    assert held == ["whole", "gone", "gone", ""] and [one for one, _ in hub.state(source)["wanted"]] == [rows[0]["id"]]
    absent.rename(folder / rows[0]["file"])
    sync._beat_at = 0.0
    drained(sync)
    assert [one["picture"]["held"] for one in hub.frames(source, 10**15, 10)] == ["whole", "gone", "gone", "whole"]


def test_however_many_pictures_are_lost_the_others_arrive(hub: Hub, url: str, folder: Path, make: Make) -> None:
    with recording(folder) as recorder:
        for number in range(50):
            record(recorder, number + 1, picture(number))
    rows = rows_here(folder)["pictures"]
    (folder / "elsewhere").mkdir()
    for row in rows[:40]:
        (folder / row["file"]).rename(folder / "elsewhere" / Path(row["file"]).name)
    sync = make(url)
    drained(sync)
    assert behind_pictures(folder, hub, rows[40:]) == ""
    assert len(hub.state(source_of(folder))["wanted"]) == 16, "nobody said that they were gone"
    sync._beat_at = 0.0
    drained(sync)
    said = hub.beats(source_of(folder), 1)[0]["vitals"]["sync"]
    assert said == "40 pictures that the hub waits for are not on the disk"
    db = records.create(folder)
    records.drop_pictures(db, [rows[7]["frame"]])
    db.close()
    sync._beat_at = 0.0
    drained(sync)
    held = {one["id"]: one["picture"]["held"] for one in hub.frames(source_of(folder), 10**15, 100)}
    assert held[rows[7]["frame"]] == "gone" and sync._lacks().startswith("39 pictures")
    left = [row for row in rows if row is not rows[7]]
    for row in left[:39]:
        (folder / "elsewhere" / Path(row["file"]).name).rename(folder / row["file"])
    sync._beat_at = 0.0
    drained(sync)
    assert behind_pictures(folder, hub, left) == "" and not sync._lacks()


def test_records_that_begin_anew_are_another_source(hub: Hub, url: str, folder: Path, make: Make) -> None:
    """A damaged database is set aside under a running sync, with its pictures."""
    sync = make(url)
    with recording(folder) as recorder:
        for number in range(5):
            record(recorder, number, picture(number))
    sync._open()
    sync._beat()
    for table in records.TABLES:
        sync._send_rows(table)
    first = source_of(folder)
    aside = folder / "damaged-1"
    aside.mkdir()
    for path in (*folder.glob("records.db*"), folder / "pictures"):
        path.rename(aside / path.name)
    with pytest.raises(FileNotFoundError):
        sync._send_piece()
    with recording(folder) as recorder:
        record(recorder, 7, picture(7))
    drained(sync)
    assert behind(folder, hub) == "" and source_of(folder) != first
    assert len(hub.state(first)["wanted"]) == 5, "nobody said that they were gone"
    assert [one["series"] for one in hub.devices()] == [source_of(folder).series, first.series]


def test_a_hub_that_was_restored_from_yesterday(tmp_path: Path, folder: Path, make: Make) -> None:
    with recording(folder) as recorder:
        for number in range(30):
            record(recorder, number, picture(number) if number % 5 == 0 else None)
    hub = Hub.open(str(tmp_path / "new"))
    old = Hub.open(str(tmp_path / "old"))
    app = serve.app(None, hub, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with served(app, port) as url:
        sync = make(url)
        drained(sync)
    with recording(folder) as recorder:
        record(recorder, 31, picture(31))
    with served(serve.app(None, old, TOKEN), port):
        drained(sync)
    assert behind(folder, old) == ""


def test_a_row_that_the_hub_refuses_keeps_up_its_table_alone(hub: Hub, url: str, folder: Path, make: Make) -> None:
    """And the heartbeat says so: nothing is lost, and nobody has to look into a log."""
    with recording(folder) as recorder:
        for number in range(30):
            record(recorder, number)
    with contextlib.closing(records.create(folder)) as db:  # as no agent of ours would
        db.execute("INSERT INTO events(t, key, value) VALUES(1, 'odd', 'zero ' || char(0) || ' in it')")
        records.add_event(db, 2.0, "later", "is fine")
    sync = make(url)
    drained(sync)
    source = source_of(folder)
    there, here = rows_there(hub, source), rows_here(folder)
    assert there["events"] == [] and all(there[name] == here[name] for name in ("frames", "predictions", "labels"))
    sync._beyond = None
    sync.round()
    said = hub.beats(source, 1)[0]["vitals"]["sync"]
    assert said.startswith("events after 0: the server says 422: events[0].value: must be text")


def test_a_heartbeat_comes_first_and_is_not_kept_for_later(hub: Hub, folder: Path, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with recording(folder) as recorder:
        record(recorder, 1, picture(1))
    sync = make(f"http://127.0.0.1:{port}", heartbeat_s=60.0)
    for _ in range(5):
        with pytest.raises(AwayError, match="does not answer"):
            sync.round()
        sync._beyond = None
    calls: list[str] = []
    with served(serve.app(None, hub, TOKEN), port):
        call = sync._server.call
        sync._server.call = lambda *words, **more: calls.append(words[1]) or call(*words, **more)  # type: ignore
        drained(sync)
    assert calls[0].endswith("/heartbeat") and sum(one.endswith("/heartbeat") for one in calls) == 1
    assert len(hub.beats(source_of(folder), 10)) == 1


def test_a_device_whose_records_cannot_be_read_still_says_so(hub: Hub, url: str, folder: Path, make: Make) -> None:
    sync = make(url)
    with pytest.raises(OSError):
        sync.round()
    (device,) = hub.devices()
    assert device["series"] == NO_SERIES and "records.db" in device["vitals"]["sync"]


def test_a_hub_whose_disk_is_full(hub: Hub, url: str, folder: Path, make: Make) -> None:
    """Pictures wait for the next heartbeat, and say why; rows do not."""
    hub._free_bytes = 10**18
    with recording(folder) as recorder:
        for number in range(40):
            record(recorder, number + 1, picture(number))
    sync = make(url, heartbeat_s=60.0)
    sync._rows["frames"].size = sync._rows["frames"]._most = 1
    assert drained(sync) == 0
    assert rows_there(hub, source_of(folder))["frames"] == rows_here(folder)["frames"]
    assert re.search("picture 1: the server says 507: .*the disk is full", sync._lacks())
    hub._free_bytes = 0
    sync._beat_at = 0.0
    drained(sync)
    assert behind(folder, hub) == "" and not sync._lacks()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"200 OK", b"<html>Welcome to the hotel</html>"),
        (b"200 OK", b'{"beyond": {}, "wanted": []}'),
        (b"302 Found\r\nLocation: http://192.0.2.1/login", b""),
        (b"200 OK", b"[" * 100_000),
    ],
)
def test_what_is_no_hub(folder: Path, make: Make, head: bytes, body: bytes) -> None:
    with recording(folder) as recorder:
        record(recorder, 1)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            link, _ = door.accept()
            with link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 " + head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(AwayError):
            make(f"http://127.0.0.1:{door.getsockname()[1]}").round()


def test_a_wrong_token_is_said(hub: Hub, url: str, folder: Path, make: Make, tmp_path: Path) -> None:
    with recording(folder) as recorder:
        record(recorder, 1)
    (tmp_path / "token").write_text("another")
    sync = make(url)
    with pytest.raises(AwayError, match="401: the token is missing or wrong"):
        sync.round()
    (tmp_path / "token").unlink()
    with pytest.raises(InputError, match="there is no such file"):
        sync.round()


# The process


def test_sigterm_ends_it_though_nobody_answers(folder: Path, told: Callable[..., dict[str, Any]]) -> None:
    with recording(folder), socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        with running(told(f"http://127.0.0.1:{door.getsockname()[1]}")) as process:
            link, _ = door.accept()
            begun = time.monotonic()
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM and time.monotonic() - begun < 3
            link.close()


def test_it_dies_with_who_started_it(folder: Path, told: Callable[..., dict[str, Any]]) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'agrikd.device.sync', sys.argv[1]])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    with recording(folder), socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        words = json.dumps(told(f"http://127.0.0.1:{door.getsockname()[1]}"))
        parent = subprocess.Popen([sys.executable, "-c", code, words], stdout=subprocess.PIPE, text=True)
        assert parent.stdout
        child = int(parent.stdout.readline())
        link, _ = door.accept()
        parent.kill()
        parent.wait()
        until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())
        link.close()


@pytest.mark.parametrize(
    ("said", "words"), [("{", "Expecting"), ("{}", "missing"), ("[]", "mapping"), ('{"url": "ftp://x"}', "missing")]
)
def test_options_that_are_none(said: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agrikd.device.sync", said], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


# The link's limit and patience


@given(st.floats(100, 1e6), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 16384)), max_size=300))
def test_any_ten_seconds_hold_the_limit(bytes_per_s: float, wishes: list[tuple[float, int]]) -> None:
    """Whatever is asked for and when, by a clock that only the bucket's own waiting moves."""
    now, sent = [0.0], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post.time, "monotonic", lambda: now[0])
        patch.setattr(post.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
        bucket = Bucket(bytes_per_s)
        for pause, count in wishes:
            now[0] += pause
            bucket.take(min(count, bucket.piece))
            sent.append((now[0], min(count, bucket.piece)))
    for place, (begin, _) in enumerate(sent):
        window = sum(count for t, count in sent[place:] if t <= begin + 10)
        assert window <= 10 * bytes_per_s * 1.0001


def test_the_limit_on_a_real_link(hub: Hub, url: str, folder: Path, make: Make) -> None:
    with recording(folder) as recorder:
        for number in range(8):
            record(recorder, number, picture(number, 30_000))
    link = Link(url)
    link.start()
    begun = time.monotonic()
    drained(make(link.url, bytes_per_s=80_000))
    took, sent = time.monotonic() - begun, sum(count for _, count in link.heard)
    print(f"limit 80 kB/s: {sent} bytes in {took:.2f} s, {sent / took / 1000:.1f} kB/s")
    assert behind(folder, hub) == "" and sent / took <= 80_000
    worst = max(sum(n for t, n in link.heard if begin <= t < begin + 2) for begin, _ in link.heard)
    assert worst <= 2 * 80_000 + 0.5 * 80_000


def test_patience_is_bounded_and_ends_with_a_success() -> None:
    patience, error = Patience(), AwayError("away")
    waits = [patience.failed(error) for _ in range(20)]
    assert 0.5 <= waits[0] <= 1 and all(wait <= 60 for wait in waits) and min(waits[8:]) >= 30
    assert len(set(waits[8:])) > 6, "no two devices come back together"
    patience.worked()
    assert patience.failed(error) <= 1
    error.wait_s = 9.0
    assert 9 <= Patience().failed(error) <= 60
    error.wait_s = 1e9
    assert patience.failed(error) == 60


# Vitals


def test_what_a_jetson_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as NVIDIA's guide names them; not from a real board."""
    texts = {
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "51500",
        "class/thermal/cooling_device0/type": "cpu-throttle-alert",
        "class/thermal/cooling_device0/cur_state": "1",
        "class/thermal/cooling_device1/type": "pwm-fan",
        "class/thermal/cooling_device1/cur_state": "3",
        "class/devfreq/17000000.gpu/cur_freq": "624750000",
        "class/hwmon/hwmon3/oc3_event_cnt": "37",
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600",
        "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1510400",
        "devices/platform/soc/soc:firmware/get_throttled": "50000",
        "status": "pmode:0002",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.setattr(vitals, "_SYS", tmp_path)
    monkeypatch.setattr(vitals, "_POWER", tmp_path / "status")
    monkeypatch.setattr(device_report, "_THERMAL", tmp_path / "class/thermal")
    monkeypatch.setattr(device_report, "_CLOCKS", tmp_path / "class/devfreq")
    said = vitals.read(tmp_path)
    assert said["celsius"] == {"cpu-thermal": 51.5} and said["power_mode"] == "0002"
    assert said["mhz"] == {"17000000.gpu": 624.75, "cpu": 1510.4}
    assert said["throttled"] == {"cpu-throttle-alert": 1, "oc3_event_cnt": 37, "get_throttled": 0x50000}
    assert said["memory_mib"] > said["memory_free_mib"] > 0 and said["uptime_s"] > 0
    assert said["disk_bytes"] > said["disk_free_bytes"] > 0 and len(said["load"]) == 3


def test_what_says_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = tmp_path / "nothing"
    for module, name in ((vitals, "_SYS"), (vitals, "_PROC"), (vitals, "_POWER")):
        monkeypatch.setattr(module, name, nothing)
    for name in ("_THERMAL", "_CLOCKS"):
        monkeypatch.setattr(device_report, name, nothing)
    said = vitals.read(nothing)
    assert {name for name, value in said.items() if value is not None} == {"load"} and len(said) == 10
