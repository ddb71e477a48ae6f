"""A store that is damaged, unreadable, full or not one: what serves goes on serving."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from device_kit import QUICK, WEIGHTS, Device, Pack, contents
from fakes.installing import given, install
from needs import absent
from typer.testing import CliRunner

from agrikd import dsse, files, trust
from agrikd.bundle import Bundle
from agrikd.device import installer, support
from agrikd.device import store as stores
from agrikd.device.__main__ import app as commands
from agrikd.device.child import Child, Model
from agrikd.device.question import ask
from agrikd.device.store import Store
from agrikd.dsse import Envelope, Key
from agrikd.errors import AgriKDError, DeviceError, InputError, TrustError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, device: Device) -> Any:
    """Installs in this process, with the model's answers given."""

    def run(path: Path) -> str:
        for name in ("_tried", "_ask_agent"):
            monkeypatch.setattr(installer, name, given(path))
        install(device.store, path)
        return device.require_whole()

    return run


def serving(device: Device, seconds: float = 30) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ask(device.store, 5, health=True)["serving"]:
                return str(found)
        except (OSError, AgriKDError):
            pass
        time.sleep(0.05)
    raise AssertionError("nothing serves")


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    """`recover` removes what begins with a dot: nobody's home may be taken for a store."""
    (tmp_path / ".ssh").mkdir()
    with pytest.raises(InputError, match="holds other things"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".ssh"]


def test_a_disk_of_its_own_may_become_a_store(tmp_path: Path) -> None:
    for name in ("lost+found", "records"):
        (tmp_path / name).mkdir()
    (tmp_path / "agent.yaml").write_text("device: north\n")
    Store(tmp_path)
    assert (tmp_path / "lost+found").is_dir() and (tmp_path / "trust").is_dir()


def test_what_agent_yaml_names_may_lie_beside_it_before_there_is_a_store(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    with pytest.raises(InputError, match="holds other things"):
        Store(tmp_path)
    (tmp_path / "agent.yaml").write_text("hub: {url: 'https://lab.example', token_file: token}\n")
    Store(tmp_path)
    assert (tmp_path / "token").read_text() == "secret\n"


def test_only_what_a_writer_leaves_is_tidied(device: Device) -> None:
    held = device.store.folder
    for name in (".ssh", ".profile", ".state.json.x1", ".current", "blobs/.tmp", "releases/.gone"):
        (held / name).write_text("x")
    device.store.tidy()
    assert {path.name for path in held.glob(".*")} == {".ssh", ".profile"}
    assert not [*held.glob("blobs/.*"), *held.glob("releases/.*")]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"held": {}}', '{"held": {"phase": 1}, "crc32": 0}', '{"h": "\\ud800"}']
)
def test_any_damage_to_the_state_reads_as_nothing_under_way(device: Device, text: str) -> None:
    for name in ("state.json", "floors.json"):
        (device.store.folder / name).write_text(text)
    assert device.store.state.phase == "IDLE" and device.store.floors == {}


def test_every_flipped_byte_of_the_state_is_noticed(device: Device, packed: Pack, quick: Any) -> None:
    quick(packed(1))
    path = device.store.folder / "state.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert device.store.state.phase in ("IDLE", "COMMITTED")
    assert len(whole) > 100


