"""Dataset cards: where a public set comes from, what it may be used for, and how it is fetched.

A card is a YAML file `NAME.yaml`. In a checkout the cards lie in data/ beside the package; a wheel carries them in
share/agrikd/cards, where the installer's own list of files finds them.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from agrikd.errors import InputError, Problem
from agrikd.recipe import Spec, problems_of, read_yaml

CHECKOUT = Path(__file__).resolve().parents[2] / "data"
INSTALLED = "share/agrikd/cards"


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must stay inside the dataset's folder")
    return path


Text = Annotated[str, Field(min_length=1)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Inside = Annotated[str, AfterValidator(_inside)]


class Download(Spec):
    """One file of a set.

    file: its name here. sha256, md5: hex, of the file as it is served; without a sha256 the first download's is
    recorded and later ones are held against it. size_bytes: None where the server alone knows. unpack: what it is;
    "none" is kept as it stands. into: a folder under the dataset's.
    """

    url: Url
    file: FileName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    unpack: Literal["zip", "tar", "none"] = "zip"
    into: Inside = ""


class Card(Spec):
    """What a person must know of a set before they use it.

    folder: under $AGRIKD_DATA. manifest: of this project's own selection, from the card's folder. photos: of that
    selection, by split. checksums: what is held against what. home, terms: pages of the authors. start: what
    `agrikd init` reads, under the dataset's folder; labels: the table instead, where there are no class folders, and
    columns: what `agrikd init` must be told of it, by role; none where a person has to make a table of it first.
    """

    name: FileName
    task: Text
    folder: FileName
    source: Text
    licence: Text
    cite: Text
    home: Url | None = None
    terms: Url | None = None
    manifest: Inside | None = None
    classes: tuple[Text, ...] = ()
    photos: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    checksums: Text | None = None
    downloads: tuple[Download, ...] = ()
    start: Inside | None = None
    labels: Text | None = None
    columns: dict[Text, Text] = Field(default_factory=dict)
    cautions: Annotated[tuple[Text, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Card:
        if bool(self.downloads) == (self.start is None and self.labels is None):
            raise ValueError("downloads come with 'start' (class folders) or 'labels' (a table), and only they do")
        names = [item.file.casefold() for item in self.downloads]
        if len(set(names)) < len(names):
            raise ValueError("two downloads have the same file name")
        return self

    @property
    def size_bytes(self) -> int | None:
        """Of all downloads together; None where one is not known."""
        sizes = [item.size_bytes for item in self.downloads]
        return None if None in sizes else sum(size for size in sizes if size)


def names(folder: Path | None = None) -> list[str]:
    """The cards that there are."""
    return sorted(_files(folder))


def card(name: str, folder: Path | None = None) -> Card:
    """The card of that name; `folder` holds other cards than the project's. Raises `InputError` with every mistake."""
    found = _files(folder)
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(found))}"
        raise InputError(Problem(name, "there is no such card", mend))
    return _read(found[name])


def all_cards(folder: Path | None = None) -> list[Card]:
    """Every card, by name; raises `InputError` with the mistakes of all of them."""
    read: list[Card] = []
    problems: list[Problem] = []
    for _, path in sorted(_files(folder).items()):
        try:
            read.append(_read(path))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return read


def _read(path: Path) -> Card:
    raw = read_yaml(path)
    try:
        read = Card.model_validate(raw)
    except ValidationError as error:
        mend = "data/README.md says what a card holds"
        problems = problems_of(error, Card, str(path))
        raise InputError(replace(p, mend=mend) if p.wrong == "is missing" else p for p in problems) from None
    if read.name != path.stem:
        raise InputError(Problem(f"{path}: name", f"is {read.name!r}", f"a card's name is its file's: {path.stem}"))
    return read


def _files(folder: Path | None) -> dict[str, Path]:
    """Name to file."""
    if folder is not None:
        found = list(folder.glob("*.yaml"))
        where, mend = str(folder), "give the folder that holds the cards, one NAME.yaml each"
    else:
        found = list(CHECKOUT.glob("*.yaml")) if (CHECKOUT.parent / "pyproject.toml").is_file() else _installed()
        where, mend = (
            "the dataset cards",
            "they were not installed: copy the project's data/*.yaml, and --cards FOLDER",
        )
    if not found:
        raise InputError(Problem(where, "there are none", mend))
    return {path.stem: path for path in found}


def _installed() -> list[Path]:
    try:
        listed = metadata.files("agrikd") or []
    except metadata.PackageNotFoundError:
        return []
    paths = [Path(str(file.locate())) for file in listed if file.match(f"{INSTALLED}/*.yaml")]
    return [path for path in paths if path.is_file()]
