"""What --fix does: a manifest without what makes figures untrue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from agrikd.check import KINDS, Checkup, by_group
from agrikd.data.duplicates import linked
from agrikd.data.manifest import SPLITS, Manifest, Row
from agrikd.errors import InputError, Problem

_LEFT_OUT = ("broken", "changed", "unfit", "contradiction")


def fix(checkup: Checkup) -> tuple[Manifest, list[str]]:
    """A manifest without what makes figures untrue, and what was left out, as sentences.

    Of copies, and of groups that share one, the part that judges is kept; a copy that is kept takes the group and
    season of those that are not. Labels and guesses are not touched: they want a person. Raises `InputError` where a
    class would be left without a photo to learn from.
    """
    manifest = checkup.manifest
    row_of = {row.path: row for row in manifest.rows}
    out: dict[str, str] = {}
    for finding in checkup.findings:
        if finding.kind in _LEFT_OUT:
            out |= dict.fromkeys(finding.paths, KINDS[finding.kind].title.lower())
    pairs = [pair.paths for pair in checkup.duplicates]
    copies = [[row_of[path] for path in paths if path not in out] for paths in linked(pairs)]
    groups = [(rows[0].path, row.path) for rows in by_group(manifest).values() for row in rows]
    for paths in linked([*pairs, *groups]):
        here = [row_of[path] for path in paths if path not in out]
        best = max((row.split for row in here), key=SPLITS.index, default="")
        torn = (row.path for row in here if row.split != best)
        out |= dict.fromkeys(torn, "photos of a group or picture that judges")
    for rows in filter(None, copies):
        first, *others = sorted(rows, key=_worth)
        row_of[first.path] = _with_names(first, others)
        again = (row.path for row in others if row.path not in out)
        out |= dict.fromkeys(again, "copies of a photo that is kept")
    photos = zip(manifest.rows, checkup.photos, strict=True)
    rest = (replace(row_of[row.path], sha256=photo.sha256) for row, photo in photos if row.path not in out)
    fixed = Manifest(tuple(rest), manifest.root)
    _require_taught(manifest, fixed)
    return fixed, [f"left out {n} {why}" for why, n in sorted(Counter(out.values()).items())]


def _worth(row: Row) -> tuple[int, bool, str]:
    """Of copies the first by this is kept: what judges, then what is labelled."""
    return -SPLITS.index(row.split), row.target is None, row.path


def _with_names(row: Row, copies: Sequence[Row]) -> Row:
    """The row with the group and the season that a copy of it has, where it has none."""

    def first(names: Iterable[str]) -> str:
        return next(filter(None, names), "")

    rows = (row, *copies)
    return replace(row, group=first(one.group for one in rows), season=first(one.season for one in rows))


def _require_taught(manifest: Manifest, fixed: Manifest) -> None:
    """Raise `InputError` where a class, or of numbers every one, is gone from train."""
    taught = {str(fixed.rows[i].target) for i in fixed.indices("train", labelled=True)}
    lost = sorted(set(manifest.classes) - taught)
    if manifest.numeric:
        lost = [] if taught else ["every number"]
    if lost:
        wrong = f"would be left without a photo in train: {', '.join(lost)}"
        mend = "mend what was found of them, or split the dataset anew: agrikd data split"
        raise InputError(Problem(str(manifest.root), wrong, mend))
