"""What a process did to a folder, as strace saw it, and what a disk may hold of that after the power is gone.

The model: the bytes of a file are safe after its own fsync, a name after the fsync of its folder; whatever is not safe
may be there, be missing, be empty or be half there, each by itself.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

WRITES = ("write", "fsync", "rename", "link", "symlink", "unlink", "unlinkat", "rmdir", "mkdir", "chmod")
_CALL = re.compile(r"(\w+)\((.*)\) = (\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OPEN_FILE = re.compile(r"^(\d+|AT_FDCWD)<([^>]*)>")


@dataclass(frozen=True)
class Call:
    """A system call that succeeded. paths: absolute; place: the how-manieth of its name in the whole process."""

    name: str
    paths: tuple[Path, ...]
    data: bytes
    flags: str
    place: int


def calls(command: Sequence[str | Path], folder: Path, log: Path) -> list[Call]:
    """Run a command to its end; all that it did below `folder`."""
    traced = ["strace", "-y", "-xx", "-s", "1000000", "-o", log, "-e", f"trace=openat,{','.join(WRITES)}", *command]
    subprocess.run(traced, check=True, capture_output=True, timeout=120)
    seen: dict[str, int] = {}
    found = []
    for line in log.read_text().splitlines():
        name = line.partition("(")[0]
        seen[name] = seen.get(name, 0) + 1
        if (made := _CALL.match(line)) and (call := _call(made, seen[name])) and _below(call, folder):
            found.append(call)
    return found


def _call(made: re.Match[str], place: int) -> Call | None:
    name, words = made.group(1), made.group(2)
    texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(words)]
    opened = _OPEN_FILE.match(words)
    at = Path(_plain(opened.group(2))) if opened else Path("/")
    if name in ("write", "fsync"):
        return Call(name, (at,), texts[0] if texts else b"", "", place)
    if name == "symlink":
        return Call(name, (Path(os.fsdecode(texts[1])),), texts[0], "", place)
    return Call(name, tuple(at / os.fsdecode(text) for text in texts), b"", words, place)


def _plain(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text.replace("\\x", ""))) if text.startswith("\\x") else text


def _below(call: Call, folder: Path) -> bool:
    return bool(call.paths) and call.paths[-1].is_relative_to(folder) and call.paths[-1] != folder / "lock"


@dataclass(eq=False)
class Node:
    """A file, a link or a folder; `safe` is what an fsync has made so."""

    data: bytes = b""
    safe: bytes | None = None
    target: str = ""
    entries: dict[str, Node] | None = None
    safe_entries: dict[str, Node] = field(default_factory=dict)


class Disk:
    """A folder in both of its lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, seen = folder, dict[int, Node]()
        self.root = self._read(folder, seen)

    def _read(self, path: Path, seen: dict[int, Node]) -> Node:
        if path.is_symlink():
            return Node(target=str(path.readlink()))
        if path.is_dir():
            entries = {
                one.name: self._read(one, seen) for one in path.iterdir() if one.is_symlink() or not one.is_socket()
            }
            return Node(entries=entries, safe_entries=dict(entries))
        number = path.stat().st_ino
        if number not in seen:
            data = path.read_bytes()
            seen[number] = Node(data, data)
        return seen[number]

    def _folder(self, path: Path) -> dict[str, Node]:
        node = self.root
        for part in path.relative_to(self.folder).parts:
            assert node.entries is not None
            node = node.entries[part]
        assert node.entries is not None
        return node.entries

    def _node(self, path: Path) -> Node:
        return self.root if path == self.folder else self._folder(path.parent)[path.name]

    def apply(self, call: Call) -> None:
        """Do what the call did."""
        path = call.paths[-1]
        if call.name == "write":
            self._node(path).data += call.data
        elif call.name == "fsync":
            node = self._node(path)
            node.safe = node.data
            node.safe_entries = dict(node.entries or {})
        elif call.name == "openat":
            self._open(path, call.flags)
        elif call.name in ("rename", "link"):
            self._folder(path.parent)[path.name] = self._node(call.paths[0])
            if call.name == "rename":
                del self._folder(call.paths[0].parent)[call.paths[0].name]
        elif call.name == "symlink":
            self._folder(path.parent)[path.name] = Node(target=os.fsdecode(call.data))
        elif call.name == "mkdir":
            self._folder(path.parent)[path.name] = Node(entries={})
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            del self._folder(path.parent)[path.name]

    def _open(self, path: Path, flags: str) -> None:
        if "O_CREAT" not in flags:
            return
        node = self._folder(path.parent).setdefault(path.name, Node())
        if "O_TRUNC" in flags:
            node.data = b""

    def images(self, rng: Random, mixed: int) -> Iterator[tuple[str, Image]]:
        """What may be found after a loss of power now: the extremes, and `mixed` in which chance says what arrived."""
        yield "nothing that was not safe", Image(lambda: False, lambda node: node.safe)
        yield "all names, no bytes", Image(lambda: True, lambda node: node.safe if node.safe == node.data else b"")
        yield "all names, half the bytes", Image(lambda: True, _half)
        yield "everything", Image(lambda: True, lambda node: node.data)
        for number in range(mixed):
            own = Random(rng.random())
            yield f"mixed {number}", Image(lambda own=own: own.random() < 0.5, lambda node, own=own: _any(node, own))


def _half(node: Node) -> bytes:
    return node.data if node.safe == node.data else node.data[: len(node.data) // 2]


def _any(node: Node, rng: Random) -> bytes | None:
    return rng.choice([node.safe, node.data, _half(node), b""]) if node.safe != node.data else node.data


class Image:
    """One outcome; `write` makes it a folder."""

    def __init__(self, arrived, bytes_of) -> None:  # type: ignore[no-untyped-def]
        self._arrived, self._bytes_of = arrived, bytes_of

    def write(self, disk: Disk, folder: Path) -> None:
        folder.mkdir()
        self._write(disk.root, folder, {})

    def _write(self, node: Node, folder: Path, made: dict[int, Path]) -> None:
        assert node.entries is not None
        for name in sorted({*node.entries, *node.safe_entries}):
            now, safe = node.entries.get(name), node.safe_entries.get(name)
            found = now if now is safe or self._arrived() else safe
            if found is not None:
                self._put(found, folder / name, made)

    def _put(self, node: Node, path: Path, made: dict[int, Path]) -> None:
        if node.target:
            path.symlink_to(node.target)
        elif node.entries is not None:
            if id(node) not in made:  # a folder that chance left under two names is under one
                made[id(node)] = path
                path.mkdir()
                self._write(node, path, made)
        elif id(node) in made:
            path.hardlink_to(made[id(node)])
        else:
            data = self._bytes_of(node)
            path.write_bytes(data or b"")
            made[id(node)] = path
