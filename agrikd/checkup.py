"""A checkup as a page on which each finding can be looked at, and as JSON beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from agrikd import check, files, image, mend, pages
from agrikd.check import KINDS, Checkup, Finding, Kind
from agrikd.data import manifest as manifests
from agrikd.data.manifest import SPLITS, Manifest
from agrikd.errors import InputError, Problem

MOST_SHOWN = 40
"""Findings of a kind on the page; all are in the JSON."""
_TILE = (150, 200)


@dataclass(frozen=True)
class _Tile:
    path: str
    label: str
    picture: str


@dataclass(frozen=True)
class _Sight:
    """A finding with its photos side by side."""

    said: str
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True)
class _Part:
    """A kind's part of the page: findings with photos, findings without, and how many are not shown."""

    id: str
    kind: Kind
    times: int
    sights: tuple[_Sight, ...]
    sentences: tuple[str, ...]
    more: int


@dataclass(frozen=True)
class Written:
    """A checkup, where it was written, and what --fix left out, as sentences."""

    checkup: Checkup
    page: Path
    json: Path
    said: tuple[str, ...] = ()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Kind, times, grave and what to do, for a table."""
        counts = self.checkup.counts()
        return [(KINDS[k].title, str(n), "grave" if KINDS[k].grave else "", KINDS[k].mend) for k, n in counts.items()]


def run(path: Path, root: Path | None, out: Path | None, fixed: Path | None, look_at_labels: bool = True) -> Written:
    """Check the manifest or folder at `path`; write `check.html` and `check.json` into `out` (default: beside it).

    fixed: where a manifest without what makes figures untrue is to go; a file that is there is not overwritten.
    """
    if fixed and fixed.exists():
        raise InputError(Problem(str(fixed), "is there already", "name a new file"))
    checkup = check.check(check.open_data(path, root), look_at_labels=look_at_labels)
    folder = out or (path if path.is_dir() else path.parent)
    page, data = folder / "check.html", folder / "check.json"
    files.write_json(data, checkup.to_json())
    write_page(page, checkup, str(path), data.name)
    if fixed is None:
        return Written(checkup, page, data)
    try:
        manifest, said = mend.fix(checkup)
    except InputError as error:
        seen = f"what was found: {page}"
        raise InputError(replace(one, mend=f"{one.mend}; {seen}") for one in error.problems) from None
    manifests.write(manifest, fixed)
    said.append(f"wrote {len(manifest.rows)} of {len(checkup.photos)} rows: {fixed}")
    if fixed.parent.resolve() != manifest.root:
        said.append(f"its paths start from {manifest.root}: name that with --root, and as data.root in recipes")
    return Written(checkup, page, data, tuple(said))


def write_page(page: Path, checkup: Checkup, title: str, json: str) -> None:
    """The HTML page; `json` is the name of the file that holds every finding."""
    manifest = checkup.manifest
    values = {
        "title": title,
        "verdict": verdict(checkup),
        "photos": len(manifest.rows),
        "splits": _splits(manifest),
        "synthetic": sum(row.source.startswith("synthetic") for row in manifest.rows),
        "parts": [_part(kind, checkup) for kind in checkup.counts()],
        "shortcuts": checkup.shortcuts,
        "label_model": checkup.label_model,
        "label_accuracy": checkup.label_accuracy,
        "not_checked": checkup.not_checked,
        "json": json,
    }
    files.write_text(page, pages.render("check.html", {}, **values))


def verdict(checkup: Checkup) -> str:
    """One sentence: whether figures measured on the data can be believed."""
    counts = checkup.counts()
    grave = sum(n for kind, n in counts.items() if KINDS[kind].grave)
    rest = sum(counts.values()) - grave
    doubts = f"{rest} more to look at" if rest else "nothing more to look at"
    if grave:
        return f"Do not train on it as it stands: {grave} grave finding{'s' if grave > 1 else ''}, {doubts}."
    return f"Nothing was found that would make figures untrue; {doubts}."


def _part(name: str, checkup: Checkup) -> _Part:
    found = [one for one in checkup.findings if one.kind == name]
    shown = found[:MOST_SHOWN]
    sights = {at: sight for at, one in enumerate(shown) if (sight := _sight(one, checkup))}
    rest = [": ".join([*one.paths, one.said]) for at, one in enumerate(shown) if at not in sights]
    more = len(found) - len(shown)
    return _Part(name.replace(" ", "-"), KINDS[name], len(found), tuple(sights.values()), tuple(rest), more)


def _sight(finding: Finding, checkup: Checkup) -> _Sight | None:
    """None where a finding has no photo, or one that cannot be shown."""
    row_of = {row.path: row for row in checkup.manifest.rows}
    tiles = []
    for path in finding.paths:
        try:
            picture = pages.picture(image.read(checkup.manifest.root / path), _TILE)
        except InputError:
            return None
        row = row_of[path]
        tiles.append(_Tile(path, f"{row.split} · {row.target or 'no label'}", picture))
    return _Sight(finding.said, tuple(tiles)) if tiles else None


def _splits(manifest: Manifest) -> str:
    """How many photos each split holds, in words."""
    said = []
    for split in SPLITS:
        others = len(manifest.others(split))
        counts = {
            "labelled": len(manifest.indices(split, labelled=True)),
            "unlabelled": len(manifest.indices(split, labelled=False)) - others,
            "of no plant": others,
        }
        if words := [f"{n} {what}" for what, n in counts.items() if n]:
            said.append(f"{split} {', '.join(words)}")
    return "; ".join(said) + "."
