"""A device's folder: who is trusted, what has been received, which release serves.

trust/root-N.dsse   the chain of roots            blobs/HASH        files that were verified
incoming/HASH       chunks of the release that    releases/ID/      release.dsse, links to its blobs, choice.json
                    is being received             current, previous links to a release
state.json          how far an installation is    lock, agent.sock, engines/, log.jsonl

Every file is written beside its place, synced and renamed; a link is switched by a rename. So whatever is cut off
leaves the old or the new, and a name that begins with a dot, which `recover` removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agrikd import files
from agrikd.bundle import File, Release
from agrikd.dsse import Envelope
from agrikd.errors import AgriKDError, DeviceError, InputError, Problem
from agrikd.trust import Root, successor

Phase = Literal["IDLE", "RECEIVING", "VERIFIED", "PREPARED", "TRIAL", "COMMITTED", "ROLLED_BACK"]
PENDING: tuple[Phase, ...] = ("VERIFIED", "PREPARED", "TRIAL")
"""What the agent goes on with by itself."""
_LOG_BYTES = 2**20


@dataclass(frozen=True)
class State:
    """How far an installation is.

    release: its id. back: the release that served before, for the way back. attempts: how often a trial was begun.
    reason: why it was rolled back. floors: by name, the highest seq that was ever committed.
    """

    phase: Phase = "IDLE"
    release: str = ""
    back: str = ""
    attempts: int = 0
    reason: str = ""
    floors: dict[str, int] = field(default_factory=dict)


class BusyError(DeviceError):
    """Another process changes the store."""


class Store:
    """The folder of a device; made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "agent.sock"
        self.engines = folder / "engines"
        for name in ("trust", "blobs", "incoming", "releases"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises `BusyError` while another process changes the store."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = f"{self.folder}: another installation is running\n    → wait until it is done"
                raise BusyError(said) from None
            yield

    # How far

    @property
    def state(self) -> State:
        """What state.json says; where it is damaged, that nothing is under way. What serves does not depend on it."""
        try:
            said = json.loads((self.folder / "state.json").read_text())
            state = State(**said["state"])
        except (OSError, ValueError, TypeError, KeyError):
            return State()
        return state if said["crc32"] == _crc(state) else State()

    def move(self, phase: Phase, **changes: Any) -> State:
        """Write a new state."""
        state = replace(self.state, phase=phase, **changes)
        files.write_json(self.folder / "state.json", {"state": asdict(state), "crc32": _crc(state)})
        self.log(phase, release=state.release, reason=state.reason)
        return state

    def log(self, what: str, **more: Any) -> None:
        """A line in log.jsonl, which never hinders an installation and is halved when it is full."""
        path = self.folder / "log.jsonl"
        with contextlib.suppress(OSError, AgriKDError):
            if path.exists() and path.stat().st_size > _LOG_BYTES:
                lines = path.read_bytes().splitlines(keepends=True)
                files.write_bytes(path, b"".join(lines[len(lines) // 2 :]))
            with path.open("a") as out:
                out.write(json.dumps({"what": what, **more}) + "\n")

    # Whom

    @property
    def root(self) -> Root:
        """The root in force; raises `InputError` where the device was never given one."""
        paths = sorted((self.folder / "trust").glob("root-*.dsse"), key=_number)
        if not paths:
            mend = "give it one: python -m agrikd.device trust root-1.json"
            raise InputError(Problem(str(self.folder), "trusts nobody", mend))
        return Root.read(paths[-1])

    def trust(self, envelope: bytes, where: str, dry_run: bool = False) -> Root:
        """Take a root: the first from whoever sets the device up, each later one only as the successor of the one in
        force; the one in force, and those before it, are passed over. Returns the root then in force."""
        said = Envelope.from_bytes(envelope, where)
        new = Root.from_envelope(said, where)
        if any((self.folder / "trust").glob("root-*.dsse")):
            if new.version <= self.root.version:
                return self.root
            successor(self.root, said, where)
        if not dry_run:
            files.write_bytes(self.folder / "trust" / f"root-{new.version}.dsse", envelope)
            self.log("trusts", version=new.version)
        return new

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
        path = self.path(name) / "release.dsse"
        return Release.from_payload(Envelope.from_bytes(files.read_bytes(path), str(path)).payload, str(path))

    def whole(self, name: str) -> bool:
        """Whether a release is there with all its bytes."""
        try:
            found = self.release(name)
        except InputError:
            return False
        return found.id == name and all(_is(self.path(name) / one.name, one.sha256) for one in found.files)

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
        """Make blobs of the chunks and a folder of links to them; a damaged chunk goes, and is an `InputError`."""
        for one in release.files:
            if not self._blob(one).exists():
                self._join(one)
        folder = self.path(release.id)
        with files.replacing_folder(folder) as temporary:
            for one in release.files:
                os.link(self._blob(one), temporary / one.name)
            (temporary / "release.dsse").write_bytes((self.folder / "incoming" / "release.dsse").read_bytes())
            files.sync(temporary / "release.dsse")
            files.sync(temporary)

    def clear_incoming(self, keep: Release | None = None) -> None:
        """Remove what was received, but for the chunks of one release that are what they were."""
        kept = {digest for one in keep.files for digest in one.chunks} if keep else set()
        for path in (self.folder / "incoming").iterdir():
            if path.name not in kept or not _is(path, path.name):
                path.unlink()

    def _join(self, one: File) -> None:
        chunks = [self.folder / "incoming" / digest for digest in one.chunks]
        with files.replacing(self._blob(one)) as temporary, temporary.open("wb") as out:
            for path in chunks:
                data = path.read_bytes() if path.exists() else b""
                if files.sha256(data) != path.name:
                    path.unlink(missing_ok=True)
                    raise InputError(Problem(one.name, "has a chunk that the disk lost", "send it again"))
                out.write(data)

    def _blob(self, one: File) -> Path:
        return self.folder / "blobs" / one.sha256

    # Room

    @property
    def size_bytes(self) -> int:
        """Of releases, blobs and chunks; a blob counts once, however many releases share it."""
        found = (path.stat() for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        return sum({one.st_ino: one.st_size for one in found}.values())

    def collect(self) -> list[str]:
        """Remove the releases that neither serve, nor did before, nor are being installed, and blobs of none."""
        kept = {self.linked("current"), self.linked("previous"), self.state.release, self.state.back}
        gone = [path.name for path in (self.folder / "releases").iterdir() if path.name not in kept]
        for name in gone:
            self._remove(name)
        for path in (self.folder / "blobs").iterdir():
            if path.stat().st_nlink == 1:
                path.unlink()
        return gone

    def drop_damaged(self, release: Release) -> None:
        """Remove what is there of a release but is not what was signed, so that it is received again."""
        for one in release.files:
            if self._blob(one).exists() and not _is(self._blob(one), one.sha256):
                self._blob(one).unlink()
        if self.path(release.id).exists() and not self.whole(release.id):
            self._remove(release.id)

    def _remove(self, name: str) -> None:
        """In one step for whoever looks: half a release never bears its name."""
        gone = self.path(f".{name}")
        self.path(name).rename(gone)
        shutil.rmtree(gone)

    def tidy(self) -> None:
        """Remove what a writer left that was killed."""
        for folder in (self.folder, *(self.folder / name for name in ("trust", "blobs", "incoming", "releases"))):
            for path in folder.glob(".*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in self.folder.glob("releases/*/.*"):
            path.unlink()


def _is(path: Path, sha256: str) -> bool:
    try:
        return files.sha256(path.read_bytes()) == sha256
    except OSError:
        return False


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _crc(state: State) -> int:
    return zlib.crc32(files.canonical(asdict(state)))
