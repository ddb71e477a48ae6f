"""A dataset as one page to look at: photos of each class and split, how many, how large, how bright, and when.

An agronomist sees what is in it, a researcher whether the splits are alike. Only the photos shown are decoded for the
page; the rest is known from their `Looks`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agrikd import files, image, pages, plots
from agrikd.check import open_data
from agrikd.data import moments
from agrikd.data.looks import BROKEN, Look, Looks
from agrikd.data.manifest import NOT_A_PLANT, SPLITS, Manifest, Row
from agrikd.data.splits import in_ranges
from agrikd.errors import InputError, Problem

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "show.html"
MOST_NAMED = 40
"""Broken photos named on the page; all are in the JSON."""
NO_LABEL = "no label"
_TILE = (150, 200)
MEASURES: dict[str, tuple[str, Callable[[Look], float]]] = {
    "shorter_side": ("shorter side in pixels", lambda look: min(look.height, look.width)),
    "megapixels": ("megapixels", lambda look: look.height * look.width / 1e6),
    "brightness": ("brightness, 0 to 255", lambda look: look.brightness),
}
"""What each is called on the page, and how it is taken of a readable photo."""


class Photo(NamedTuple):
    """A row and what its photo is."""

    row: Row
    look: Look


@dataclass(frozen=True)
class Spread:
    """The middle of a measure: a tenth of the photos lie below `low`, a tenth above `high`."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Split:
    """One split's rows, counted. broken and synthetic are among `photos`; `timed` have a known time.

    grouped: rows that name a group. seasons: rows of each. first, last: when taken, ISO 8601, or "".
    spreads: of each measure over the readable photos, empty where there are none.
    """

    photos: int
    labels: dict[str, int]
    unlabelled: int
    not_a_plant: int
    synthetic: int
    broken: int
    groups: int
    grouped: int
    seasons: dict[str, int]
    timed: int
    first: str
    last: str
    spreads: dict[str, Spread]


@dataclass(frozen=True)
class Contents:
    """What is in a dataset: its splits that hold rows, in order, and what is wrong with each broken photo."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    broken: dict[str, str]

    @property
    def photos(self) -> int:
        return sum(split.photos for split in self.splits.values())

    @property
    def synthetic(self) -> int:
        return sum(split.synthetic for split in self.splits.values())

    @property
    def seasons(self) -> list[str]:
        return sorted({season for split in self.splits.values() for season in split.seasons})

    @property
    def counts(self) -> list[tuple[str | None, list[int]]]:
        """Rows of each target (of the reserved one and of None where there are any) in each split."""
        splits = self.splits.values()
        found: list[tuple[str | None, list[int]]] = []
        found += [(name, [split.labels.get(name, 0) for split in splits]) for name in self.classes]
        found += [(NOT_A_PLANT, [split.not_a_plant for split in splits]), (None, [s.unlabelled for s in splits])]
        return [(name, each) for name, each in found if any(each)]

    def to_json(self) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "photos": self.photos,
            "synthetic": self.synthetic,
            "classes": list(self.classes),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "broken": [{"path": path, "said": said} for path, said in self.broken.items()],
        }


@dataclass(frozen=True)
class Shown:
    """What is in a dataset, and the page on which it can be looked at."""

    contents: Contents
    page: Path

    @property
    def columns(self) -> tuple[str, ...]:
        return ("class", *self.contents.splits)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Rows of each class in each split, for a table."""
        return [(NO_LABEL if name is None else name, *map(str, each)) for name, each in self.contents.counts]

    def to_json(self) -> dict[str, Any]:
        return {"page": str(self.page), **self.contents.to_json()}


@dataclass(frozen=True)
class _Tile:
    """A photo on the page; without a picture, why."""

    path: str
    facts: str
    picture: str = ""
    why: str = ""


@dataclass(frozen=True)
class _Sheet:
    """Some photos of one target in one split, how many there are, and how many of those are broken."""

    split: str
    tiles: tuple[_Tile, ...]
    photos: int
    broken: int


