"""A bundle (.akb): one signed release of a model, and no other bytes.

A POSIX tar in a fixed form: first `release.dsse`, the signed envelope of a `Release`, then the release's files in its
order, headers without time or owner. So the release says every byte of the bundle: what differs from the tar that it
would make is refused, and the same inputs give the same bytes. A device reads the envelope alone before it takes any
payload, and takes that in chunks of which it knows the hash.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from agrikd import files
from agrikd.dsse import Envelope, Key, sign
from agrikd.errors import InputError, Problem, TrustError
from agrikd.trust import Root
from agrikd.types import ModelSpec

KIND = "application/vnd.agrikd.release+json"
SCHEMA = 1
CHUNK_BYTES = 64 * 1024
"""What is lost at most when a link breaks, and what is hashed at once."""
MAX_ENVELOPE_BYTES, MAX_FILES, MAX_BYTES = 4 * 2**20, 64, 2**30
"""Bounds of what a reader takes into memory or onto a disk before it knows more."""
_FIRST = "release.dsse"
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_MEND = "pack it again: agrikd bundle pack"
_RESERVED = ("release.dsse", "choice.json")
"""What a device writes beside a release's own files."""
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """name: of lower-case letters, digits, dots and dashes; no folders. chunks: SHA-256 of every `CHUNK_BYTES`."""

    name: str
    size_bytes: int
    sha256: str
    chunks: tuple[str, ...]

    @classmethod
    def of(cls, name: str, data: bytes) -> File:
        chunks = (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
        return cls(name, len(data), files.sha256(data), tuple(files.sha256(chunk) for chunk in chunks))


@dataclass(frozen=True)
class Artefact:
    """One precision of the model. releases: of TensorRT that take it. atol: how far a logit may be from the probe's."""

    precision: str
    file: str
    releases: tuple[str, ...]
    atol: float


@dataclass(frozen=True)
class Release:
    """What is signed: everything a device must know of a model before it takes a byte of it.

    seq: compared within a name, never the version, which is for people. compatible: patterns of a device's kind, as in
    "aarch64-jetpack*". resize: `agrikd.image.RESIZE` of the lab: another one makes other pixels. labels: by language,
    in the order of the classes. probes: names of pictures, whose answers stand in `answers`. budget_ms: what a frame
    may take. expires: a date, for a warning only, as fields have no trusted clock. provenance: for people.
    """

    name: str
    version: str
    seq: int
    min_agent: str
    compatible: tuple[str, ...]
    spec: ModelSpec
    resize: int
    artefacts: tuple[Artefact, ...]
    probes: tuple[str, ...]
    answers: str
    files: tuple[File, ...]
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    budget_ms: float | None = None
    expires: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its folder's name on a device."""
        return f"{self.seq}-{files.sha256(self.payload())[:8]}"

    @property
    def expired(self) -> str:
        """The last day that it was meant for, where that has gone by as this machine's clock has it; else empty."""
        return self.expires if self.expires and self.expires < time.strftime("%Y-%m-%d") else ""

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.files)

    def payload(self) -> bytes:
        return files.canonical({"schema": SCHEMA, **asdict(self), "spec": self.spec.to_json()})

    @classmethod
    def from_payload(cls, payload: bytes, where: str) -> Release:
        """Raises `InputError` with all that is wrong; what is read writes the same bytes again."""
        try:
            said = json.loads(payload)
            if said["schema"] != SCHEMA:
                other = f"has the schema {said['schema']}, this agrikd reads {SCHEMA}"
                raise InputError(Problem(where, other, "update agrikd on this machine"))
            release = cls._from_json(said)
            wrong = list(release._contradictions())
            if release.payload() != payload:
                wrong.append("is not in canonical form")
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            broken = f"is no release ({type(error).__name__}: {error})"
            raise InputError(Problem(where, broken, _MEND)) from None
        if wrong:
            raise InputError([Problem(where, one, _MEND) for one in wrong])
        return release

    @classmethod
    def _from_json(cls, said: dict[str, Any]) -> Release:
        held = {name: value for name, value in said.items() if name != "schema"}
        artefacts = ({**one, "releases": tuple(one["releases"])} for one in said["artefacts"])
        return cls(
            **{
                **held,
                "compatible": tuple(said["compatible"]),
                "spec": ModelSpec.from_json(said["spec"]),
                "artefacts": tuple(Artefact(**one) for one in artefacts),
                "probes": tuple(said["probes"]),
                "files": tuple(File(**{**one, "chunks": tuple(one["chunks"])}) for one in said["files"]),
                "labels": {language: tuple(names) for language, names in said["labels"].items()},
            }
        )

    def _contradictions(self) -> Iterator[str]:
        names = [one.name for one in self.files]
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in (self.name, *names)):
            yield "has a name that is not of lower-case letters, digits, dots and dashes"
        if len({*names, *_RESERVED}) != len(names) + len(_RESERVED) or not 1 <= len(names) <= MAX_FILES:
            yield f"names a file twice, or none, or more than {MAX_FILES}, or one that is reserved"
        if type(self.seq) is not int or not 0 <= self.seq < 2**63:
            yield "has a seq that is no whole number from 0"
        if not all(_whole(one) for one in self.files):
            yield "has a file whose size and chunks contradict each other"
        elif self.size_bytes > MAX_BYTES:
            yield f"is larger than {MAX_BYTES} bytes"
        if missing := {self.answers, *self.probes, *(one.file for one in self.artefacts)} - set(names):
            yield f"lacks {', '.join(sorted(map(str, missing)))}"
        if "fp32" not in {one.precision for one in self.artefacts} or not self.probes:
            yield "has no model in fp32, or no probe"
        if any(len(labels) != len(self.spec.classes) for labels in self.labels.values()):
            yield f"has labels that are not one for each of the {len(self.spec.classes)} classes"


