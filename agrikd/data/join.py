"""Several seasons' manifests as one: each photo once, with the label and the split that it has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agrikd import files
from agrikd.data import manifest as manifests
from agrikd.data.manifest import SPLITS, Manifest, Row
from agrikd.data.start import name_of, write_recipe
from agrikd.errors import InputError, Problem

_Taken = dict[str, tuple[Path, Row]]
"""By digest: the manifest that named the photo first, and its row."""


@dataclass(frozen=True)
class Joined:
    """What was written. counts: photos of each season, by split."""

    manifest: Path
    recipe: Path
    counts: dict[str, dict[str, int]]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        made = {"manifest": str(self.manifest), "recipe": str(self.recipe)}
        return made | {"seasons": self.counts, "assumptions": list(self.assumptions)}

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [(name, *(str(counts[split]) for split in SPLITS)) for name, counts in self.counts.items()]


def join(sources: Sequence[Path], out: Path, roots: Sequence[Path] = ()) -> Joined:
    """Write the rows of the manifests `sources` to `out`, and a recipe beside it (`out` with .yaml at its end).

    roots: where each one's paths start, by default its own folder; the photos must lie below the folder of `out`.
    Labels, splits, groups and seasons are kept; a photo that several name is taken once, with what any of them knows.
    Raises one `InputError` with all that is wrong, as one photo with two labels or in two splits, groups or seasons.
    """
    recipe = out.with_suffix(".yaml")
    problems = _asked_wrongly(sources, out, recipe, roots)
    if problems:
        raise InputError(problems)
    read: list[tuple[Path, Manifest]] = []
    for source, root in zip(sources, roots or [source.parent for source in sources], strict=True):
        try:
            read.append((source, _opened(source, root, out)))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    taken: _Taken = {}
    for source, manifest in read:
        problems += _take(taken, source, manifest.rows)
    joined = Manifest(tuple(row for _, row in taken.values()), out.parent.resolve())
    where = " and ".join(map(str, sources))
    if not joined.numeric:
        wrong = (f"the classes {', '.join(names)} {manifests.ALIKE}" for names in manifests.alike(joined.classes))
        problems += [Problem(where, text, "give them one name, in all files") for text in wrong]
    if not problems:  # what is left to find is a group in two splits
        problems = manifests.check(joined, where)
    if problems:
        raise InputError(problems)
    manifests.save(joined, out)
    try:
        said = write_recipe(recipe, joined, name_of(recipe.with_suffix("")), out.name, numbers=joined.numeric)
    except BaseException:
        out.unlink()
        raise
    return Joined(out, recipe, _counts(joined), (*_said(read, joined), *said))


def _asked_wrongly(sources: Sequence[Path], out: Path, recipe: Path, roots: Sequence[Path]) -> list[Problem]:
    problems = []
    if len(sources) < 2:
        problems.append(Problem("data join", f"was given {len(sources)} manifest", "name two or more"))
    if out.suffix != ".csv":
        problems.append(Problem(str(out), "does not end with .csv", "name the new manifest, as --out both.csv"))
    if roots and len(roots) != len(sources):
        wrong = f"stands {len(roots)} times, for {len(sources)} manifests"
        problems.append(Problem("--root", wrong, "give one for each, in their order, or none"))
    there = [path for path in (out, recipe) if path.exists()]
    return problems + [Problem(str(path), "is there already", "choose another --out") for path in there]


def _opened(source: Path, root: Path, out: Path) -> Manifest:
    """A manifest whose paths start from the folder of `out`, each row with its digest."""
    manifest = manifests.read(source, root)
    manifests.require_files(manifest, f"{source}, from {root} (--root)")
    base = out.parent.resolve()
    if not manifest.root.is_relative_to(base):
        mend = f"choose an --out in {os.path.commonpath((base, manifest.root))}"
        raise InputError(Problem(str(source), f"its photos lie in {manifest.root}, not below {base}", mend))
    below = manifest.root.relative_to(base)
    moved = (
        replace(row, path=(below / row.path).as_posix(), sha256=row.sha256 or files.sha256_of(manifest.file(place)))
        for place, row in enumerate(manifest.rows)
    )
    return Manifest(tuple(moved), base)


def _take(taken: _Taken, source: Path, rows: Iterable[Row]) -> list[Problem]:
    """Add what is new; a label, group or season is worth more than none. Returns the contradictions."""
    problems = []
    for row in rows:
        first, known = taken.setdefault(row.sha256, (source, row))
        better = row if row.target and not known.target else known
        for what in ("target", "split", "group", "season"):
            one, other = getattr(known, what), getattr(row, what)
            if one and other and one != other:
                wrong = f"one photo has two {what}s: {known.path} ({one}) and {row.path} ({other})"
                where = " and ".join(dict.fromkeys((str(first), str(source))))
                problems.append(Problem(where, wrong, "keep one, in both files"))
            better = replace(better, **{what: one or other})
        taken[row.sha256] = (first if better.path == known.path else source), better
    return problems


def _said(read: Sequence[tuple[Path, Manifest]], joined: Manifest) -> list[str]:
    said = []
    if copies := sum(len(manifest.rows) for _, manifest in read) - len(joined.rows):
        said.append(f"{copies} photos stand in several of them, and are taken once")
    for source, manifest in read:
        if not joined.numeric and (lacking := sorted(set(joined.classes) - set(manifest.classes))):
            said.append(f"{source} holds no photo of {', '.join(lacking)}")
        if timeless := sum(not row.season for row in manifest.rows):
            said.append(f"{timeless} photos of {source} have no season")
    return said


def _counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    found = Counter((row.season or "no season", row.split) for row in manifest.rows)
    return {name: {split: found[name, split] for split in SPLITS} for name in sorted({name for name, _ in found})}
