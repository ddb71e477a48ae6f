"""A device's folder: who is trusted, what has been received, which release serves.

trust/root-N.dsse   the chain of roots            blobs/HASH        files that were verified
incoming/HASH       chunks of the release that    releases/ID/      release.dsse, links to its blobs, choice.json
                    is being received             current, previous links to a release
state.json          how far an installation is    floors.json         the highest seq by name
lock, agent.lock, agent.sock, engines/, log.jsonl

Every file is written beside its place, synced and renamed; a link is switched by a rename. So whatever is cut off
leaves the old or the new, and a name that begins with a dot, which `recover` removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from agrikd import files
from agrikd.bundle import File, Release
from agrikd.dsse import Envelope
from agrikd.errors import AgriKDError, DeviceError, InputError, Problem
from agrikd.trust import Root, successor

Phase = Literal["IDLE", "RECEIVING", "VERIFIED", "PREPARED", "TRIAL", "COMMITTED", "ROLLED_BACK"]
PENDING: tuple[Phase, ...] = ("VERIFIED", "PREPARED", "TRIAL")
"""What the agent goes on with by itself."""
_LOG_BYTES = 2**20
SETTINGS = "agent.yaml"
"""Whose folder is meant for a device, with what lies beside it: a token, a key, a video."""
OF_THE_APP = ("access.json", "access.key", ".streamlit")
"""What people may have put there for the app before there was a device."""
_OF_A_DISK = ("lost+found", "records")
"""Of one that is mounted there, and where another is mounted for the records."""


@dataclass(frozen=True)
class State:
    """How far an installation is.

    release: its id. back: the release that served before, for the way back. attempts: how often a trial was begun.
    reason: why it was rolled back.
    """

    phase: Phase = "IDLE"
    release: str = ""
    back: str = ""
    attempts: int = 0
    reason: str = ""


class BusyError(DeviceError):
    """Another process changes the store."""


class Store:
    """The folder of a device; made where it is not there."""

    def __init__(self, folder: Path) -> None:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if names - {*OF_THE_APP, *_OF_A_DISK} and not names & {"trust", SETTINGS}:
            raise InputError(Problem(str(folder), "holds other things than a device's store", "name an empty folder"))
        self.folder = folder
        self.socket = folder / "agent.sock"
        self.engines = folder / "engines"
        for name in ("trust", "blobs", "incoming", "releases"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, name: str = "lock", by: str = "installation", wait_s: float = 2.0) -> Iterator[None]:
        """Raises `BusyError` where another process changes the store, or is its agent, for longer than `wait_s`: a look
        whether it is free holds it for a moment too."""
        end = time.monotonic() + wait_s
        with (self.folder / name).open("w") as lock:
            while not _taken(lock):
                if time.monotonic() >= end:
                    raise BusyError(f"{self.folder}: another {by} is running\n    → wait until it is done")
                time.sleep(0.05)
            yield

    @property
    def busy(self) -> bool:
        """Whether a process changes the store just now."""
        try:
            with self.locked(wait_s=0):
                return False
        except BusyError:
            return True

    # How far

    @property
    def state(self) -> State:
        """What state.json says; where it is damaged, that nothing is under way. What serves does not depend on it."""
        try:
            said = _checked(self.folder / "state.json")
            return State(**said) if said else State()
        except TypeError:
            return State()

    @property
    def floors(self) -> dict[str, int]:
        """By name, the highest seq that was ever committed, as far as floors.json and what serves can tell."""
        known: dict[str, int] = dict(_checked(self.folder / "floors.json") or {})
        for name in filter(None, map(self.linked, ("current", "previous"))):
            with contextlib.suppress(OSError):  # or a disk that does not give it would end all installations
                if self.whole(name):
                    one = self.release(name)
                    known[one.name] = max(one.seq, known.get(one.name, 0))
        return known

    def raise_floor(self, release: Release) -> None:
        """No older release of this name from now on."""
        known = self.floors
        _write_checked(
            self.folder / "floors.json", {**known, release.name: max(release.seq, known.get(release.name, 0))}
        )

    def move(self, phase: Phase, **changes: Any) -> State:
        """Write a new state."""
        state = replace(self.state, phase=phase, **changes)
        _write_checked(self.folder / "state.json", asdict(state))
        self.log(phase, release=state.release, attempts=state.attempts, reason=state.reason)
        return state

    def log(self, what: str, **more: Any) -> None:
        """A line in log.jsonl, with this machine's time, which decides nothing. It never hinders an installation and is
        halved when it is full."""
        path = self.folder / "log.jsonl"
        with contextlib.suppress(OSError, AgriKDError):
            if path.exists() and path.stat().st_size > _LOG_BYTES:
                lines = path.read_bytes().splitlines(keepends=True)
                files.write_bytes(path, b"".join(lines[len(lines) // 2 :]))
            with path.open("a") as out:
                out.write(json.dumps({"t": round(time.time()), "what": what, **more}) + "\n")

    # Whom

    @property
    def root(self) -> Root:
        """The root in force; raises `InputError` where the device was never given one, or its disk lost it."""
        if not (paths := self._roots()):
            mend = f"give it one, there: python -m agrikd.device --store {self.folder} trust root-1.dsse"
            raise InputError(Problem(str(self.folder), "trusts nobody", mend))
        return Root.read(paths[-1])

    def trust(self, envelope: bytes, where: str) -> Root:
        """Take a root: the first from whoever sets the device up, each later one only as the successor of the one in
        force; those that are no newer are passed over. One that the disk lost may be given again. Returns the root then
        in force."""
        said = Envelope.from_bytes(envelope, where)
        new, paths = Root.from_envelope(said, where), self._roots()
        if paths and not _readable(paths[-1]):
            paths.pop()
        if paths:
            old = Root.read(paths[-1])
            new = successor(old, said, where)
            if new == old:
                return old
        files.write_bytes(self.folder / "trust" / f"root-{new.version}.dsse", envelope)
        self.log("trusts", version=new.version)
        return new

    def _roots(self) -> list[Path]:
        return sorted((self.folder / "trust").glob("root-*.dsse"), key=_number)

    # What

    def linked(self, name: str) -> str:
        """The id that `current` or `previous` points to; empty where there is none."""
        try:
            return (self.folder / name).readlink().name
        except OSError:
            return ""

    def switch(self, name: str, release: str) -> None:
        """Point `current` or `previous` to a release, or to none."""
        link, temporary = self.folder / name, self.folder / f".{name}"
        with files.storage_errors(link):
            temporary.unlink(missing_ok=True)
            if release:
                temporary.symlink_to(Path("releases") / release)
                temporary.replace(link)
            else:
                link.unlink(missing_ok=True)
            files.sync(self.folder)

    def path(self, release: str) -> Path:
        return self.folder / "releases" / release

    def release(self, name: str) -> Release:
        """What a release's folder says of itself. It was held against its signature when it came in; the keys may have
        changed since."""
        return Release.from_payload(self.envelope(name).payload, str(self.path(name)))

    def envelope(self, name: str) -> Envelope:
        """Of a release that is here; raises `InputError` where it is not."""
        path = self.path(name) / "release.dsse"
        try:
            return Envelope.from_bytes(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(Problem(str(path), "is not there", "flash the release again")) from None

    def whole(self, name: str) -> bool:
        """Whether a release is there with all its bytes. What the disk does not give just now is no reason to leave one
        that served well, and counts as there."""
        try:
            found = self.release(name)
        except InputError:
            return False
        except OSError:
            return True
        return found.id == name and all(_is(self.path(name) / one.name, one.sha256, True) for one in found.files)

    # Chunks and blobs

    def missing(self, release: Release) -> list[tuple[int, int]]:
        """(file, chunk) of what must still come, once each, in the release's order."""
        known: set[str] = {path.name for path in (self.folder / "incoming").iterdir()}
        wanted = []
        for file, one in enumerate(release.files):
            if self._blob(one).exists():
                continue
            for number, digest in enumerate(one.chunks):
                if digest not in known:
                    wanted.append((file, number))
                    known.add(digest)
        return wanted

    def take(self, release: Release, file: int, number: int, data: bytes) -> None:
        """Keep a chunk; raises `InputError` unless it is the one that was signed."""
        wanted = release.files[file].chunks[number]
        if files.sha256(data) != wanted:
            where = f"{release.files[file].name}, chunk {number}"
            raise InputError(Problem(where, "is not what was signed", "copy the bundle again"))
        path = self.folder / "incoming" / wanted
        with files.storage_errors(path):
            temporary = path.with_name(f".{wanted}")
            temporary.write_bytes(data)  # not synced: a chunk's name is its hash, by which it is judged when it is used
            temporary.replace(path)

    def assemble(self, release: Release) -> None:
        """Make blobs of the chunks and a folder of links to them; of a folder that is there, mend what is damaged or
        cannot be read.

        Raises `InputError` where chunks are damaged, and removes these.
        """
        for one in release.files:
            if not self._blob(one).exists():
                self._join(one)
        envelope, folder = (self.folder / "incoming" / "release.dsse").read_bytes(), self.path(release.id)
        if folder.exists():
            for one in release.files:
                if not _is(folder / one.name, one.sha256):
                    self._mend(one, folder)
            files.write_bytes(folder / "release.dsse", envelope)
            return
        with files.replacing_folder(folder) as temporary:
            for one in release.files:
                os.link(self._blob(one), temporary / one.name)
            (temporary / "release.dsse").write_bytes(envelope)
            files.sync(temporary / "release.dsse")
            files.sync(temporary)

    def _mend(self, one: File, folder: Path) -> None:
        temporary = folder / f".{one.name}"
        temporary.unlink(missing_ok=True)
        os.link(self._blob(one), temporary)
        temporary.replace(folder / one.name)
        files.sync(folder)

    def clear_incoming(self, keep: Release | None = None) -> None:
        """Remove what was received, but for the chunks of one release that can be read and are what they were."""
        kept = {digest for one in keep.files for digest in one.chunks} if keep else set()
        for path in (self.folder / "incoming").iterdir():
            if path.name not in kept or not _is(path, path.name):
                path.unlink()

    def _join(self, one: File) -> None:
        chunks = [self.folder / "incoming" / digest for digest in one.chunks]
        if lost := [path for path in chunks if not _is(path, path.name)]:
            for path in lost:
                path.unlink(missing_ok=True)
            raise InputError(Problem(one.name, "has a chunk that the disk lost", "send it again"))
        with files.replacing(self._blob(one)) as temporary, temporary.open("wb") as out:
            for path in chunks:
                out.write(path.read_bytes())

    def _blob(self, one: File) -> Path:
        return self.folder / "blobs" / one.sha256

    # Room

    @property
    def size_bytes(self) -> int:
        """Of releases, blobs, chunks and engines, not of records; a blob that releases share counts once."""
        own = (self.folder / name for name in ("blobs", "incoming", "releases", "engines"))
        paths = (path for folder in own for path in folder.rglob("*"))
        found = (path.stat() for path in paths if path.is_file() and not path.is_symlink())
        return sum({one.st_ino: one.st_size for one in found}.values())

    def collect(self) -> list[str]:
        """Remove the releases that neither serve, nor did before, nor are being installed, and blobs of none."""
        kept = {self.linked("current"), self.linked("previous"), self.state.release, self.state.back}
        gone = [path.name for path in (self.folder / "releases").iterdir() if path.name not in kept]
        for name in gone:
            self._remove(name)
        for path in (self.folder / "blobs").iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_nlink == 1:
                    path.unlink()
        return gone

    def drop_damaged(self, release: Release) -> None:
        """Remove the blobs of a release that are not what was signed, or cannot be read, so that they are received
        again. A release that serves keeps what it has until then."""
        for one in release.files:
            if not _is(self._blob(one), one.sha256):
                self._blob(one).unlink(missing_ok=True)

    def held_bytes(self, release: Release) -> int:
        """How much of a release is there, as blobs or as chunks."""
        chunks = {path.name: path.stat().st_size for path in (self.folder / "incoming").iterdir()}
        return sum(
            one.size_bytes if self._blob(one).exists() else sum(chunks.get(digest, 0) for digest in one.chunks)
            for one in release.files
        )

    def _remove(self, name: str) -> None:
        """In one step for whoever looks: half a release never bears its name."""
        gone = self.path(f".{name}")
        with contextlib.suppress(OSError):
            self.path(name).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a writer left that was killed; what cannot be removed stays."""
        own = [self.folder / name for name in ("trust", "blobs", "incoming", "releases")]
        left = [path for folder in own for path in folder.glob(".*")]
        left += self.folder.glob("releases/*/.*")
        for name in (".current", ".previous", ".state.json.*", ".floors.json.*", ".log.jsonl.*"):
            left += self.folder.glob(name)
        for path in left:
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, sha256: str, unread: bool = False) -> bool:
    """Whether a file has these bytes; unread: what is said of one that the disk does not give just now."""
    try:
        return files.sha256_of(path) == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return unread


def _readable(path: Path) -> bool:
    try:
        Root.read(path)
    except InputError:
        return False
    return True


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _checked(path: Path) -> dict[str, Any] | None:
    """What `_write_checked` wrote; None where nothing did, or where it is damaged."""
    try:
        said = json.loads(path.read_bytes())
        held: dict[str, Any] = said["held"]
        return held if said["crc32"] == zlib.crc32(files.canonical(held)) else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _write_checked(path: Path, held: dict[str, Any]) -> None:
    files.write_json(path, {"held": held, "crc32": zlib.crc32(files.canonical(held))})
