"""Fetching a public dataset by its card: resumable, bounded, checked, and whole or not there.

Beside the dataset's FOLDER lies FOLDER.downloads: the archives (`FILE.part` until one is whole), what was recorded of
them, and files that a person put there by hand, which are taken as if downloaded. FOLDER itself appears when all is
checked and unpacked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agrikd import console, files
from agrikd.data import fetch, unpack
from agrikd.data.cards import Card, Download
from agrikd.errors import InputError, Problem
from agrikd.recipe import Spec

RECORD = "downloads.json"
_MB = 10**6


class Record(Spec):
    """One file as it was downloaded."""

    file: str
    url: str
    sha256: str
    size_bytes: int


class Receipt(Spec):
    """What stands in FOLDER/downloads.json: files and bytes are the unpacked ones."""

    card: str
    licence: str
    cite: str
    files: int
    bytes: int
    downloads: tuple[Record, ...]


@dataclass(frozen=True)
class Plan:
    """A card and the folder that its dataset goes to."""

    card: Card
    folder: Path

    @property
    def store(self) -> Path:
        """Where the archives lie, and where a file may be put by hand."""
        return self.folder.with_name(f"{self.folder.name}.downloads")

    @property
    def there(self) -> bool:
        """Whether the dataset is there, whole, from this card."""
        return (self.folder / RECORD).is_file() and _receipt(self.folder / RECORD).card == self.card.name

    @property
    def next(self) -> str:
        """What a person does with the dataset."""
        card, read = self.card, shlex.quote(str(self.folder / (self.card.start or self.card.labels or "")))
        if card.start is None and not card.columns:
            return f"write a table (path, label) of what {read} says, then: agrikd init TABLE"
        told = [f"--column {shlex.quote(f'{role}={name}')}" for role, name in card.columns.items()]
        return " ".join(["agrikd init", read, *told])

    def lines(self) -> Iterator[str]:
        """What a person must know before anything is downloaded."""
        card = self.card
        yield f"{card.name}: {card.source}"
        yield f"  licence: {card.licence}"
        yield from (f"  {what}: {page}" for what, page in (("terms", card.terms), ("home", card.home)) if page)
        yield f"  cite: {card.cite}"
        yield from (f"  caution: {caution}" for caution in card.cautions)
        for item in card.downloads:
            here = ", is here already" if (self.store / item.file).exists() else ""
            sha256 = "is known" if item.sha256 else "recorded at first download"
            yield f"  {item.file}: {size(item.size_bytes)}{here}; sha256 {sha256}; {item.url}"
        yield f"  in all: {size(card.size_bytes)}, and about as much again unpacked"
        yield f"  goes to: {self.folder}"


def size(count: int | None) -> str:
    """Bytes for people."""
    return "size unknown" if count is None else f"{count / _MB:,.1f} MB"


def size_of(card: Card) -> str:
    """What a card's downloads weigh together, for a list."""
    return size(card.size_bytes) if card.downloads else "nothing: a selection"


def plan(card: Card, to: Path | None = None) -> Plan:
    """Where a card's dataset goes: `to`, or its folder under $AGRIKD_DATA (the working folder where that is not set).

    Raises `InputError` where there is nothing to download, or something else is in the way.
    """
    made = Plan(card, to or Path(os.environ.get("AGRIKD_DATA", "")) / card.folder)
    if not card.downloads:
        mend = f"it is a selection from {card.source}" + (f"; see {card.manifest}" if card.manifest else "")
        raise InputError(Problem(card.name, "has no download of its own", mend))
    if made.folder.name in ("", ".."):
        raise InputError(Problem(f"--to {to}", "is no name for a new folder", "give one, as in photos/ibean"))
    if os.path.lexists(made.folder) and not made.there:
        raise InputError(Problem(str(made.folder), "is there already", "choose another --to, or move it away"))
    return made


