"""Bringing bundles to devices: over pipes that break at any byte, and in waves."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_kit import WEIGHTS, Device, Pack, contents
from typer.testing import CliRunner

from agrikd import dsse, files, flash, trust
from agrikd.bundle import CHUNK_BYTES, Bundle
from agrikd.cli import app
from agrikd.device import installer
from agrikd.dsse import Key
from agrikd.flash import Options, Outcome
from agrikd.wire import WireError

_SSH = """#!/bin/sh
# Stands in for ssh: HOST is a folder; HOST.up and HOST.down hold how many bytes the link lives for, each way, and
# HOST.slow how many it carries a second.
host="$1"; cd {farm}
echo x >> "$host.calls"
serve() {{ exec {python} -m agrikd.device --store "{farm}/$host" serve --stdio; }}
if [ -e "$host.up" ]; then {python} -S cut.py "$(cat "$host.up")" | serve
elif [ -e "$host.down" ]; then serve | {python} -S cut.py "$(cat "$host.down")"
elif [ -e "$host.slow" ]; then {python} -S slow.py "$(cat "$host.slow")" | serve
else serve; fi
"""
_CUT = """import os, sys
left = int(sys.argv[1])
while left and (data := os.read(0, left)):
    left -= len(data)
    os.write(1, data)
"""
_SLOW = """import os, sys, time
while data := os.read(0, 1024):
    time.sleep(len(data) / float(sys.argv[1]))
    os.write(1, data)
