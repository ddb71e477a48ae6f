"""A hub holds every row and every picture of a device once, whatever is sent, and however often."""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import absent
from serve_kit import files_held, rows_there, url_of

from agrikd import files, hub_tables, records
from agrikd.errors import InputError, StorageError
from agrikd.hub import MOST_BEATS, AbsentError, Hub, OutOfStepError, Source
from agrikd.hub_tables import COLUMNS, MOST_ROWS, MOST_TEXT, check

HERE = Source("orchard-1", "0123456789abcdef" * 2)
JPEG = bytes(range(256)) * 40


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    made = Hub(url_of(request.param, tmp_path), tmp_path / "pictures", Clock(), free_bytes=0)
    yield made
    made.close()


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "t": 1.5 * number, "key": "clock", "value": f"event {number} ☘", **changes}


def events(*numbers: int) -> list[dict[str, Any]]:
    return [event(number) for number in numbers]


def picture(number: int, data: bytes = JPEG) -> dict[str, Any]:
    own = {"file": "../../../etc/passwd", "size_bytes": len(data), "sha256": files.sha256(data)}
    return {"id": number, "frame": 100 + number, "why": "doubt", **own}


def held(hub: Hub, source: Source = HERE) -> list[int]:
    return [row["id"] for row in rows_there(hub, source)["events"]]


# Rows


def test_rows_are_stored_once_and_in_order(hub: Hub) -> None:
    assert hub.take(HERE, "events", 0, events(1, 2, 5)) == 5
    assert hub.take(HERE, "events", 0, events(1, 2, 5)) == 5, "sent again"
    assert hub.take(HERE, "events", 2, events(5, 6)) == 6, "overlapping"
    assert hub.take(HERE, "events", 6, []) == 6
    assert hub.take(HERE, "events", 6, events(9)) == 9, "ids have gaps"
    assert rows_there(hub, HERE)["events"] == events(1, 2, 5, 6, 9)
    assert hub.state(HERE)["beyond"] == dict.fromkeys(records.TABLES, 0) | {"events": 9}


def test_what_would_leave_a_gap_is_refused_with_the_cursor(hub: Hub) -> None:
    hub.take(HERE, "events", 0, events(1, 2))
    for after, numbers in ((4, (5,)), (1, (5,)), (7, ())):
        with pytest.raises(OutOfStepError, match="the hub stands at 2") as refused:
            hub.take(HERE, "events", after, events(*numbers))
        assert refused.value.at == 2
    assert held(hub) == [1, 2]


def test_sources_do_not_collide(hub: Hub) -> None:
    """Two devices, and one whose disk was replaced."""
    for source in (HERE, replace(HERE, device="orchard-2"), replace(HERE, series="f" * 32)):
        hub.take(source, "events", 0, [event(1, value=str(source))])
        hub.take(source, "pictures", 0, [picture(1, repr(source).encode())])
        hub.put(source, 1, 0, repr(source).encode())
    for source in (HERE, replace(HERE, device="orchard-2"), replace(HERE, series="f" * 32)):
        assert rows_there(hub, source)["events"] == [event(1, value=str(source))]
        assert hub.picture(source, 101).read_bytes() == repr(source).encode()


@pytest.mark.parametrize("device", ["", "../x", "a/b", "a" * 65, "Ä", "a b", "-a", "a\n"])
def test_a_name_that_is_none(device: str) -> None:
    with pytest.raises(InputError, match="is no source"):
        replace(HERE, device=device)


def test_many_at_once_make_no_doubles_and_no_gaps(hub: Hub) -> None:
    """Eight syncs of one device, each believing what it was last told."""
    last, troubles = 150, []

    def sync(seed: int) -> None:
        rng, at = Random(seed), 0
        try:
            while at < last:
                after = at if rng.random() < 0.7 else rng.randrange(at + 1)
                batch = events(*range(after + 1, min(last, after + rng.randint(1, 12)) + 1))
                try:
                    at = max(at, hub.take(HERE, "events", after, batch))
                except OutOfStepError as error:
                    at = error.at
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=sync, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not troubles and held(hub) == list(range(1, last + 1))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_order_of_batches_ends_without_gaps(hub: Hub, data: st.DataObject) -> None:
    source = replace(HERE, series=uuid.uuid4().hex)
    ids = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1)))
    for after, count in data.draw(st.lists(st.tuples(st.integers(0, 41), st.integers(0, 10)), max_size=12)):
        batch = [number for number in ids if number > after][:count]
        try:
            hub.take(source, "events", after, events(*batch))
        except OutOfStepError as error:
            assert error.at == hub.state(source)["beyond"]["events"]
        at = hub.state(source)["beyond"]["events"]
        assert held(hub, source) == [number for number in ids if number <= at]