def _whole(one: File) -> bool:
    sized = type(one.size_bytes) is int and 0 <= one.size_bytes <= MAX_BYTES
    hashed = all(isinstance(text, str) and _HASH.fullmatch(text) for text in (one.sha256, *one.chunks))
    return sized and hashed and len(one.chunks) == -(-one.size_bytes // CHUNK_BYTES)


def write(path: Path, release: Release, contents: Mapping[str, bytes], keys: Iterable[Key]) -> None:
    """Write the bundle of a release with a signature of each key; contents: each file's bytes."""
    envelope = sign(KIND, release.payload(), keys).to_bytes()
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise InputError(Problem(str(path), "says too much", "give it shorter labels and provenance"))
    with files.replacing(path) as temporary, temporary.open("wb") as out:
        for name, data in ((_FIRST, envelope), *((one.name, contents[one.name]) for one in release.files)):
            out.writelines((_header(name, len(data)), data, bytes(-len(data) % _BLOCK)))
        out.write(_END)


def trusted(envelope: bytes, root: Root, where: str) -> Release:
    """The release in a signed envelope; raises `TrustError` or `InputError`."""
    payload = root.require(Envelope.from_bytes(envelope, where), KIND, where)
    return Release.from_payload(payload, where)


class Bundle:
    """An open bundle. envelope: as signed. release: what it says, whoever signed it: `verify` asks who did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            mend = "look at the name and its folder"
            raise InputError(Problem(str(path), f"cannot be read ({error.strerror})", mend)) from None
        try:
            self.envelope = self._read_envelope()
            payload = Envelope.from_bytes(self.envelope, str(path)).payload
            self.release = Release.from_payload(payload, str(path))
            self._starts = self._layout()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def chunk(self, file: int, number: int) -> bytes:
        """The bytes of a chunk, as they stand there; their hash is the taker's to ask for."""
        one, start = self.release.files[file], number * CHUNK_BYTES
        return self._at(self._starts[file] + start, min(CHUNK_BYTES, one.size_bytes - start))

    def verify(self, root: Root | None) -> None:
        """Hold every byte against the release, and its signatures against `root` if one is given.

        Raises `TrustError` for the signatures and `InputError` with all the files that differ.
        """
        if root is not None:
            trusted(self.envelope, root, str(self.path))
        problems = [
            Problem(f"{self.path}:{one.name}", wrong, "copy the bundle again")
            for place, one in enumerate(self.release.files)
            if (wrong := self._wrong(place, one))
        ]
        if any(self._at(_BLOCK + len(self.envelope), -len(self.envelope) % _BLOCK)):
            problems.append(Problem(f"{self.path}:{_FIRST}", "has bytes behind its end", "copy the bundle again"))
        if self._at(self._size - len(_END), len(_END)) != _END:
            problems.append(Problem(str(self.path), "does not end as a bundle does", "copy it again"))
        if problems:
            raise InputError(problems)

    def _wrong(self, place: int, one: File) -> str:
        if self._at(self._starts[place] - _BLOCK, _BLOCK) != _header(one.name, one.size_bytes):
            return "its header is not the one that the release makes"
        whole = hashlib.sha256()
        for number, known in enumerate(one.chunks):
            data = self.chunk(place, number)
            if files.sha256(data) != known:
                return "its bytes are not those that were signed"
            whole.update(data)
        if whole.hexdigest() != one.sha256:
            return "its SHA-256 is not that of its chunks"
        padding = -one.size_bytes % _BLOCK
        return "has bytes behind its end" if any(self._at(self._starts[place] + one.size_bytes, padding)) else ""

    @property
    def _size(self) -> int:
        return self._file.seek(0, 2)

    def _read_envelope(self) -> bytes:
        """The first member, whose size alone is not known beforehand."""
        begins = self._at(0, min(len(_FIRST), self._size))
        if not _FIRST.encode().startswith(begins):
            raise self._none()
        header = self._at(0, _BLOCK)
        digits = header[124:135]
        size = int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else -1
        if header != _header(_FIRST, size) or not 0 < size <= MAX_ENVELOPE_BYTES:
            raise self._none()
        return self._at(_BLOCK, size)

    def _none(self) -> InputError:
        return InputError(Problem(str(self.path), "is no bundle", "expected an .akb file of agrikd bundle pack"))

    def _layout(self) -> list[int]:
        """Where each file's bytes begin; raises `InputError` unless the whole is as long as that makes it."""
        starts, at = [], _BLOCK + _padded(len(self.envelope))
        for one in self.release.files:
            starts.append(at + _BLOCK)
            at += _BLOCK + _padded(one.size_bytes)
        if self._size != at + len(_END):
            wrong = f"has {self._size} bytes, its release makes {at + len(_END)}"
            raise InputError(Problem(str(self.path), wrong, "copy it again"))
        return starts

    def _at(self, start: int, count: int) -> bytes:
        try:
            self._file.seek(start)
            data = self._file.read(count)
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
            raise InputError(Problem(str(self.path), wrong, "copy it from another stick")) from None
        if len(data) != count:
            raise InputError(Problem(str(self.path), "is cut short", "copy it again"))
        return data


def require_newer(release: Release, floor: int, where: str) -> None:
    """Raise `TrustError` where a device has committed to a later release of this name."""
    if release.seq < floor:
        raise TrustError(
            f"{where}: {release.name} has the seq {release.seq}, this device has had {floor}\n"
            "    → pack a newer one; to go back on purpose: agrikd bundle permit, or --allow-downgrade on the device"
        )


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _header(name: str, size: int) -> bytes:
    """A ustar header (POSIX.1-1988, pax manual, "ustar Interchange Format") of a plain file, mode 0644, without time
    or owner; `size` below 0 gives none."""
    if size < 0:
        return b""
    fields = (
        (name.encode(), 100),
        (b"0000644", 8),
        (b"0000000", 8),
        (b"0000000", 8),
        (b"%011o" % size, 12),
        (b"00000000000", 12),
        (b" " * 8, 8),
        (b"0", 1),
        (b"", 100),
        (b"ustar\x0000", 8),
        (b"", 247),
    )
    block = b"".join(text.ljust(width, b"\0") for text, width in fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
