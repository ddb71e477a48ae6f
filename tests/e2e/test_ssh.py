"""A flash through a real sshd: slow, cut, stalled and lost links, and a key that can do nothing else."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_kit import WEIGHTS, Device, Pack, contents
from ssh_kit import Network, Proxy, Sshd

from agrikd import flash
from agrikd.bundle import CHUNK_BYTES, Bundle


@pytest.fixture
def sshd(device: Device, short: Path) -> Iterator[Sshd]:
    device.start()
    made = Sshd(short, device, "127.0.0.1")
    yield made
    made.stop()


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_PAUSES_S", (0.1,))


@pytest.fixture
def large(packed: Pack) -> Path:
    ballast = np.random.default_rng(0).integers(0, 256, 1_000_000).astype(np.uint8).tobytes()
    return packed(1, held={**contents(), "ballast.bin": ballast})


def size(bundle: Path) -> int:
    with Bundle(bundle) as opened:
        return opened.release.size_bytes


def test_a_release_arrives(sshd: Sshd, device: Device, packed: Pack) -> None:
    done = flash.flash("field", packed(1), sshd.options, lambda *_: None)
    assert done.good, done
    assert device.require_whole().startswith("1-") and done.cuts == 0


def test_the_key_can_do_nothing_else(sshd: Sshd, device: Device, packed: Pack, short: Path) -> None:
    """No shell, no command, no terminal, no forwarding, no files: whatever is asked, it is the device that speaks."""
    canary = short / "canary"
    for words in (("field", f"touch {canary}"), ("field", f"serve --stdio; touch {canary}")):
        assert b'"protocol":1' in sshd.ssh(*words).stdout
    assert b"PTY allocation request failed" in sshd.ssh("-tt", "field", f"touch {canary}").stderr
    assert not canary.exists()
    tunnelled = sshd.ssh("-W", f"127.0.0.1:{sshd.port}", "field")
    assert b"forwarding failed" in tunnelled.stderr and b"SSH-2.0" not in tunnelled.stdout
    forwarded = sshd.ssh("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "field")
    assert b"forwarding failed" in forwarded.stderr
    taken = subprocess.run(
        ["sftp", "-F", str(short / "config"), "-b", "-", "field"],
        input=b"ls /\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert taken.returncode != 0 and b"etc" not in taken.stdout
    assert device.store.state.phase == "IDLE"


def test_one_megabyte_at_16_kb_a_second_with_cuts(network: Network, device: Device, short: Path, large: Path) -> None:
    """A second of payload is 16 kB: about a minute for a megabyte, whatever the number of cuts."""
    device.start()
    sshd = Sshd(short, device, network.address, network.inside)
    proxy = Proxy(network.address, sshd.port, 96 * 1024)
    try:
        network.rate(16)
        sshd.through("127.0.0.1", proxy.port)
        done = flash.flash("field", large, replace(sshd.options, silence_s=20), lambda *_: None)
    finally:
        proxy.close()
        sshd.stop()
    assert done.phase == "COMMITTED", done
    assert done.cuts >= size(large) // (96 * 1024) and done.sent_bytes <= size(large) + done.cuts * CHUNK_BYTES
    assert done.seconds > 50 and device.require_whole().startswith("1-")


def test_a_chunk_that_takes_a_minute_costs_no_cut(network: Network, device: Device, short: Path, packed: Pack) -> None:
    """Longer than either side, and ssh itself, bears a silence."""
    device.start()
    sshd = Sshd(short, device, network.address, network.inside)
    ballast = np.random.default_rng(0).integers(0, 256, CHUNK_BYTES).astype(np.uint8).tobytes()
    try:
        network.rate(1.2)
        held = {**contents(), "ballast.bin": ballast}
        done = flash.flash("field", packed(1, held=held), replace(sshd.options, silence_s=20), lambda *_: None)
    finally:
        sshd.stop()
    assert done.phase == "COMMITTED" and done.cuts == 0, done
    assert done.seconds > 50 and device.require_whole().startswith("1-")


def test_a_stalled_link_is_left_and_made_anew(sshd: Sshd, device: Device, large: Path) -> None:
    proxy = Proxy("127.0.0.1", sshd.port, 400 * 1024, stall=True)
    sshd.through("127.0.0.1", proxy.port)
    try:
        done = flash.flash("field", large, replace(sshd.options, silence_s=2), lambda *_: None)
    finally:
        proxy.close()
    assert done.phase == "COMMITTED" and done.cuts >= 2, done
    assert done.seconds < 20 * done.cuts, "what a link carried says how long it may need"
    assert device.require_whole().startswith("1-")


def test_the_link_goes_down_midway(network: Network, device: Device, short: Path, large: Path) -> None:
    device.start()
    sshd = Sshd(short, device, network.address, network.inside)
    network.rate(100)
    half = threading.Event()

    def report(host: str, what: str, sent: tuple[int, int] | None) -> None:
        if sent and sent[0] > 0.4 * sent[1] and not half.is_set():
            half.set()
            network("link", "set", network.link, "down")
            threading.Timer(12.0, network, ("link", "set", network.link, "up")).start()

    try:
        done = flash.flash("field", large, replace(sshd.options, silence_s=4), report)
    finally:
        sshd.stop()
    assert half.is_set() and done.phase == "COMMITTED" and done.cuts >= 1, done
    assert done.sent_bytes <= size(large) + done.cuts * CHUNK_BYTES
    assert device.require_whole().startswith("1-")


def test_ssh_killed_at_each_frame_leaves_it_committed_or_as_it_was(sshd: Sshd, device: Device, packed: Pack) -> None:
    """The client is killed after its first, second, … report; nobody calls again; the device ends by itself."""
    seen: list[str] = []
    for after in range(1, 6):
        calls = iter(range(1000))

        def report(host: str, what: str, sent: object, calls: object = calls, after: int = after) -> None:
            if next(calls) + 1 == after:  # type: ignore[call-overload]
                raise KeyboardInterrupt

        before = device.require_whole()
        try:
            done = flash.flash("field", packed(after, held=contents(WEIGHTS + after)), sshd.options, report)
            seen.append(done.phase)
        except KeyboardInterrupt:
            seen.append("killed")
        state = device.settled(30)
        now = device.require_whole()
        assert state.phase in ("COMMITTED", "RECEIVING", "IDLE"), state
        assert now == before or (now.startswith(f"{after}-") and state.phase == "COMMITTED")
    assert seen.count("killed") >= 4 and device.require_whole()


def test_a_host_that_nobody_answers_for(short: Path, packed: Pack) -> None:
    (short / "config").write_text("Host field\n  HostName 127.0.0.1\n  Port 1\n")
    options = replace(flash.Options(), ssh=(*flash.SSH, "-F", str(short / "config")), patience_s=0.5)
    begun = time.monotonic()
    done = flash.flash("field", packed(1), options, lambda *_: None)
    assert done.phase == "UNREACHABLE" and "refused" in done.reason and time.monotonic() - begun < 20