# What may be a row


SQL = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
RIGHT = {
    "INTEGER": st.integers(-(2**63) + 1, 2**63 - 1),
    "REAL": st.floats(allow_nan=False, allow_infinity=False),
    "TEXT": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
}


@st.composite
def right_rows(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """A table's name and rows that a device may have."""
    table = draw(st.sampled_from(records.TABLES))
    rows = []
    for number in sorted(draw(st.sets(st.integers(1, 2**63 - 1), max_size=4))):
        row: dict[str, Any] = {
            name: draw(RIGHT[one.kind] if one.required else st.none() | RIGHT[one.kind])
            for name, one in COLUMNS[table].items()
        }
        own = {"size_bytes": draw(st.integers(1, 8 * 2**20)), "sha256": f"{draw(st.integers(0, 2**256 - 1)):064x}"}
        rows.append({**row, "id": number, **(own if table == "pictures" else {})})
    return table, rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(right_rows())
def test_what_may_be_a_row_comes_back_as_it_was(hub: Hub, given: tuple[str, list[dict[str, Any]]]) -> None:
    table, rows = given
    source = replace(HERE, series=uuid.uuid4().hex)
    hub.take(source, table, 0, rows)
    assert rows_there(hub, source)[table] == rows


@given(
    st.sampled_from(records.TABLES) | st.text(max_size=9),
    SQL,
    st.recursive(
        SQL,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=9) | st.sampled_from(("id", "t", "frame", "key")), inner, max_size=5)
        ),
    ),
)
def test_anything_else_is_refused_in_words(table: str, after: Any, rows: Any) -> None:
    try:
        check(table, after, rows)
    except InputError as error:
        assert error.problems and str(error)
    else:
        assert table in records.TABLES and type(after) is int and all(set(COLUMNS[table]) >= set(row) for row in rows)


@given(right_rows(), st.data())
def test_one_wrong_value_is_named(given: tuple[str, list[dict[str, Any]]], data: st.DataObject) -> None:
    table, rows = given
    if not rows:
        return
    place, name = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(sorted(COLUMNS[table])))
    wrong = {
        "INTEGER": [True, 1.0, "1", 2**63],
        "REAL": [1, "1", float("nan"), float("inf")],
        "TEXT": [b"x".hex, 1, "\0"],
    }
    rows[place][name] = data.draw(st.sampled_from([*wrong[COLUMNS[table][name].kind], [], {}]))
    with pytest.raises(InputError, match=rf"{table}\[{place}\]\.{name}"):
        check(table, 0, rows)


