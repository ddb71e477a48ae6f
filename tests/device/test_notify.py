"""What the service manager hears, played by a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_kit import Device

from agrikd.device import notify


@pytest.fixture
def manager(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = folder.with_name("manager")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(path))
        door.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield door


def test_a_word_arrives(manager: socket.socket) -> None:
    notify.tell("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_a_name_that_is_in_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"agrikd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(f"\0{name}")
        door.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify.tell("READY=1")
        assert door.recv(100) == b"READY=1"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify.tell("READY=1")


def test_a_pulse_is_three_times_as_fast_as_it_must_be(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    now = [100.0]
    monkeypatch.setattr(notify.time, "monotonic", lambda: now[0])
    pulse, heard = notify.Pulse(), 0
    manager.setblocking(False)
    for _ in range(100):
        pulse.beat()
        now[0] += 0.1
        try:
            assert manager.recv(100) == b"WATCHDOG=1"
            heard += 1
        except BlockingIOError:
            continue
    assert heard == 10


def test_without_a_watchdog_there_is_no_pulse(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify.Pulse().beat()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_the_agent_says_that_it_is_ready_and_lives(
    manager: socket.socket, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    device.start()
    assert manager.recv(100) == b"READY=1"
    assert device.store.socket.exists(), "who hears READY may ask"
    begun = time.monotonic()
    assert [manager.recv(100) for _ in range(4)] == [b"WATCHDOG=1"] * 4
    assert time.monotonic() - begun >= 0.4