def get(plan: Plan, limits: fetch.Limits | None = None, unpacked: unpack.Limits | None = None) -> Receipt:
    """Download what is missing, check it and unpack it; a set that is there already is left as it is.

    Raises `InputError` where a server, a file or an archive is wrong, `StorageError` where the disk is. The folder is
    there afterwards only if everything was right; downloaded bytes are kept and the next call goes on from them.
    """
    if plan.there:
        return _receipt(plan.folder / RECORD)
    with files.storage_errors(plan.store), _alone(plan):
        known = _receipt(plan.store / RECORD).downloads if (plan.store / RECORD).exists() else ()
        _require_room(plan)
        limits = limits or fetch.Limits()
        records = [_obtain(item, plan.store / item.file, known, limits) for item in plan.card.downloads]
        return _build(plan, records, unpacked or unpack.Limits())


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """Hold the store against another run, and remove what a killed one left half unpacked."""
    plan.store.mkdir(parents=True, exist_ok=True)
    with (plan.store / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(Problem(str(plan.store), "another run is at work here", "let it finish")) from None
        half = re.compile(rf"\.{re.escape(plan.folder.name)}\.[a-z0-9_]{{8}}")  # as files.replacing_folder names it
        for left in plan.folder.absolute().parent.iterdir():
            if half.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
        yield


def _require_room(plan: Plan) -> None:
    """For what is not here yet and for all of it unpacked: photos hardly shrink in an archive."""
    need = 0
    for item in plan.card.downloads:
        here = max(fetch.length(path) for path in (plan.store / item.file, fetch.part_of(plan.store / item.file)))
        need += 2 * (item.size_bytes or 0) - min(here, item.size_bytes or 0)
    files.require_room(plan.folder, need)


def _build(plan: Plan, records: list[Record], limits: unpack.Limits) -> Receipt:
    """Unpack everything into the folder, which is renamed into its place at the end."""
    count = total = 0
    with files.replacing_folder(plan.folder) as temporary:
        for item in plan.card.downloads:
            done = _unpack(item, plan.store / item.file, temporary / item.into, limits)
            count, total = count + done[0], total + done[1]
        card = plan.card
        receipt = Receipt(
            card=card.name, licence=card.licence, cite=card.cite, files=count, bytes=total, downloads=tuple(records)
        )
        files.write_json(temporary / RECORD, receipt.model_dump())
    files.write_json(plan.store / RECORD, receipt.model_dump())
    return receipt


def _unpack(item: Download, path: Path, into: Path, limits: unpack.Limits) -> tuple[int, int]:
    into.mkdir(parents=True, exist_ok=True)
    if item.unpack == "none":
        shutil.copyfile(path, into / item.file)
        return 1, path.stat().st_size
    with console.job(f"unpack {item.file}, MB") as progress:
        try:
            return unpack.unpack(
                path, item.unpack, into, limits, lambda done, total: progress(done // _MB, total // _MB)
            )
        except InputError as error:
            raise InputError([*error.problems, _put_aside(path)]) from None


def _receipt(path: Path) -> Receipt:
    raw = files.read_json(path)
    try:
        return Receipt.model_validate(raw)
    except ValidationError:
        raise InputError(Problem(str(path), "is not what agrikd wrote", "delete it")) from None


# One file, whole and checked.


def _obtain(item: Download, path: Path, known: Iterable[Record], limits: fetch.Limits) -> Record:
    """The file, downloaded unless it is there, and held against its card and an earlier record."""
    if not path.exists():
        fetch.fetch(item, path, limits)
    with path.open("rb") as file:
        page = fetch.not_wanted(item, file.read(1024))
    with console.job(f"check {item.file}, MB", path.stat().st_size // _MB) as progress:
        sha256, md5 = _digests(path, progress)
    found = Record(file=item.file, url=item.url, sha256=sha256, size_bytes=path.stat().st_size)
    earlier = next((record for record in known if (record.file, record.url) == (item.file, item.url)), found)
    wrong = [page] if page else []
    if item.size_bytes not in (None, found.size_bytes):
        wrong.append(f"is {found.size_bytes:,} bytes long, the card says {item.size_bytes:,}")
    if item.md5 not in (None, md5):
        wrong.append(f"has the md5 {md5}, the card says {item.md5}")
    if item.sha256 not in (None, sha256):
        wrong.append(f"has the sha256 {sha256}, the card says {item.sha256}")
    if item.sha256 is None and earlier.sha256 != sha256:
        wrong.append(
            f"has the sha256 {sha256}, at the first download it was {earlier.sha256}; where its authors changed it, "
            f"delete {path.with_name(RECORD)}"
        )
    if wrong:
        raise InputError([*(Problem(str(path), said) for said in wrong), _put_aside(path)])
    return found


def _digests(path: Path, progress: Callable[..., None]) -> tuple[str, str]:
    """(sha256, md5) of a file; md5 only to compare with what an archive's record states."""
    sha256, md5, done = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
            done += len(chunk)
            progress(done // _MB)
    return sha256.hexdigest(), md5.hexdigest()


def _put_aside(path: Path) -> Problem:
    """Rename a wrong file, so that the same command fetches it again."""
    path.replace(path.with_name(f"{path.name}.wrong"))
    mend = f"the same command fetches it again; or put the right file at {path} by hand"
    return Problem(str(path), f"was put aside as {path.name}.wrong", mend)