def test_all_mistakes_come_at_once() -> None:
    rows = [event(3), event(3), event(2, t=1), {"id": 4, "t": 1.0, "key": "\ud800", "much": 1}, 7]
    with pytest.raises(InputError) as refused:
        check("events", 0, rows)
    assert [problem.said for problem in refused.value.problems] == [
        "events[1].id: is 3, which is not beyond 3",
        "events[2].t: is no REAL that a database holds",
        "events[2].id: is 2, which is not beyond 3",
        "events[3].'much': is not known here",
        f"events[3].key: must be text of at most {MOST_TEXT} characters, none of them a zero or half of one",
        "events[3].value: is missing",
        "events[4]: is no row",
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (events(*range(1, MOST_ROWS + 2)), "at most 1000 rows"),
        ([event(1, value="x" * (MOST_TEXT + 1))], "must be text of at most"),
        ({}, "must be a list"),
    ],
)
def test_batches_are_bounded(rows: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check("events", 0, rows)


@pytest.mark.parametrize("changes", [{"size_bytes": 0}, {"size_bytes": 9 * 2**20}, {"sha256": "A" * 64}])
def test_a_picture_that_cannot_be_one(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"pictures\[0\]\." + next(iter(changes))):
        check("pictures", 0, [picture(1) | changes])


def test_the_columns_are_those_of_the_records(tmp_path: Path) -> None:
    db = records.create(tmp_path)
    for table in records.TABLES:
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        assert names == list(hub_tables.COLUMNS[table]) and names
    db.close()


# Pictures


def test_a_picture_appears_whole_and_once(hub: Hub, tmp_path: Path) -> None:
    hub.take(HERE, "pictures", 0, [picture(1)])
    assert hub.state(HERE)["wanted"] == [[1, 0]]
    assert hub.put(HERE, 1, 0, JPEG[:3000]) == 3000
    assert hub.state(HERE)["wanted"] == [[1, 3000]]
    with pytest.raises(AbsentError, match="no picture of frame 101"):
        hub.picture(HERE, 101)
    with pytest.raises(OutOfStepError) as refused:
        hub.put(HERE, 1, 0, JPEG[:3000])
    assert refused.value.at == 3000
    assert hub.put(HERE, 1, 3000, JPEG[3000:]) == len(JPEG)
    assert hub.put(HERE, 1, 3000, JPEG[3000:]) == len(JPEG), "sent again"
    path = hub.picture(HERE, 101)
    assert path.read_bytes() == JPEG and path.is_relative_to(tmp_path / "pictures")
    assert files_held(tmp_path / "pictures") == [path] and not hub.state(HERE)["wanted"]


def test_a_picture_that_is_another(hub: Hub, tmp_path: Path) -> None:
    hub.take(HERE, "pictures", 0, [picture(1)])
    hub.put(HERE, 1, 0, JPEG[:100])
    with pytest.raises(InputError, match="is not what its row says"):
        hub.put(HERE, 1, 100, b"x" * (len(JPEG) - 100))
    assert not files_held(tmp_path / "pictures") and hub.state(HERE)["wanted"] == [[1, 0]]
    assert hub.put(HERE, 1, 0, JPEG + b"more") == len(JPEG)
    assert hub.picture(HERE, 101).read_bytes() == JPEG


def test_a_hub_that_was_killed_between_two_steps(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes are there but not in place; in place, but not in the row."""
    hub.take(HERE, "pictures", 0, [picture(1), picture(2, JPEG[:999])])
    steps = {"replacing": lambda _: 1 / 0, "sync": lambda path: 1 / 0 if path.is_dir() else None}
    for number, data, step in ((1, JPEG, "replacing"), (2, JPEG[:999], "sync")):
        with monkeypatch.context() as patch:
            patch.setattr(files, step, steps[step])
            with pytest.raises(ZeroDivisionError):
                hub.put(HERE, number, 0, data)
        assert hub.put(HERE, number, len(data), b"") == len(data)
        assert hub.picture(HERE, 100 + number).read_bytes() == data
    assert len(files_held(tmp_path / "pictures")) == 2


def test_a_picture_that_is_gone_is_not_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.take(HERE, "pictures", 0, [picture(1), picture(2)])
    hub.put(HERE, 1, 0, JPEG[:10])
    hub.gone(HERE, 1)
    assert hub.state(HERE)["wanted"] == [[2, 0]] and not files_held(tmp_path / "pictures")
    hub.put(HERE, 2, 0, JPEG)
    hub.gone(HERE, 2)
    assert hub.picture(HERE, 102).read_bytes() == JPEG, "what is here stays"


def test_a_picture_of_no_row(hub: Hub) -> None:
    with pytest.raises(AbsentError, match="picture 7 of orchard-1 is not in its rows"):
        hub.put(HERE, 7, 0, JPEG)


def test_a_full_disk_is_refused_in_words(hub: Hub, tmp_path: Path) -> None:
    """And with it the pictures alone: rows find the room that is left free."""
    hub._free_bytes = 10**18
    hub.take(HERE, "pictures", 0, [picture(1)])
    with pytest.raises(StorageError, match="the disk is full"):
        hub.put(HERE, 1, 0, JPEG)
    assert hub.take(HERE, "events", 0, events(1)) == 1
    hub._free_bytes = 0
    assert hub.put(HERE, 1, 0, JPEG) == len(JPEG)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        absent("only root mounts file systems")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_database_whose_disk_is_full(small_disk: Path) -> None:
    """Refused in words, nothing of the batch is there, and it goes on when there is room."""
    hub = Hub.open(str(small_disk))
    at = 0
    with pytest.raises(StorageError, match=r"the hub's database: .*full"):
        while at < 10**5:
            batch = [event(at + n, value="x" * 1000) for n in range(1, 101)]
            at = hub.take(HERE, "events", at, batch)
    assert held(hub) == list(range(1, at + 1)) and hub.state(HERE)["beyond"]["events"] == at > 0
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert hub.take(HERE, "events", at, batch) == at + 100
    hub.close()


# Heartbeats


def test_devices_are_stale_after_three_periods_of_silence(hub: Hub) -> None:
    clock: Any = hub._clock
    hub.beat(HERE, 30.0, {"load": [0.5]})
    clock.now += 90
    (one,) = hub.devices()
    assert one == {
        "device": "orchard-1",
        "series": HERE.series,
        "age_s": 90.0,
        "since_s": 90.0,
        "stale": False,
        "vitals": {"load": [0.5]},
    }
    clock.now += 1
    assert hub.devices()[0]["stale"]
    hub.beat(HERE, 60.0, {"load": [0.7]})
    assert not hub.devices()[0]["stale"] and (hub.devices()[0]["age_s"], hub.devices()[0]["since_s"]) == (0.0, 91.0)
    assert [(one["t"], one["period_s"]) for one in hub.beats(HERE, 10)] == [(1091.0, 60.0), (1000.0, 30.0)]


def test_a_source_without_heartbeats_is_stale(hub: Hub) -> None:
    hub.take(HERE, "events", 0, events(1))
    hub.beat(replace(HERE, series="f" * 32), 30, {})
    assert [(one["series"][0], one["age_s"], one["stale"]) for one in hub.devices()] == [
        ("f", 0, False),
        ("0", None, True),
    ]


def test_heartbeats_are_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BEATS * 30 > 6 * 86_400
    monkeypatch.setattr("agrikd.hub.MOST_BEATS", 5)
    for number in range(12):
        hub.beat(HERE, 30, {"number": number})
    assert [one["vitals"]["number"] for one in hub.beats(HERE, 10**9)] == [11, 10, 9, 8, 7]


@pytest.mark.parametrize(
    ("period_s", "vitals"),
    [
        (0, {}),
        ("30", {}),
        (True, []),
        (10**9, {}),
        (30, None),
        (30, {"x": "x" * 2**16}),
        (30, {"x": float("nan")}),
        (float("nan"), {}),
    ],
)
def test_a_heartbeat_that_is_none(hub: Hub, period_s: Any, vitals: Any) -> None:
    with pytest.raises(InputError):
        hub.beat(HERE, period_s, vitals)
    assert not hub.beats(HERE, 10)


# Reading back


def test_frames_are_read_in_pages_with_what_was_said_of_them(hub: Hub) -> None:
    where = {"local": "2027-05-04T16:20:01", "camera": "north", "field": "", "plot": "", "quality": ""}
    frames = [{"id": n, "t": 1.0 * n, **where, "latitude": None, "longitude": None, "audit": None} for n in range(1, 8)]
    hub.take(HERE, "frames", 0, frames)
    said = {"frame": 6, "model": "leaf-1", "t": 1.0, "top": 0, "probability": 0.75, "value": None, "unsure": 0}
    said |= {"unknown": 0, "probabilities": "[0.75, 0.25]", "candidates": "[0]", "interval": None, "latency_ms": 3.5}
    hub.take(HERE, "predictions", 0, [{"id": 1, "role": "student", **said}])
    label = {"key": "k", "frame": 6, "label": "rust", "who": "A", "t": 1.0, "source": "live", "note": ""}
    hub.take(HERE, "labels", 0, [{"id": 1, **label}, {"id": 2, **label, "key": "l", "label": "unsure"}])
    hub.take(HERE, "pictures", 0, [{**picture(1), "frame": 6}])
    first = hub.frames(HERE, 2**63 - 1, 3)
    assert [one["id"] for one in first] == [7, 6, 5]
    assert [one["id"] for one in hub.frames(HERE, 5, 9)] == [4, 3, 2, 1]
    assert first[0] == {**frames[6], "predictions": [], "labels": [], "picture": None}
    assert first[1]["predictions"][0]["probabilities"] == [0.75, 0.25]
    assert [one["label"] for one in first[1]["labels"]] == ["rust", "unsure"]
    assert first[1]["picture"]["held"] == "" and "file" not in first[1]["picture"]
    assert hub.frames(replace(HERE, device="other"), 99, 9) == []


def test_a_hub_goes_on_where_it_was(tmp_path: Path) -> None:
    for last in (2, 4):
        hub = Hub.open(str(tmp_path / "hub"))
        assert hub.take(HERE, "events", last - 2, events(last - 1, last)) == last
        hub.close()
    assert sorted(path.name for path in (tmp_path / "hub").iterdir())[0] == "hub.db"


def test_a_hub_of_another_form_or_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.open(str(tmp_path)).close()
    monkeypatch.setattr(records, "SCHEMA", 2)
    with pytest.raises(InputError, match="holds records of the form 1, this agrikd knows 2"):
        Hub.open(str(tmp_path))
    with pytest.raises(InputError, match="holds no pictures"):
        Hub.open("postgresql://localhost/hub")
    with pytest.raises(InputError, match="is no database for a hub"):
        Hub.open("mssql+pyodbc://localhost/hub", tmp_path)
    with pytest.raises(StorageError, match="the hub's database"):
        Hub.open(f"postgresql://nobody@/nothing?host={tmp_path}", tmp_path)
