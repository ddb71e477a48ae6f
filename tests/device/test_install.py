"""A release goes in, or it does not and what served before serves on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_kit import QUICK, WEIGHTS, Device, Pack, contents

from agrikd import bundle, dsse, files, trust
from agrikd.bundle import Bundle
from agrikd.device import installer
from agrikd.device.question import ask
from agrikd.dsse import Key
from agrikd.errors import AgriKDError


def test_the_first_and_the_second_release(device: Device, packed: Pack, tmp_path: Path) -> None:
    device.start()
    first, second = packed(1), packed(2, held=contents(WEIGHTS + 1))
    done = device.run("install", str(first))
    assert done.returncode == 0, done.stderr
    one = device.require_whole()
    assert one.startswith("1-") and device.store.state.phase == "COMMITTED"
    done = device.run("install", str(second))
    assert done.returncode == 0, done.stderr
    assert device.require_whole().startswith("2-") and device.store.linked("previous") == one
    said = json.loads(device.run("status", "--json").stdout)
    assert said["current"].startswith("2-") and said["agent"]["serving"] == said["current"]
    assert said["precision"] == "fp32" and said["version"] == "2026.2" and said["reason"] == ""
    assert "serves already" in device.run("install", str(second)).stderr
    assert device.run("rollback").returncode == 0
    assert device.require_whole() == one and device.store.linked("previous").startswith("2-")
    assert device.store.floors == {"leaf": 2}
    device.run("logs", "--bundle", str(tmp_path / "logs.tar.gz"))
    with tarfile.open(tmp_path / "logs.tar.gz") as found:
        names = found.getnames()
    assert {"agrikd-logs/status.json", "agrikd-logs/log.jsonl", "agrikd-logs/state.json"} <= set(names)
    assert not [name for name in names if "trust" in name or name.endswith((".png", ".onnx"))]


TROUBLES = {
    "not what was answered in the lab": (
        {"weights": WEIGHTS * 1.01, "answers": WEIGHTS.tolist()},
        {},
        "differ from the lab",
    ),
    "shuffled classes": ({"weights": WEIGHTS[:, [1, 2, 0]], "answers": WEIGHTS.tolist()}, {}, "differ from the lab"),
    "not a number": ({"weights": WEIGHTS * np.nan, "answers": WEIGHTS.tolist()}, {}, "finite"),
    "another number of classes": (
        {"weights": WEIGHTS[:, :2], "answers": WEIGHTS.tolist()},
        {},
        "3 × 2 logits, expected 3 × 3",
    ),
    "hangs": ({"trouble": "hang"}, {}, "did not answer in time"),
    "eats memory": ({"trouble": "memory"}, {}, "MiB, 1000 at most"),
    "is too slow": ({}, {"budget_ms": 1e-6}, "ms a frame"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_bad_model_is_rolled_back_by_itself(trouble: str, device: Device, packed: Pack) -> None:
    """With the reason in `status`, and what served before serves on, before and after."""
    held, changes, said = TROUBLES[trouble]
    device.start(replace(QUICK, answer_s=2 if trouble == "hangs" else 20))
    assert device.run("install", str(packed(1))).returncode == 0
    good = device.require_whole()
    done = device.run("install", str(packed(2, held=contents(**held), **changes)))
    assert done.returncode == 10 and said in done.stderr.replace("\n", " "), done.stderr
    found = json.loads(device.run("status", "--json").stdout)
    assert found["phase"] == "ROLLED_BACK" and said in found["reason"] and found["agent"]["serving"] == good
    assert device.require_whole() == good and device.store.floors == {"leaf": 1}
    assert device.run("install", str(packed(3, held=contents(WEIGHTS + 2)))).returncode == 0
    assert device.require_whole().startswith("3-")


def test_a_model_that_is_no_model_is_rolled_back(device: Device, packed: Pack) -> None:
    device.start()
    done = device.run("install", str(packed(1, held={**contents(), "model.onnx": b"no model"})))
    assert done.returncode == 10 and "ONNX Runtime cannot open it" in done.stderr.replace("\n", " ")
    assert device.require_whole() == "" and device.store.state.phase == "ROLLED_BACK"


def test_a_model_that_dies_in_the_live_process_alone_is_rolled_back(device: Device, packed: Pack) -> None:
    """It passes the probes before the switch, and is killed whenever it serves: the trial ends, the old one serves."""
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    good = device.require_whole()
    going = subprocess.Popen(
        device.command("install", str(packed(2, held=contents(WEIGHTS + 1)))), stderr=subprocess.PIPE
    )
    killed = 0
    while going.poll() is None:
        for pid in _workers_of(device.agent.pid, device.store.linked("current")):  # type: ignore[union-attr]
            if device.store.state.phase == "TRIAL" and device.store.linked("current") != good:
                os.kill(pid, signal.SIGSEGV)
                killed += 1
        time.sleep(0.01)
    assert going.stderr
    said = going.stderr.read().decode()
    going.stderr.close()
    assert killed >= 2 and going.returncode == 10 and "SIGSEGV" in said.replace("\n", " ")
    assert device.require_whole() == good and "SIGSEGV" in device.store.state.reason
    assert _serving(device) == good


def _workers_of(agent: int, release: str) -> list[int]:
    found = []
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode()
        except OSError:
            continue
        if "agrikd.device.worker" in words and release in words:
            found.append(int(child))
    return found


def _serving(device: Device, seconds: float = 20) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if serving := ask(device.store, 5, health=True)["serving"]:
                return str(serving)
        except (OSError, AgriKDError):
            pass
        time.sleep(0.05)
    raise AssertionError("nothing serves")


def test_a_worker_that_dies_is_started_again(device: Device, packed: Pack) -> None:
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    pid = ask(device.store, 5, health=True)["pid"]
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while (now := ask(device.store, 5, health=True))["pid"] in (pid, None):
        assert time.monotonic() < end, now
        time.sleep(0.05)
    assert now["serving"] == device.require_whole()


def test_without_an_agent_nothing_is_switched_and_it_goes_on_when_there_is_one(device: Device, packed: Pack) -> None:
    with Bundle(packed(1)) as opened, device.store.locked():
        _receive(device, opened)
    assert device.store.state.phase == "VERIFIED" and device.require_whole() == ""
    device.start()
    assert device.settled().phase == "COMMITTED" and device.require_whole().startswith("1-")


def _receive(device: Device, opened: Bundle, **how: Any) -> None:
    made = installer.accept(device.store, opened.envelope, device.store.root, **how)
    assert made is not None
    installer.begin(device.store, opened.envelope, made)
    for file, number in device.store.missing(made):
        device.store.take(made, file, number, opened.chunk(file, number))
    installer.finish(device.store, made)


@pytest.mark.parametrize("phase", ["VERIFIED", "TRIAL"])
def test_killed_in_a_phase_it_goes_on_after_the_restart(phase: str, device: Device, packed: Pack) -> None:
    """The agent and all its children die as soon as a phase is reached; the next start ends what was begun."""
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    with Bundle(packed(2, held=contents(WEIGHTS + 1))) as opened, device.store.locked():
        _receive(device, opened)
    end = time.monotonic() + 30
    while device.store.state.phase != phase:
        assert device.store.state.phase in ("VERIFIED", "PREPARED", "TRIAL") and time.monotonic() < end
    _kill_all(device)
    assert device.require_whole()
    device.start()
    assert device.settled().phase == "COMMITTED" and device.require_whole().startswith("2-")
    assert _serving(device).startswith("2-")


def test_killed_when_prepared_it_goes_on_after_the_restart(device: Device, packed: Pack) -> None:
    with Bundle(packed(1)) as opened, device.store.locked():
        _receive(device, opened)
        installer._prepare(device.store, QUICK)
    assert device.store.state.phase == "PREPARED" and device.require_whole() == ""
    device.start()
    assert device.settled().phase == "COMMITTED" and device.require_whole().startswith("1-")


def test_killed_in_every_trial_it_is_rolled_back(device: Device, packed: Pack) -> None:
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    good = device.require_whole()
    with Bundle(packed(2, held=contents(WEIGHTS + 1))) as opened, device.store.locked():
        _receive(device, opened)
    for attempt in (1, 2):
        end = time.monotonic() + 30
        while not ((state := device.store.state).phase == "TRIAL" and state.attempts == attempt):
            assert state.phase in ("VERIFIED", "PREPARED", "TRIAL") and time.monotonic() < end
        _kill_all(device)
        device.start()
    assert "interrupted 2 times in TRIAL" in device.settled().reason
    assert device.require_whole() == good and _serving(device) == good


def _kill_all(device: Device) -> None:
    agent = device.agent
    assert agent is not None and agent.stderr
    own = {int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()}
    agent.kill()
    for pid in own:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # each leads a group of its own
    agent.wait()
    agent.stderr.close()
    device.agent = None


def test_an_older_release_needs_a_permission(device: Device, packed: Pack, key: Key) -> None:
    device.start()
    assert device.run("install", str(packed(5))).returncode == 0
    older = packed(4, held=contents(WEIGHTS + 1))
    done = device.run("install", str(older))
    assert done.returncode == 9 and "has the seq 4, this device has had 5" in done.stderr.replace("\n", " ")
    with Bundle(older) as opened, device.store.locked():
        for wrong in ({"seq": 3}, {"floor": 4}, {"name": "bean"}):
            said = {"name": "leaf", "seq": 4, "floor": 5, **wrong}
            permission = dsse.sign(installer.PERMISSION, files.canonical(said), [key]).to_bytes()
            with pytest.raises(AgriKDError, match="the permission is for"):
                installer.accept(device.store, opened.envelope, device.store.root, permission)
        allowed = files.canonical({"name": "leaf", "seq": 4, "floor": 5})
        _receive(device, opened, permission=dsse.sign(installer.PERMISSION, allowed, [key]).to_bytes())
    assert device.settled().phase == "COMMITTED" and device.require_whole().startswith("4-")
    assert device.store.floors == {"leaf": 5}
    assert device.run("install", str(packed(3)), "--allow-downgrade").returncode == 0


def test_what_is_not_for_this_device_is_refused_with_all_reasons(device: Device, packed: Pack) -> None:
    path = packed(1, compatible=("aarch64-jetpack6",), min_agent="99.0", resize=1)
    done = device.run("install", str(path))
    said = done.stderr.replace("\n", " ")
    assert done.returncode == 2 and "is for aarch64-jetpack6" in said
    assert "needs agrikd 99.0" in said and "pixels of resize 1" in said
    assert device.store.state.phase == "IDLE" and not list(device.store.folder.glob("incoming/*"))


def test_a_revoked_key_and_a_stranger_are_refused(device: Device, packed: Pack, key: Key, tmp_path: Path) -> None:
    new = Key.new(tmp_path / "new.key")
    stranger = Key.new(tmp_path / "stranger.key")
    done = device.run("install", str(packed(1, keys=[stranger])))
    assert done.returncode == 9 and stranger.id in done.stderr
    second = trust.rotate(device.store.root, [key, new], [new.public], [key.id], 1)
    (tmp_path / "root-2").write_bytes(second.to_bytes())
    assert device.run("trust", str(tmp_path / "root-2")).returncode == 0
    assert device.run("install", str(packed(1))).returncode == 9
    device.start()
    assert device.run("install", str(packed(1, keys=[new]))).returncode == 0
    forged = trust.rotate(device.store.root, [new], [stranger.public], [], 1)
    for wrong in (replace(forged, signatures=()), dsse.sign(trust.KIND, forged.payload, [stranger])):
        (tmp_path / "root-3").write_bytes(wrong.to_bytes())
        assert device.run("trust", str(tmp_path / "root-3")).returncode == 9


def test_a_damaged_release_gives_way_and_is_repaired_by_the_next_install(device: Device, packed: Pack) -> None:
    device.start()
    first, second = packed(1), packed(2, held=contents(WEIGHTS + 1))
    for path in (first, second):
        assert device.run("install", str(path)).returncode == 0
    good, damaged = device.store.linked("previous"), device.store.linked("current")
    device.stop()
    model = device.store.path(damaged) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    device.start()
    assert _serving(device) == good and device.require_whole() == good
    assert device.run("install", str(second)).returncode == 0
    assert device.require_whole() == damaged


OTHER_CHOICES = {
    "gone": None,
    "empty": "",
    "garbled": '{"precision": "fp32", "file": "mod\ufffd',
    "a list": "[]",
    "of another file": '{"precision": "", "file": "card.md", "backend": "", "p50_ms": 1, "dropped": {}, "took_s": 1}',
}


def _choose(device: Device, name: str, text: str | None) -> None:
    path = device.store.path(name) / "choice.json"
    path.unlink() if text is None else path.write_text(text)


@pytest.mark.parametrize("text", OTHER_CHOICES.values(), ids=OTHER_CHOICES)
def test_a_release_whose_choice_is_lost_serves_again(text: str | None, device: Device, packed: Pack) -> None:
    """After a restart by itself, and by the same bundle as long as nobody restarts it; nothing travels."""
    device.start()
    path = packed(1)
    assert device.run("install", str(path)).returncode == 0
    release = device.require_whole()
    _choose(device, release, text)
    done = device.run("install", str(path))
    assert done.returncode == 0 and "serves already" not in done.stderr, done.stderr
    assert installer.choice_of(device.store, release).file == "model.onnx"
    assert "serves already" in device.run("install", str(path)).stderr
    device.stop()
    _choose(device, release, text)
    device.start()
    assert _serving(device) == release and device.settled().phase == "COMMITTED"
    assert installer.choice_of(device.store, release).file == "model.onnx"


def test_while_a_choice_is_made_anew_the_release_before_serves(device: Device, packed: Pack) -> None:
    device.start()
    for path in (packed(1), packed(2, held=contents(WEIGHTS + 1))):
        assert device.run("install", str(path)).returncode == 0
    older, newer = device.store.linked("previous"), device.store.linked("current")
    device.stop()
    _choose(device, newer, None)
    with device.store.locked():
        installer.recover(device.store)
    assert device.store.linked("current") == older and device.store.state.release == newer
    device.start()
    assert device.settled().phase == "COMMITTED" and _serving(device) == newer
    assert (device.store.linked("current"), device.store.linked("previous")) == (newer, older)


def test_a_choice_that_cannot_be_made_anew_is_tried_once(device: Device, packed: Pack) -> None:
    """A model that takes the board down with it would do so at each start."""
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    release = device.require_whole()
    device.stop()
    _choose(device, release, None)
    with device.store.locked():
        for _ in range(2):
            installer.recover(device.store)
            device.store.move("VERIFIED", attempts=device.store.state.attempts + 1)
        for _ in range(2):
            installer.recover(device.store)
            assert device.store.state.phase == "ROLLED_BACK" and device.store.linked("current") == release
    assert "interrupted 2 times in VERIFIED" in device.store.state.reason


def test_a_damaged_state_hides_nothing_that_serves_and_lowers_no_floor(device: Device, packed: Pack) -> None:
    device.start()
    assert device.run("install", str(packed(5))).returncode == 0
    for name in ("state.json", "floors.json"):
        path = device.store.folder / name
        path.write_text(path.read_text().replace("5", "1"))
    assert device.store.state.phase == "IDLE" and device.require_whole().startswith("5-")
    assert device.run("install", str(packed(4, held=contents(WEIGHTS + 1)))).returncode == 9


def test_two_at_once(device: Device, packed: Pack) -> None:
    with device.store.locked():
        done = device.run("install", str(packed(1)))
    assert done.returncode == 8 and "another installation is running" in done.stderr


def test_releases_that_are_not_needed_go(device: Device, packed: Pack) -> None:
    device.start()
    for seq in range(1, 5):
        assert device.run("install", str(packed(seq, held=contents(WEIGHTS + seq)))).returncode == 0
    kept = {path.name for path in (device.store.folder / "releases").iterdir()}
    assert kept == {device.store.linked("current"), device.store.linked("previous")}
    blobs = {path.name for path in (device.store.folder / "blobs").iterdir()}
    assert blobs == {one.sha256 for name in kept for one in device.store.release(name).files}
    assert not list((device.store.folder / "incoming").iterdir())


def test_a_bundle_with_the_chunk_of_another_is_refused(device: Device, packed: Pack) -> None:
    with Bundle(packed(1)) as one, Bundle(packed(2, held=contents(WEIGHTS + 1))) as two, device.store.locked():
        made = installer.accept(device.store, one.envelope, device.store.root)
        assert made is not None
        installer.begin(device.store, one.envelope, made)
        with pytest.raises(AgriKDError, match="is not what was signed"):
            device.store.take(made, 0, 0, two.chunk(0, 0))
        with pytest.raises(AgriKDError, match="a chunk that the disk lost"):
            installer.finish(device.store, made)
    assert device.require_whole() == "" and device.store.state.phase == "RECEIVING"
    assert bundle.CHUNK_BYTES == 65536