"""


class Farm:
    """Devices by name, and a command that stands in for ssh to them."""

    def __init__(self, folder: Path, root: bytes) -> None:
        self.folder, self.root, self.devices = folder, root, dict[str, Device]()
        (folder / "cut.py").write_text(_CUT)
        (folder / "slow.py").write_text(_SLOW)
        script = folder / "ssh"
        script.write_text(_SSH.format(farm=folder, python=sys.executable))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.options = Options(ssh=(str(script),), silence_s=20, patience_s=60)

    def add(self, host: str, *, start: bool = True) -> Device:
        self.devices[host] = device = Device(self.folder / host, self.root)
        if start:
            device.start()
        return device

    def breaks(self, host: str, way: str, after: int) -> None:
        """Each link to `host` lives for so many bytes: "up" to the device, "down" from it."""
        (self.folder / f"{host}.{way}").write_text(str(after))

    def slows(self, host: str, bytes_per_s: float) -> None:
        """What each link carries to `host`."""
        (self.folder / f"{host}.slow").write_text(str(bytes_per_s))

    def calls(self, host: str) -> int:
        return len((self.folder / f"{host}.calls").read_text().split())

    def flash(self, host: str, bundle: Path, **options: Any) -> Outcome:
        return flash.flash(host, bundle, replace(self.options, **options), lambda *_: None)


@pytest.fixture
def farm(root: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    monkeypatch.setattr(flash, "_PAUSES_S", (0.05,))
    folder = Path(tempfile.mkdtemp(prefix="akf-"))
    made = Farm(folder, root)
    yield made
    for device in made.devices.values():
        device.stop()
    shutil.rmtree(folder)


@pytest.fixture
def large(packed: Pack) -> Path:
    """A bundle of a million bytes that are no two chunks alike."""
    ballast = np.random.default_rng(0).integers(0, 256, 1_000_000).astype(np.uint8).tobytes()
    return packed(1, held={**contents(), "ballast.bin": ballast})


def test_a_release_arrives_and_the_next_flash_sends_nothing(farm: Farm, packed: Pack) -> None:
    device, bundle = farm.add("field-1"), packed(1)
    done = farm.flash("field-1", bundle)
    assert done.phase == "COMMITTED" and done.good and device.require_whole().startswith("1-")
    with Bundle(bundle) as opened:
        assert done.sent_bytes == done.needed_bytes == opened.release.size_bytes
    again = farm.flash("field-1", bundle)
    assert again.phase == "COMMITTED" and again.sent_bytes == 0 and again.reason == "it serves already"
    assert again.before == device.require_whole()


def test_files_that_are_there_do_not_travel_again(farm: Farm, packed: Pack) -> None:
    farm.add("field-1")
    assert farm.flash("field-1", packed(1)).good
    said: list[str] = []
    second = packed(2, held=contents(WEIGHTS + 1))
    done = flash.flash("field-1", second, farm.options, lambda host, what, share: said.append(what))
    assert any("the last one took" in what for what in said), "an estimate, from the release before"
    changed = contents(WEIGHTS + 1)
    assert done.good and done.sent_bytes == len(changed["model.onnx"]) + len(changed["answers.json"])


def test_a_dry_run_changes_nothing(farm: Farm, packed: Pack, key: Key, tmp_path: Path) -> None:
    device, bundle = farm.add("field-1"), packed(1)
    before = _tree(device.store.folder)
    done = farm.flash("field-1", bundle, dry_run=True)
    assert done.phase == "WOULD TAKE" and done.sent_bytes == 0 and done.needed_bytes > 0
    new = Key.new(tmp_path / "new.key")
    second = trust.rotate(device.store.root, [key, new], [new.public], [key.id], 1).to_bytes()
    renewed = packed(1, keys=[new])
    assert farm.flash("field-1", renewed, dry_run=True).phase == "REFUSED"
    assert farm.flash("field-1", renewed, dry_run=True, roots=(second,)).phase == "WOULD TAKE"
    assert _tree(device.store.folder) == before
    assert farm.flash("field-1", renewed, roots=(second,)).good and device.store.root.version == 2
    assert farm.flash("field-1", renewed, roots=(second,)).good, "a root that is in force is passed over"


def _tree(folder: Path) -> dict[str, bytes]:
    held = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in held
        if path.name not in ("lock", "agent.lock", "log.jsonl")
    }


@pytest.mark.parametrize("kib", [96, 100, 128, 200, 333, 700])
def test_a_link_that_breaks_costs_one_chunk_a_cut(
    kib: int, farm: Farm, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "_AHEAD_S", 0.0)
    device = farm.add("field-1")
    farm.breaks("field-1", "up", kib * 1024)
    done = farm.flash("field-1", large)
    with Bundle(large) as opened:
        size = opened.release.size_bytes
    assert done.phase == "COMMITTED", done
    assert done.cuts >= size // (kib * 1024) - 1 and done.sent_bytes <= size + done.cuts * CHUNK_BYTES
    assert device.require_whole().startswith("1-")


@pytest.mark.parametrize("large_one", ["chunk", "envelope"])
def test_what_takes_a_slow_link_longer_than_it_may_be_silent_arrives_without_a_cut(
    large_one: str, farm: Farm, packed: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk, or an envelope of its size, takes one and a half times as long as a link may be silent."""
    silence_s = 6.0
    noise = np.random.default_rng(0).integers(0, 256, CHUNK_BYTES).astype(np.uint8).tobytes()
    monkeypatch.setattr(flash, "SLOWEST_BYTES_S", CHUNK_BYTES / silence_s / 2)
    farm.add("field-1")
    farm.slows("field-1", CHUNK_BYTES / silence_s / 1.5)
    if large_one == "chunk":
        bundle = packed(1, held={**contents(), "ballast.bin": noise})
    else:  # base64 makes four letters of three bytes
        bundle = packed(1, provenance={"recipe": noise[: 3 * CHUNK_BYTES // 8].hex()})
    done = farm.flash("field-1", bundle, silence_s=silence_s, patience_s=20)
    assert done.phase == "COMMITTED" and done.cuts == 0, done
    assert done.seconds > 1.5 * silence_s and done.sent_bytes == done.needed_bytes


def test_after_a_link_that_carried_something_the_wait_is_short_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    links = iter([False, False, False, True, False, True, True])

    def once(talk: Any) -> None:
        if (carries := next(links, None)) is not None:
            talk.progress_at = time.monotonic() if carries else talk.progress_at
            talk.on_the_way_s = 0.0 if len(waited) < 5 else 4.0
            raise WireError("it broke")

    monkeypatch.setattr(flash._Talk, "_once", once)
    monkeypatch.setattr(flash.time, "sleep", waited.append)
    done = flash.flash("field-1", tmp_path / "x.akb", Options(), lambda *_: None)
    assert waited == [1, 2, 5, 1, 2, 4, 4] and done.cuts == 7


def test_a_link_that_breaks_while_the_device_speaks(farm: Farm, packed: Pack) -> None:
    """After every few bytes that the device says, in hello, offer, acknowledgements and phases: it ends well, and the
    release is tried once."""
    device = farm.add("field-1")
    for seq, after in enumerate(range(97, 500, 67), start=1):
        farm.breaks("field-1", "down", after)
        done = farm.flash("field-1", packed(seq, held=contents(WEIGHTS + seq)), patience_s=10)
        state = device.settled()
        assert state.phase in ("COMMITTED", "RECEIVING", "IDLE") and state.attempts <= 1, (after, state)
        device.require_whole()
        (farm.folder / "field-1.down").unlink()
        assert done.good or farm.flash("field-1", packed(seq, held=contents(WEIGHTS + seq))).good, (after, done)
    assert seq == 7


def test_the_device_decides_when_the_link_is_gone(farm: Farm, packed: Pack) -> None:
    """The link lives until the last chunk is delivered and no longer; nobody calls again."""
    device, bundle = farm.add("field-1"), packed(1)
    stop = threading.Event()

    def report(host: str, what: str, sent: tuple[int, int] | None) -> None:
        if "verified" in what or "prepared" in what or "broke" in what:
            stop.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flash.flash("field-1", bundle, farm.options, report)
    assert stop.is_set() and device.settled().phase == "COMMITTED" and device.require_whole().startswith("1-")


def test_how_much_has_arrived_is_told(farm: Farm, packed: Pack) -> None:
    farm.add("field-1")
    told: list[tuple[int, int]] = []
    done = flash.flash("field-1", packed(1), farm.options, lambda host, what, sent: told.extend([sent] if sent else []))
    assert done.good and done.needed_bytes > 0
    assert told == sorted(told) and told[0] == (0, done.needed_bytes) and told[-1] == (done.needed_bytes,) * 2


def test_a_rolled_back_release_is_told(farm: Farm, packed: Pack) -> None:
    farm.add("field-1")
    done = farm.flash("field-1", packed(1, held=contents(WEIGHTS[:, [1, 2, 0]], answers=WEIGHTS.tolist())))
    assert done.phase == "ROLLED_BACK" and not done.good and "differ from the lab's" in done.reason


REFUSALS: dict[str, Callable[[Pack, Path], Path]] = {
    "0 trusted signatures": lambda packed, tmp: packed(9, keys=[Key.new(tmp / "stranger")]),
    "has the seq 4": lambda packed, tmp: packed(4),
    "is for riscv": lambda packed, tmp: packed(9, compatible=("riscv*",)),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_a_device_refuses_is_told_and_not_tried_again(
    reason: str, farm: Farm, packed: Pack, tmp_path: Path
) -> None:
    device = farm.add("field-1")
    assert farm.flash("field-1", packed(5)).good
    calls = farm.calls("field-1")
    done = farm.flash("field-1", REFUSALS[reason](packed, tmp_path))
    assert done.phase == "REFUSED" and reason in done.reason and done.sent_bytes == 0
    assert farm.calls("field-1") == calls + 1 and device.require_whole().startswith("5-")


def test_a_signed_permission_goes_with_the_flash(farm: Farm, packed: Pack, key: Key, tmp_path: Path) -> None:
    device, older = farm.add("field-1"), packed(4, held=contents(WEIGHTS + 1))
    assert farm.flash("field-1", packed(5)).good
    files.write_bytes(tmp_path / "k.pem", b"")
    asked = ["bundle", "permit", str(older), "--floor", "5", "--out", str(tmp_path / "p")]
    assert CliRunner().invoke(app, [*asked, "--key", str(tmp_path / "k.pem")]).exit_code == 2
    said = files.canonical({"name": "leaf", "seq": 4, "floor": 5})
    permission = dsse.sign(installer.PERMISSION, said, [key]).to_bytes()
    assert farm.flash("field-1", older, permission=permission).good and device.require_whole().startswith("4-")


def test_without_an_agent_the_device_says_so(farm: Farm, packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    device = farm.add("field-1", start=False)
    done = farm.flash("field-1", packed(1))
    assert done.phase == "REFUSED" and "no agent is running" in done.reason
    device.start()
    assert device.settled().phase == "COMMITTED"


def test_while_another_installation_runs_it_waits(farm: Farm, packed: Pack) -> None:
    device = farm.add("field-1")
    with device.store.locked():
        done = farm.flash("field-1", packed(1), patience_s=4)
    assert done.phase == "UNREACHABLE" and "another installation is running" in done.reason and done.cuts >= 1
    assert farm.flash("field-1", packed(1)).good


def test_a_host_that_makes_no_sense_ends_alone(farm: Farm, packed: Pack, tmp_path: Path) -> None:
    """A device that says a number where a phase is expected, and a machine without ssh."""
    odd = tmp_path / "odd"
    frames = b""
    for said in ({"protocol": 1, "kind": "x", "current": ""}, {"missing": []}, {"phase": 7}, {"phase": []}):
        data = json.dumps(said).encode()
        frames += b"J" + len(data).to_bytes(4, "big") + data
    (tmp_path / "frames").write_bytes(frames)
    odd.write_text(f"#!/bin/sh\ncat {tmp_path}/frames; sleep 1\n")
    odd.chmod(0o755)
    farm.add("good")
    outcomes = flash.flash_all(
        [["a"]], packed(1), replace(farm.options, ssh=(str(odd),), patience_s=1), lambda *_: None, 1
    )
    assert outcomes[0].phase == "UNREACHABLE" and outcomes[0].seconds > 0
    outcomes = flash.flash_all([["a"]], packed(1), replace(farm.options, ssh=("no-such-ssh",)), lambda *_: None, 1)
    assert "FileNotFoundError" in outcomes[0].reason


def test_a_host_that_is_not_there(farm: Farm, packed: Pack) -> None:
    done = farm.flash("field-9", packed(1), ssh=("sh", "-c", "echo no route >&2; exit 255"), patience_s=0.3)
    assert done.phase == "UNREACHABLE" and "no route" in done.reason and done.cuts >= 1
    done = farm.flash("field-9", packed(1), ssh=("sh", "-c", "echo 'Permission denied (publickey).' >&2; exit 255"))
    assert done.phase == "UNREACHABLE" and "Permission denied" in done.reason and done.cuts == 0


def test_twenty_devices_in_waves_with_a_bad_one(farm: Farm, packed: Pack) -> None:
    """The canary alone, then waves of six; one device trusts nobody that we know, and stops nothing below the limit."""
    hosts = [f"field-{number:02}" for number in range(20)]
    for host in hosts:
        farm.add(host)
    shutil.rmtree(farm.folder / "field-07" / "trust")
    (farm.folder / "field-07" / "trust").mkdir()
    plan = flash.waves(hosts, 1, 6)
    assert [len(wave) for wave in plan] == [1, 6, 6, 6, 1]
    outcomes = flash.flash_all(plan, packed(1), farm.options, lambda *_: None, max_failed=0.2)
    assert [one.host for one in outcomes] == hosts
    assert {one.host for one in outcomes if not one.good} == {"field-07"} and len(outcomes) == 20
    assert all(farm.devices[one.host].require_whole().startswith("1-") for one in outcomes if one.good)


def test_a_bad_canary_stops_the_rest(farm: Farm, packed: Pack) -> None:
    for host in ("a", "b", "c"):
        farm.add(host)
    bad = packed(1, held=contents(WEIGHTS * np.nan, answers=WEIGHTS.tolist()))
    outcomes = flash.flash_all(flash.waves(["a", "b", "c"], 1, 2), bad, farm.options, lambda *_: None, 0.2)
    assert [one.phase for one in outcomes] == ["ROLLED_BACK", "SKIPPED", "SKIPPED"]
    assert "100% of wave 1 failed" in outcomes[1].reason and farm.devices["b"].store.state.phase == "IDLE"


def test_the_verb(farm: Farm, packed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "SSH", farm.options.ssh)
    farm.add("a")
    (tmp_path / "hosts").write_text("# the orchard\na  # near the road\n\n")
    words = ["flash", str(packed(1)), "--inventory", str(tmp_path / "hosts"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (one,) = json.loads(done.stdout)
    assert one["phase"] == "COMMITTED" and one["host"] == "a" and "a: sending" in done.stderr
    old = packed(2, held={**contents(), "ballast.bin": os.urandom(1_000_000)}, expires="2020-01-01")
    done = CliRunner().invoke(app, ["flash", "a", str(old), "--dry-run"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "MB to send" in done.stdout and "1.00" in done.stdout
    assert "expired since" in done.stdout and "2020-01-01" in done.stdout
    done = CliRunner().invoke(app, ["flash", "a", "-F", "a", str(tmp_path / "gone.akb")])
    assert done.exit_code == 2 and "cannot be read" in done.stderr


def test_all_that_is_wrong_with_the_words_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a\n-oProxyCommand=x\nb c\na\n")
    (tmp_path / "x.akb").write_bytes(os.urandom(100))
    done = CliRunner().invoke(app, ["flash", str(tmp_path / "x.akb"), "--inventory", str(tmp_path / "hosts")])
    said = done.stderr.replace("\n", " ")
    assert done.exit_code == 2 and "'-oProxyCommand=x': is no host" in said
    assert "named twice" in said and "is no bundle" in said and "'b c'" in said