def run(path: Path, root: Path | None, out: Path | None, per_class: int = 12, seed: int = 0) -> Shown:
    """Show the manifest or folder at `path` on the page `out` (default: show.html beside it).

    per_class: photos of a class in a split at most, drawn by `seed`. Broken photos are counted and named, they do
    not stop it. Raises one `InputError` with what is wrong with the data and with `out`.
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}, expected 1 or more")
    page = out or (path if path.is_dir() else path.parent) / PAGE
    problems = _mistakes(page)
    try:
        manifest = in_ranges(open_data(path, root))
    except InputError as error:
        raise InputError([*problems, *error.problems]) from None
    if problems:
        raise InputError(problems)
    with Looks(manifest.root) as looks:
        found = looks.at([row.path for row in manifest.rows])
    photos = [Photo(*pair) for pair in zip(manifest.rows, found, strict=True)]
    contents = count(manifest, photos)
    write_page(page, contents, photos, str(path), per_class, seed)
    return Shown(contents, page)


def count(manifest: Manifest, photos: Sequence[Photo]) -> Contents:
    """What is in the manifest; `photos` are its rows with their looks."""
    by_split = {split: [photo for photo in photos if photo.row.split == split] for split in SPLITS}
    return Contents(
        manifest.root,
        manifest.classes,
        {split: _split(inside) for split, inside in by_split.items() if inside},
        {row.path: _ailment(look) for row, look in photos if not look.readable},
    )


def draw(photos: Iterable[Photo], most: int, seed: int) -> list[Photo]:
    """At most so many readable photos, drawn by their content: neither the rows' order nor a renaming matters.

    A larger `most` keeps the smaller one's photos.
    """

    def rank(photo: Photo) -> tuple[str, str]:
        return files.sha256(f"{seed}:{photo.look.sha256}".encode()), photo.row.path

    return sorted((photo for photo in photos if photo.look.readable), key=rank)[:most]


def write_page(
    page: Path, contents: Contents, photos: Sequence[Photo], title: str, per_class: int = 12, seed: int = 0
) -> None:
    """The HTML page; at most `per_class` photos of a class in a split, drawn by `seed`."""
    parts = _parts(contents, photos, per_class, seed)
    with plots.drawing():
        counted = {name: _by_split(contents, name) for name in contents.classes}
        values = {
            "title": title,
            "words": _words(contents),
            "contents": contents,
            "counts": plots.counts(counted) if counted else "",
            "measures": {name: words for name, (words, _) in MEASURES.items()},
            "spreads": list(_spreads(contents, photos)),
            "parts": parts,
            "named": list(contents.broken.items())[:MOST_NAMED],
            "seed": seed,
        }
    filters: dict[str, Callable[..., str]] = {"heading": _heading, "figure": _figure}
    files.write_text(page, pages.render("contact.html", filters, **values))


def _mistakes(page: Path) -> list[Problem]:
    if page.is_dir():
        return [Problem(str(page), "is a folder", f"name the page in it: {page / PAGE}")]
    if page.suffix.casefold() not in (".html", ".htm"):
        return [Problem(str(page), "is no name of a page", "let it end in .html")]
    return []


def _words(contents: Contents) -> str:
    """How many photos of what, in a sentence."""
    counts = {target: sum(each) for target, each in contents.counts}
    unlabelled, others = counts.get(None, 0), counts.get(NOT_A_PLANT, 0)
    classes = "of 1 class" if len(contents.classes) == 1 else f"of {len(contents.classes)} classes"
    photos = "1 photo" if contents.photos == 1 else f"{contents.photos:,} photos"
    labelled = contents.photos - unlabelled - others
    parts = [(labelled, classes), (unlabelled, "without a label"), (others, "of no plant")]
    said = [(n, words) for n, words in parts if n]
    if len(said) == 1:
        return f"{photos} {said[0][1]}."
    return f"{photos}: {', '.join(f'{n:,} {words}' for n, words in said)}."


def _split(photos: Sequence[Photo]) -> Split:
    rows = [row for row, _ in photos]
    seen = [look for _, look in photos if look.readable]
    times = [time for look in seen if (time := moments.taken(look))]
    labels = Counter(row.target for row in rows)
    return Split(
        photos=len(rows),
        labels={name: labels[name] for name in sorted(filter(None, labels)) if name != NOT_A_PLANT},
        unlabelled=labels[None],
        not_a_plant=labels[NOT_A_PLANT],
        synthetic=sum(map(_is_synthetic, rows)),
        broken=len(rows) - len(seen),
        groups=len({row.group for row in rows} - {""}),
        grouped=sum(bool(row.group) for row in rows),
        seasons=dict(sorted(Counter(row.season for row in rows if row.season).items())),
        timed=len(times),
        first=_iso(min(times, default=None)),
        last=_iso(max(times, default=None)),
        spreads={name: _spread(list(map(of, seen))) for name, (_, of) in MEASURES.items() if seen},
    )


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = np.percentile(values, (10, 50, 90)).tolist()
    return Spread(low, median, high)


def _iso(time: datetime | None) -> str:
    return time.isoformat() if time else ""


def _ailment(look: Look) -> str:
    return "; ".join(BROKEN[defect] for defect in look.defects if defect in BROKEN)


def _is_synthetic(row: Row) -> bool:
    return row.source.startswith("synthetic")


def _by_split(contents: Contents, name: str) -> dict[str, int]:
    """Of one class, for the splits that hold any label."""
    return {split: found.labels.get(name, 0) for split, found in contents.splits.items() if found.labels}


def _spreads(contents: Contents, photos: Sequence[Photo]) -> Iterator[Markup]:
    """A plot of each measure that is not the same for all readable photos."""
    looks = {split: [look for row, look in photos if row.split == split and look.readable] for split in contents.splits}
    for name, (words, of) in MEASURES.items():
        values = {split: list(map(of, inside)) for split, inside in looks.items() if inside}
        low, high = min(map(min, values.values()), default=0), max(map(max, values.values()), default=0)
        if low < high:
            yield plots.spreads(words, values, (0, 255) if name == "brightness" else (low, high))


def _parts(
    contents: Contents, photos: Iterable[Photo], per_class: int, seed: int
) -> list[tuple[str | None, list[_Sheet]]]:
    """Each target with a sheet for each split that holds it."""
    inside = defaultdict(list)
    for photo in photos:
        inside[photo.row.target, photo.row.split].append(photo)
    return [
        (
            target,
            [
                _sheet(contents.root, split, found, per_class, seed)
                for split in contents.splits
                if (found := inside.get((target, split)))
            ],
        )
        for target, _ in contents.counts
    ]


def _sheet(root: Path, split: str, photos: Sequence[Photo], per_class: int, seed: int) -> _Sheet:
    tiles = tuple(_tile(root, photo) for photo in draw(photos, per_class, seed))
    return _Sheet(split, tiles, len(photos), sum(not photo.look.readable for photo in photos))


def _tile(root: Path, photo: Photo) -> _Tile:
    """A photo that was readable when it was looked at, and may not be any more."""
    row, look = photo
    group = f"group {row.group}" if row.group else ""
    season = f"season {row.season}" if row.season else ""
    known = [f"{look.width} × {look.height}", group, season, "synthetic" if _is_synthetic(row) else ""]
    facts = " · ".join(filter(None, known))
    try:
        return _Tile(row.path, facts, picture=pages.picture(image.read(root / row.path), _TILE))
    except InputError as error:
        return _Tile(row.path, facts, why=error.problems[0].wrong)


def _heading(target: str | None) -> str:
    if target is None:
        return "Without a label"
    return "Not a plant" if target == NOT_A_PLANT else plots.readable(target)


def _figure(value: float) -> str:
    """Few digits: 0.79, 4.0, 17, 256, 4,000."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
