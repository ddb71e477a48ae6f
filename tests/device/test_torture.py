"""What serves is complete and verified, the old or the new, whatever interrupts an installation and whenever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from crashes import WRITES, Call, Disk, calls
from device_kit import WEIGHTS, contents, release
from fakes.installing import given, install
from needs import needed

from agrikd import bundle
from agrikd.device import installer
from agrikd.device.store import Store
from agrikd.dsse import Key
from agrikd.errors import AgriKDError

LENGTH = int(os.environ.get("AGRIKD_TORTURE", "1"))
"""1 looks at a hundred places of each kind, more at all of them."""
PROGRAM = [sys.executable, "-B", str(Path(__file__).parents[1] / "fakes" / "installing.py")]


class Case:
    """A store on which release 2 serves, after 1, a third release, and what installing it does: 1 is removed then."""

    def __init__(self, folder: Path, key: Key, root: bytes) -> None:
        self.folder, self.before = folder, folder / "before"
        first, second, self.third = (self._bundle(key, seq) for seq in (1, 2, 3))
        store = Store(self.before)
        store.trust(root, "root")
        for path in (first, second):
            self._run(path, self.before)
        self.old = store.linked("current")
        with bundle.Bundle(self.third) as opened:
            self.new = opened.release.id
        assert self.old and store.whole(self.old)
        at = self.fresh("counted")
        self.calls = calls([*PROGRAM, at, self.third], at, folder / "log")
        assert Store(at).linked("current") == self.new

    def _bundle(self, key: Key, seq: int) -> Path:
        held, path = contents(WEIGHTS + seq), self.folder / f"{seq}.akb"
        held["ballast.bin"] = bytes(range(256)) * 300
        bundle.write(path, release(held, seq), held, [key])
        return path

    def _run(self, path: Path, store: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *PROGRAM, store, path], capture_output=True, text=True, timeout=120, check=False
        )

    def fresh(self, name: str) -> Path:
        """A copy of the store on which the old release serves."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-a", self.before, folder], check=True)
        return folder

    def injected(self, call: Call, what: str) -> tuple[Store, subprocess.CompletedProcess[str]]:
        """The second installation, with one of its system calls failing or being its last."""
        folder = self.fresh("injected")
        rule = f"inject={call.name}:{what}:when={call.place}"
        done = self._run(
            self.third, folder, "strace", "-o", str(self.folder / "log"), "-e", f"trace={call.name}", "-e", rule
        )
        return Store(folder), done

    def require_good(self, store: Store, when: str) -> None:
        """The old or the new serves, whole; after another installation, the new."""
        installer.recover(store)
        serves = store.linked("current")
        assert serves in (self.old, self.new) and store.whole(serves), f"{when}: {serves} serves, {store.state}"
        install(store, self.third)
        assert store.linked("current") == self.new and store.whole(self.new), f"{when}, then again: {store.state}"
        assert store.state.phase in ("COMMITTED", "IDLE") and store.floors == {"leaf": 3}
        assert not list(store.folder.rglob(".*")), f"{when}: something was left"


@pytest.fixture(scope="module")
def case(key: Key, root: bytes) -> Iterator[Case]:
    needed("strace", "strace")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="akt-", dir=memory))
    patch = pytest.MonkeyPatch()
    made = Case(folder, key, root)
    for name in ("_tried", "_ask_agent"):
        patch.setattr(installer, name, given(made.third))
    yield made
    patch.undo()
    shutil.rmtree(folder)


def chosen(found: list[Call], count: int) -> list[Call]:
    """All of them at length, else `count` that stand evenly among them, with each kind among these."""
    if LENGTH > 1 or len(found) <= count:
        return found
    kinds = {call.name: call for call in found}
    return [*kinds.values(), *(found[len(found) * n // (count - len(kinds))] for n in range(count - len(kinds)))]


def test_what_is_interrupted_covers_every_kind(case: Case) -> None:
    """So that none of the sweeps below runs over nothing."""
    seen = Counter(call.name for call in case.calls if call.name in WRITES)
    assert set(seen) >= {"write", "fsync", "rename", "link", "symlink", "unlink", "mkdir"} and sum(seen.values()) >= 100


@pytest.mark.torture
def test_killed_at_any_write(case: Case) -> None:
    swept = chosen([call for call in case.calls if call.name in WRITES], 100)
    for call in swept:
        store, done = case.injected(call, "signal=SIGKILL")
        assert done.returncode == -9, f"{call}: {done.stderr}"
        case.require_good(store, f"killed at {call.name} {call.place}")
    assert len(swept) >= 100


@pytest.mark.torture
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_is_full_or_broken(error: str, case: Case) -> None:
    """The old serves on, or the new where the failure came after the switch; a message, no traceback."""
    swept = chosen(
        [call for call in case.calls if call.name in ("write", "fsync", "rename", "link", "mkdir", "symlink")], 50
    )
    for call in swept:
        store, done = case.injected(call, f"error={error}")
        serves = store.linked("current")
        assert serves in (case.old, case.new) and store.whole(serves), f"{error} at {call.name} {call.place}"
        assert "Traceback" not in done.stderr, f"{error} at {call.name} {call.place} {call.paths}: {done.stderr}"
        case.require_good(store, f"{error} at {call.name} {call.place}")
    assert len(swept) >= 50


@pytest.mark.torture
def test_the_power_goes(case: Case) -> None:
    """Every state of the disk that the model allows after a call; the safe names and bytes are those of the fsyncs."""
    rng, disk, seen = Random(0), Disk(case.fresh("counted")), 0
    places = {id(call) for call in chosen(case.calls, 110)}
    for call in case.calls:
        disk.apply(call)
        if id(call) not in places:
            continue
        for name, image in disk.images(rng, LENGTH):
            folder = case.folder / "image"
            image.write(disk, folder)
            case.require_good(Store(folder), f"power lost after {call.name} {call.paths[-1].name}, {name}")
            shutil.rmtree(folder)
            seen += 1
    assert seen >= 5 * 100


def test_a_full_disk_says_so_before_a_byte_is_taken(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(case.fresh("full"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))  # type: ignore[attr-defined]
    with pytest.raises(AgriKDError, match="so much is not free"):
        install(store, case.third)
    assert store.linked("current") == case.old and not list((store.folder / "incoming").iterdir())
