"""A server in a thread, a bad link to it, a device that records, and whether a hub holds what the device has."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from postgres_kit import database

from agrikd import records
from agrikd.device.recorder import Bounds, Recorder
from agrikd.hub import Hub, Source
from agrikd.hub_tables import MIRRORS
from agrikd.records import Label, Opinion, Seen
from agrikd.types import ModelSpec

TOKEN = "a-token-for-the-tests"
CLASSES = ("blight", "healthy", "rust")
SPEC = ModelSpec("leaf", "classification", CLASSES, (8, 8))
DATABASES = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


def url_of(kind: str, folder: Path) -> str:
    return database() if kind == "postgresql" else f"sqlite:///{folder / 'hub.db'}"


def until(holds: Callable[[], Any], seconds: float = 30, say: Callable[[], Any] = lambda: "") -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"still not after {seconds} s {say()}"
        time.sleep(0.02)


@contextlib.contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Its URL; at the end nobody is there any more."""
    with socket.create_server(("127.0.0.1", port)) as door:
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Link(threading.Thread):
    """A TCP proxy to a URL. cut_bytes: after so many a connection ends. bytes_per_s: at most, towards the server.

    heard: (when, how many bytes) came from the device.
    """

    def __init__(self, url: str, cut_bytes: float = float("inf"), bytes_per_s: float = float("inf")) -> None:
        super().__init__(daemon=True)
        self._there = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.cut_bytes, self._bytes_per_s = cut_bytes, bytes_per_s
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.heard: list[tuple[float, int]] = []
        self.cuts = 0

    def run(self) -> None:
        with self._door:
            while True:
                here, _ = self._door.accept()
                threading.Thread(target=self._carry, args=(here,), daemon=True).start()

    def _carry(self, here: socket.socket) -> None:
        with here, contextlib.suppress(OSError), socket.create_connection(self._there) as there:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            carried = 0
            while carried < self.cut_bytes:
                for one in select.select([here, there], [], [])[0]:
                    data = one.recv(int(min(4096, self.cut_bytes - carried)) or 1)
                    if not data:
                        return
                    carried += len(data)
                    if one is here:
                        self.heard.append((time.monotonic(), len(data)))
                        time.sleep(len(data) / self._bytes_per_s)
                    (there if one is here else here).sendall(data)
            self.cuts += 1


def picture(number: int, size_bytes: int = 3000) -> bytes:
    """No real one: a hub does not look."""
    return b"\xff\xd8" + np.random.default_rng(number).bytes(size_bytes) + b"\xff\xd9"


def opinion(number: int = 0, role: Any = "student", model: str = "leaf-1") -> Opinion:
    share = (number % 100) / 300
    return Opinion(model, role, 1.8e9 + number, 12.34, 0, (1 - 2 * share, share, share), (0,), False, False)


def record(recorder: Recorder, number: int, kept: bytes | None = None, ask: str = "") -> int:
    """A frame with an opinion, perhaps a picture and a label; its id."""
    new = Seen(0, 1.8e9 + number, "north", quality=("dark",) if number % 7 == 0 else ())
    seen = recorder.frame(new, (opinion(number), SPEC), ("doubt", kept) if kept else None, ask)
    if number % 10 == 0:
        recorder.label(Label(f"click-{seen.id}", seen.id, "rust", "Änne", 1.8e9, "review", 'say "☘"'))
    return seen.id


@contextlib.contextmanager
def recording(folder: Path, **bounds: Any) -> Iterator[Recorder]:
    made = Recorder(folder, Bounds(**bounds))
    yield made
    made.stop()


def rows_here(folder: Path) -> dict[str, list[dict[str, Any]]]:
    with contextlib.closing(records.read(folder)) as db:
        return {table: records.beyond(db, table, 0, 10**9) for table in records.TABLES}


def rows_there(hub: Hub, source: Source) -> dict[str, list[dict[str, Any]]]:
    """As the device has them."""
    with hub._reading(source) as (db, number):
        return {
            name: [
                {key: value for key, value in row.items() if key not in ("origin", "held")}
                for row in db.execute(sa.select(table).where(table.c.origin == number).order_by(table.c.id)).mappings()
            ]
            for name, table in MIRRORS.items()
        }


def source_of(folder: Path, device: str = "orchard-1") -> Source:
    with contextlib.closing(records.read(folder)) as db:
        return Source(device, records.meta(db, "series"))


def behind(folder: Path, hub: Hub, device: str = "orchard-1") -> str:
    """What the hub does not hold as the device does; empty where it is all there, pictures too."""
    with contextlib.suppress(sqlite3.Error):
        source = source_of(folder, device)
        here, there = rows_here(folder), rows_there(hub, source)
        for table in records.TABLES:
            if here[table] != there[table]:
                return f"{table}: {len(there[table])} of {len(here[table])}"
        for row in here["pictures"]:
            try:
                if hub.picture(source, row["frame"]).read_bytes() != (folder / row["file"]).read_bytes():
                    return f"picture {row['id']} differs"
            except Exception as error:
                return f"picture {row['id']}: {error}"
        return ""
    return "cannot be read now"


def files_held(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


LENGTH = int(os.environ.get("AGRIKD_TORTURE", "1"))