def test_a_file_that_the_disk_does_not_give_just_now_is_no_reason_to_leave(
    device: Device, packed: Pack, quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = quick(packed(1))

    def failing(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(stores.files, "sha256_of", failing)
        installer.recover(device.store)
    assert device.store.linked("current") == good


def test_a_release_that_the_disk_does_not_describe_just_now_is_no_reason_to_take_no_other(
    device: Device, packed: Pack, quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, read = quick(packed(1)), Path.read_bytes

    def failing(path: Path) -> bytes:
        if path == device.store.path(good) / "release.dsse":
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert device.store.floors == {"leaf": 1}
    assert quick(packed(2, held=contents(WEIGHTS + 1))).startswith("2-") and device.store.linked("previous") == good


def test_a_damaged_release_with_none_before_it_serves_on_until_it_is_mended(
    device: Device, packed: Pack, quick: Any
) -> None:
    """A flipped byte in a text is no reason to serve nothing; the same bundle mends it in place."""
    path = packed(1)
    good = quick(path)
    model = device.store.path(good) / "answers.json"
    model.write_bytes(b"broken")
    installer.recover(device.store)
    assert device.store.linked("current") == good and not device.store.whole(good)
    assert quick(path) == good and device.store.whole(good)


def test_while_a_damaged_release_is_mended_the_one_before_it_serves(device: Device, packed: Pack, quick: Any) -> None:
    first, second = packed(1), packed(2, held=contents(WEIGHTS + 1))
    one, two = quick(first), quick(second)
    (device.store.path(two) / "model.onnx").write_bytes(b"broken")
    with Bundle(second) as opened:
        release = installer.accept(device.store, opened.envelope, device.store.root)
        assert release is not None
        installer.begin(device.store, opened.envelope, release)
    assert device.store.linked("current") == one and device.require_whole() == one
    assert quick(second) == two


def test_what_is_there_already_needs_no_room(device: Device, packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = {**contents(), "ballast.bin": os.urandom(1_000_000)}
    with Bundle(packed(1, held=ballast)) as opened:
        release = opened.release
        room = int(1.2 * release.size_bytes)
        monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: stores.shutil._ntuple_diskusage(0, 0, room))
        with pytest.raises(AgriKDError, match="is not free"):
            installer.begin(device.store, opened.envelope, release)
        for file, number in device.store.missing(release):
            device.store.take(release, file, number, opened.chunk(file, number))
        installer.begin(device.store, opened.envelope, release)
        assert device.store.missing(release) == []
    assert device.store.held_bytes(release) >= release.size_bytes - 1000


def test_the_store_has_a_quota(device: Device, packed: Pack, quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused releases go first; what serves and what did before never do."""
    kept = [quick(packed(seq, held=contents(WEIGHTS + seq))) for seq in (1, 2, 3)][1:]
    monkeypatch.setattr(installer, "QUOTA_BYTES", device.store.size_bytes + 100_000)
    (device.store.folder / "records").mkdir()
    (device.store.folder / "records" / "pictures").write_bytes(bytes(200_000))  # which have a quota of their own
    large = {**contents(), "ballast.bin": os.urandom(200_000)}
    with Bundle(packed(4, held=large)) as opened, pytest.raises(AgriKDError, match="at most"):
        installer.begin(device.store, opened.envelope, opened.release)
    assert sorted(path.name for path in (device.store.folder / "releases").iterdir()) == sorted(kept)
    assert quick(packed(5, held=contents(WEIGHTS + 5))).startswith("5-")


def test_all_chunks_that_a_lost_power_emptied_are_asked_for_again(device: Device, packed: Pack) -> None:
    with Bundle(packed(1)) as opened:
        release = opened.release
        installer.begin(device.store, opened.envelope, release)
        wanted = device.store.missing(release)
        for file, number in wanted:
            device.store.take(release, file, number, opened.chunk(file, number))
        for path in (device.store.folder / "incoming").iterdir():
            if path.name != "release.dsse":
                path.write_bytes(b"")
        installer.begin(device.store, opened.envelope, release)
        assert device.store.missing(release) == wanted


@pytest.fixture
def failing(device: Device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the disk fail to read a file's bytes, by whatever name, but not those that replace it."""
    held, sha256_of = list[Path](), files.sha256_of

    def read(path: Path) -> str:
        if any(path.exists() and path.samefile(one) for one in held):
            raise OSError(5, "Input/output error", str(path))
        return sha256_of(path)

    def fail(path: Path) -> None:
        held.append(device.store.folder.with_name(f"failing-{len(held)}"))
        held[-1].hardlink_to(path)  # so that its inode is given to no other file

    monkeypatch.setattr(stores.files, "sha256_of", read)
    return fail


@pytest.mark.parametrize("when", ["before the next conversation", "before it is used"])
def test_a_chunk_that_the_disk_cannot_read_back_is_asked_for_again(
    when: str, device: Device, packed: Pack, failing: Any
) -> None:
    store, incoming = device.store, device.store.folder / "incoming"
    with Bundle(packed(1)) as opened:
        release = opened.release
        installer.begin(store, opened.envelope, release)
        (file, number), *_ = wanted = store.missing(release)
        for one in wanted:
            store.take(release, *one, opened.chunk(*one))
        failing(incoming / release.files[file].chunks[number])
        if when == "before it is used":
            with pytest.raises(InputError, match="a chunk that the disk lost"):
                installer.finish(store, release)
        else:
            installer.begin(store, opened.envelope, release)
        assert store.missing(release) == [(file, number)]
        store.take(release, file, number, opened.chunk(file, number))
        installer.finish(store, release)
    assert store.whole(release.id) and store.state.phase == "VERIFIED"


def test_a_file_of_a_release_that_the_disk_cannot_read_back_is_received_and_mended(
    device: Device, packed: Pack, quick: Any, failing: Any
) -> None:
    """Of one that does not serve: its folder and its blob are the same bytes."""
    store, path = device.store, packed(2, held=contents(WEIGHTS + 1))
    good = quick(packed(1))
    with Bundle(path) as opened:
        release = opened.release
        installer.begin(store, opened.envelope, release)
        for one in store.missing(release):
            store.take(release, *one, opened.chunk(*one))
        installer.finish(store, release)
        installer.roll_back(store, "the disk")
        failing(store.path(release.id) / "model.onnx")
        assert store.linked("current") == good
        installer.begin(store, opened.envelope, release)
        assert store.missing(release) == [(0, 0)] and release.files[0].name == "model.onnx"
    assert quick(path) == release.id
    assert files.sha256_of(store.path(release.id) / "model.onnx") == release.files[0].sha256


def test_a_release_on_trial_is_not_said_to_serve(device: Device, packed: Pack) -> None:
    with Bundle(packed(1)) as opened:
        installer.begin(device.store, opened.envelope, opened.release)
        for file, number in device.store.missing(opened.release):
            device.store.take(opened.release, file, number, opened.chunk(file, number))
        installer.finish(device.store, opened.release)
        device.store.move("TRIAL")
        device.store.switch("current", opened.release.id)
        with pytest.raises(DeviceError, match="is being installed"):
            installer.accept(device.store, opened.envelope, device.store.root)


def test_what_no_code_foresaw_rolls_back_with_its_name(device: Device, packed: Pack) -> None:
    held = {**contents(), "answers.json": b"{}"}
    with Bundle(packed(1, held=held)) as opened:
        installer.begin(device.store, opened.envelope, opened.release)
        for file, number in device.store.missing(opened.release):
            device.store.take(opened.release, file, number, opened.chunk(file, number))
        installer.finish(device.store, opened.release)
    installer.advance(device.store, QUICK)
    assert device.store.state.phase == "ROLLED_BACK" and "KeyError" in device.store.state.reason


def test_a_root_that_the_disk_lost_may_be_given_again(device: Device, key: Key, tmp_path: Path) -> None:
    new = Key.new(tmp_path / "new")
    second = trust.rotate(device.store.root, [key, new], [new.public], [key.id], 1).to_bytes()
    device.store.trust(second, "root 2")
    path = device.store.folder / "trust" / "root-2.dsse"
    path.write_bytes(b"")
    with pytest.raises(InputError):
        _ = device.store.root
    with pytest.raises(TrustError):
        device.store.trust(dsse.sign(trust.KIND, Envelope.from_bytes(second, "x").payload, [key]).to_bytes(), "forged")
    assert device.store.trust(second, "root 2").version == 2 == device.store.root.version


def test_a_second_agent_is_refused(device: Device) -> None:
    device.start()
    end = time.monotonic() + 20
    while not device.store.socket.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    done = device.run("run")
    assert done.returncode == 8 and "another agent is running" in done.stderr
    assert ask(device.store, 5, health=True)["serving"] == ""


@pytest.fixture
def small_disk(device: Device) -> Iterator[Path]:
    """The device's store on a file system of its own, that may be filled or made read-only."""
    if os.geteuid() != 0:
        absent("only root mounts file systems")
    folder = device.store.folder
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    device.stop()
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_an_agent_starts_and_serves_on_a_disk_that_takes_nothing(
    how: str, small_disk: Path, device: Device, root: bytes, packed: Pack, quick: Any
) -> None:
    Store(small_disk).trust(root, "root")
    good = quick(packed(1))
    device.store.move("TRIAL", attempts=2, release=good, back=good)  # something that recover wants to end
    if how == "full":
        with (small_disk / "ballast").open("wb") as out, pytest.raises(OSError, match="No space"):
            out.write(bytes(5 * 2**20))
            out.flush()
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    device.start()
    assert device.agent is not None and device.agent.stderr
    for line in device.agent.stderr:
        if b"serves" in line:
            break
    assert device.agent.poll() is None and device.require_whole() == good
    if how == "full":
        assert serving(device) == good


def test_a_library_that_prints_does_not_break_the_answers(
    device: Device, packed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT's logger does, past Python, on the descriptor that the answers would go through."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('agrikd.device.worker' in word for word in sys.orig_argv):\n"
        "    import threading, time\n"
        "    def shout():\n        while True:\n            os.write(1, b'[TRT] [W] careful\\n'); time.sleep(0.01)\n"
        "    real = os.dup2\n"
        "    def dup2(*words):\n        done = real(*words)\n"
        "        threading.Thread(target=shout, daemon=True).start()\n        return done\n    os.dup2 = dup2\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    device.start()
    done = device.run("install", str(packed(1)))
    assert done.returncode == 0, done.stderr


def test_an_answer_that_came_too_late_is_no_sign_of_life(device: Device, packed: Pack, quick: Any) -> None:
    good = quick(packed(1))
    child = Child(Model(device.store.path(good), "model.onnx", device.store.engines), QUICK)
    try:
        child.wait()
        child._wire.say(probe=1)
        while child._heard.empty():
            time.sleep(0.01)
        os.kill(child.pid, 9)
        child._threads[0].join(10)
        with pytest.raises(DeviceError, match="SIGKILL"):
            for _ in range(20):
                child.watch()
    finally:
        child.stop()


def test_a_worker_dies_with_who_holds_it(device: Device, packed: Pack) -> None:
    device.start()
    assert device.run("install", str(packed(1))).returncode == 0
    pid = ask(device.store, 5, health=True)["pid"]
    device.stop(9)
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.05)


def test_many_signatures_cost_little_and_are_refused(key: Key, device: Device) -> None:
    made = dsse.sign("x", b"y" * 1_000_000, [key] * 17)
    with pytest.raises(InputError, match="more than 16 signatures"):
        Envelope.from_bytes(made.to_bytes(), "x")
    forged = dsse.sign("x", b"y", [key]).to_bytes().replace(b'"signatures":[', b'"signatures":[],"more":[')
    assert Envelope.from_bytes(forged, "x").signers(device.store.root.keys) == frozenset()


def test_who_holds_no_key_does_not_hold_the_lock(device: Device) -> None:
    """An offer whose envelope never comes: meanwhile an operator may install."""
    going = subprocess.Popen(device.command("serve", "--stdio"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert going.stdin and going.stdout
    offer = json.dumps({"sha256": "0" * 64}).encode()
    going.stdin.write(b"J" + len(offer).to_bytes(4, "big") + offer)
    going.stdin.flush()
    said = b""
    while b"want" not in said:
        said += os.read(going.stdout.fileno(), 1000)
    assert not device.store.busy
    going.kill()
    going.wait()
    for stream in (going.stdin, going.stdout):
        stream.close()
    assert threading.active_count() < 50


def test_looking_makes_nothing(tmp_path: Path) -> None:
    """A word for help, a mistyped folder, and what is refused."""
    own, refused = tmp_path / "mistyped", {}
    for words in (["run", "--help"], ["status", "--help"], ["status"], ["gc"], ["rollback"], ["trust", "gone.dsse"]):
        refused[" ".join(words)] = CliRunner().invoke(commands, ["--store", str(own), *words])
        assert not own.exists(), words
    assert [one.exit_code for one in refused.values()] == [0, 0, 2, 2, 2, 2]
    for name in ("status", "gc", "rollback"):
        assert "is no folder of a device" in refused[name].stderr, name
        assert f"--store {own} trust root-1.dsse" in refused[name].stderr, name


def test_the_status_of_a_blank_device_is_a_sentence(tmp_path: Path) -> None:
    said = support.status(Store(tmp_path / "blank"))
    assert support.summary(said).endswith(": no release serves; trusts nobody")
    shown = dict(support.lines(said))
    assert shown["agent"] == "does not answer" and "IDLE" not in shown.values()
    with pytest.raises(InputError, match=f"--store {tmp_path}/blank trust root-1.dsse"):
        _ = Store(tmp_path / "blank").root


def test_the_status_is_for_people_and_names_who_signed(device: Device, packed: Pack, quick: Any) -> None:
    release = quick(packed(1))
    (signer,) = device.store.root.keys
    said = support.status(device.store)
    assert said["signed"] == said["trusts"] == [signer] and support.summary(said).endswith(": leaf 2026.1 serves")
    shown = dict(
        support.lines({**said, "p50_ms": 16.722097003366798, "size_bytes": 4_200_000, "agent": {"fps": 0.123456}})
    )
    assert (shown["p50"], shown["size"], shown["agent fps"]) == ("16.7 ms", "4.2 MB", "0.123")
    assert shown["current"] == release and shown["signed"] == signer and not any("_" in name for name in shown)
    shutil.rmtree(device.store.folder / "trust")
    assert dict(support.lines(support.status(device.store)))["signed"] == "by no key that counts now"


def test_status_says_what_is_damaged(device: Device, packed: Pack, quick: Any) -> None:
    good = quick(packed(1, expires="2020-01-01"))
    assert json.loads(device.run("status", "--json").stdout)["expired"] is True
    (device.store.path(good) / "choice.json").unlink()
    said = json.loads(device.run("status", "--json").stdout)
    assert "choice.json" in said["damage"] and said["phase"] == "COMMITTED" and said["current"] == good
