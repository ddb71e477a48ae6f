"""Values by photo on disk, in files that only grow: a killed writer leaves nothing half-true, two writers share them.

A store is a folder of four files. key.json: what the values depend on, for a person to read. values.f16: slots of
one size, a photo's values each. rows: a record a slot, in the same order, that says whose the slot is and the
crc32 of its bytes. lock: held by whoever writes or reads the records. A record is written when its slot is safe
on disk, so what a killed writer left behind the last record is nobody's, and the next writer's slot goes there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import console, files
from agrikd.errors import InputError, StorageError

_RECORD = struct.Struct("<32sII")
"""Whose the slot is (a sha256); the crc32 of the slot's bytes; the crc32 of the 36 bytes before."""
_LONGEST_SAID = 40


class RowStore:
    """float16 arrays of one `shape`, each under a name of 32 bytes, in `folder` (made by `open_store`).

    values: [slots, *shape], a read-only map of the whole slots, damaged or not (see `holds`). unreadable: slots
    whose record is damaged, so that nobody knows whose they are; the next writer strikes them out. In memory stand
    some 200 bytes a slot.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.shape, self.slot_bytes = shape, 2 * math.prod(shape)
        self.path, self.rows_path, self._lock = folder / "values.f16", folder / "rows", folder / "lock"
        self.unreadable: set[int] = set()
        self._slots: dict[bytes, int] = {}
        self._crcs: list[int] = []
        self.refresh()

    def refresh(self) -> None:
        """See what other writers have added."""
        with self._locked(fcntl.LOCK_SH):
            self._read()
        self._map()

    def find(self, name: bytes) -> int | None:
        """The slot of that name; a later one counts more than an earlier one, which was damaged."""
        return self._slots.get(name)

    def holds(self, name: bytes) -> bool:
        """Whether there is a slot of that name, with the bytes that were written."""
        slot = self._slots.get(name)
        if slot is None or slot >= len(self.values):
            return False
        return zlib.crc32(self.values[slot].tobytes()) == self._crcs[slot]

    def append(self, found: Mapping[bytes, NDArray[np.float16]]) -> int:
        """Add a slot for each name of which there is no intact one, by another writer; returns how many were added."""
        with files.storage_errors(self.path), self._locked(fcntl.LOCK_EX):
            self._read()
            self._map()
            new = {name: values.tobytes() for name, values in found.items() if not self.holds(name)}
            if not new:
                return 0
            first = len(self._crcs)
            records = b"".join(_record(name, data) for name, data in new.items())
            struck_out = [(lost * _RECORD.size, bytes(_RECORD.size)) for lost in self.unreadable]
            _write(self.path, [(first * self.slot_bytes, b"".join(new.values()))])
            _write(self.rows_path, [*struck_out, (first * _RECORD.size, records)])
            self.unreadable.clear()
            self._read()
        return len(new)

    def require_room(self, slots: int) -> None:
        """Raise `StorageError` before any work is done for values that the disk cannot hold."""
        with files.storage_errors(self.path):
            if self.slot_bytes > shutil.disk_usage(self.path).total:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            files.require_room(self.path, slots * (self.slot_bytes + _RECORD.size))

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """The system lets go of the lock of a process that was killed."""
        with self._lock.open("rb") as handle:
            fcntl.flock(handle, how)
            yield

    def _read(self) -> None:
        """Under the lock: the records that were not read yet. A last one that is not whole is none."""
        whole = self.rows_path.stat().st_size // _RECORD.size
        if whole < len(self._crcs):
            self._slots, self._crcs, self.unreadable = {}, [], set()
        with self.rows_path.open("rb") as file:
            file.seek(len(self._crcs) * _RECORD.size)
            data = file.read((whole - len(self._crcs)) * _RECORD.size)
        for at in range(0, len(data), _RECORD.size):
            record = data[at : at + _RECORD.size]
            name, crc, own = _RECORD.unpack(record)
            slot = len(self._crcs)
            self._crcs.append(crc)
            if zlib.crc32(record[:-4]) == own:
                self._slots[name] = slot
            elif any(record):
                self.unreadable.add(slot)

    def _map(self) -> None:
        slots = min(self.path.stat().st_size // self.slot_bytes, len(self._crcs))
        if slots:
            self.values: NDArray[np.float16] = np.memmap(self.path, np.float16, "r", shape=(slots, *self.shape))
        else:
            self.values = np.empty((0, *self.shape), np.float16)


def open_store(room: Path, key: Mapping[str, Any], shape: tuple[int, int], what: str) -> RowStore:
    """The store of `key` in the folder `room`, made where there is none; it says which part of the key made it new.

    key: what the values depend on, part by part, in words a person knows. what: the name of the values in what is
    said. Raises `StorageError` where the folder says that it is the store of another key.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(key))
    folder = room / files.digest(wanted)[:32]
    if not folder.exists():
        if near := _nearest(room, wanted):
            one = len(near) == 1 and not near[0].partition(" (")[0].endswith("s")
            differ = "differs from that" if one else "differ from those"
            console.say(f"{what}: the {' and '.join(near)} {differ} of an earlier store; computed anew")
        with files.replacing_folder(folder) as temporary:
            files.write_json(temporary / "key.json", wanted)
            for name in ("values.f16", "rows", "lock"):
                (temporary / name).touch()
    _require_key(folder, wanted)
    with files.storage_errors(folder):
        for name in ("values.f16", "rows", "lock"):
            if not (folder / name).exists():
                (folder / name).touch()
    return RowStore(folder, shape)


def _require_key(folder: Path, wanted: Mapping[str, Any]) -> None:
    mend = f"delete the folder {folder}"
    try:
        found = files.read_json(folder / "key.json")
    except InputError as error:
        raise StorageError(f"{error.problems[0].said}\n    → {mend}") from None
    if differing := _differing(found, wanted):
        said = f"is of another {' and '.join(differing)} than is asked for here"
        raise StorageError(f"{folder / 'key.json'}: {said}\n    → {mend}")


def _nearest(room: Path, wanted: Mapping[str, Any]) -> list[str]:
    """The parts, if one or two, in which the most alike of the stores in `room` differs."""
    found = []
    for path in sorted(room.glob("[!.]*/key.json")):
        try:
            found.append(_differing(files.read_json(path), wanted))
        except InputError:
            continue  # whoever asks for that store is told
    return min((parts for parts in found if 1 <= len(parts) <= 2), key=len, default=[])


def _differing(found: Any, wanted: Mapping[str, Any]) -> list[str]:
    """The names of the parts that differ, with what they were and are where that is short."""
    was = found if isinstance(found, dict) else {}
    said = []
    for part in {**wanted, **was}:
        if part in was and part in wanted and was[part] == wanted[part]:
            continue
        words = f"{part} ({was.get(part)}, now {wanted.get(part)})"
        said.append(words if len(words) <= _LONGEST_SAID + len(part) else part)
    return said


def _record(name: bytes, data: bytes) -> bytes:
    said = _RECORD.pack(name, zlib.crc32(data), 0)[:-4]
    return said + zlib.crc32(said).to_bytes(4, "little")


def _write(path: Path, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Write each piece at its place, and wait until all are safe on disk."""
    with path.open("r+b") as out:
        for place, data in pieces:
            out.seek(place)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
