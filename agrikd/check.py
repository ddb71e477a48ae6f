"""Is a dataset fit to learn from? Every finding at once, each with its photos and the way out.

Small plant datasets are where results go wrong: the same leaf in train and test, wrong labels, one afternoon's light.
A grave finding means that a figure measured on this manifest would be untrue; the others are for a person to judge.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import odd_labels
from agrikd.data import duplicates, moments, shortcuts
from agrikd.data import manifest as manifests
from agrikd.data.duplicates import Pair
from agrikd.data.looks import BROKEN, ODD, Look, Looks
from agrikd.data.manifest import NOT_A_PLANT, SPLITS, Manifest, Row
from agrikd.data.shortcuts import Shortcut
from agrikd.data.sources import is_file, survey
from agrikd.data.splits import folds, kept_together
from agrikd.errors import InputError, Problem

FOLDS = 5
"""A class is judged from five photos (or groups) on."""
FEW_TO_JUDGE, UNEVEN = 20, 5.0
"""A class with fewer test photos has an interval wider than ±0.2; classes this many times larger than others rule."""


@dataclass(frozen=True)
class Finding:
    """One thing found: a kind of `KINDS`, the photos it is about (the first is the one to look at), a sentence."""

    kind: str
    paths: tuple[str, ...]
    said: str

    @property
    def grave(self) -> bool:
        return KINDS[self.kind].grave


@dataclass(frozen=True)
class Kind:
    """title: as a heading. grave: figures measured in spite of it are untrue. why, mend: for the person."""

    title: str
    grave: bool
    why: str
    mend: str


_LEAK = "What was learned by heart counts as understood: the test figure is too good."
_SPLIT = "agrikd data split MANIFEST --keep-together check.json, or leave one out with --fix"
KINDS = {
    "broken": Kind(
        "Broken files", True, "Training would stop at them.", "copy them again, shrink what is too large, or --fix"
    ),
    "changed": Kind(
        "Photos that changed", True, "The manifest was made of another file.", "make the manifest again: agrikd init"
    ),
    "unfit": Kind(
        "Photos that no manifest can hold",
        True,
        "agrikd refuses a manifest that names them.",
        "rename or move them as is said beside each, or --fix",
    ),
    "leaked copy": Kind("One picture in two splits", True, _LEAK, _SPLIT),
    "contradiction": Kind(
        "One picture, two labels",
        True,
        "One of the labels is wrong.",
        "keep the right one; --fix leaves out all of them",
    ),
    "straddling group": Kind(
        "One group in two splits", True, _LEAK, "agrikd data split MANIFEST, or --fix keeps its test part"
    ),
    "untaught class": Kind(
        "Classes that cannot be learned", True, "Train holds no photo of them.", "label some, or take the class out"
    ),
    "copy": Kind("The same picture twice in one split", False, "It counts twice.", "--fix keeps one"),
    "odd label": Kind(
        "Labels to look at",
        False,
        "A model that never saw the photo says another class, the surest first. It may be wrong: look.",
        "correct the label in the manifest, or leave it as it is",
    ),
    "straddling moment": Kind(
        "Photos of one moment in two splits",
        False,
        "By their times or names these may show one plant: then the test figure is too good.",
        "write the plant or session into the column 'group', then agrikd data split MANIFEST --by group",
    ),
    "short cut": Kind(
        "Short cuts", False, "The class can be told without looking at the plant.", "judge on photos of another place"
    ),
    "few": Kind("Few photos to judge by", False, "A figure for the class is a lottery.", "label more test photos"),
    "uneven": Kind("Uneven classes", False, "Accuracy hides the small ones.", "read macro-F1 and each class's recall"),
    "odd file": Kind(
        "Odd files", False, "They are read, but perhaps not as you think.", "save them as plain JPEG or PNG"
    ),
}


@dataclass(frozen=True)
class Checkup:
    """All that was found in `manifest`. label_model: who looked for label errors; not_checked: and why."""

    manifest: Manifest
    findings: tuple[Finding, ...]
    duplicates: tuple[Pair, ...]
    shortcuts: tuple[Shortcut, ...] = ()
    label_model: str = ""
    label_accuracy: float | None = None
    not_checked: tuple[str, ...] = ()
    photos: tuple[Look, ...] = field(default=(), repr=False)

    @property
    def honest(self) -> bool:
        """Whether a figure measured on this manifest can be believed, as far as was checked."""
        return not any(finding.grave for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Findings of each kind, the grave ones first."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def to_json(self) -> dict[str, Any]:
        return {
            "root": str(self.manifest.root),
            "photos": len(self.manifest.rows),
            "honest": self.honest,
            "counts": self.counts(),
            "findings": [{**asdict(one), "grave": one.grave} for one in self.findings],
            "duplicates": [asdict(pair) for pair in self.duplicates],
            "shortcuts": [{**asdict(one), "skill": one.skill} for one in self.shortcuts],
            "label_model": self.label_model,
            "label_accuracy": self.label_accuracy,
            "not_checked": list(self.not_checked),
        }


def open_data(path: Path, root: Path | None = None) -> Manifest:
    """The rows of a manifest, or of a folder (by its manifest.csv, else by its folders' names), as they stand.

    Raises `InputError` where no photo of a manifest is there, or a name is no text.
    """
    if path.is_dir() and (path / "manifest.csv").is_file():
        path = path / "manifest.csv"
    manifest = survey(path) if path.is_dir() else manifests.load(path, root)
    names = [str(manifest.root), *(row.path for row in manifest.rows)]
    strange = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if strange:
        raise InputError(Problem(repr(name), "the name is not UTF-8", "rename the file") for name in strange)
    if not path.is_dir() and not any(is_file(manifest.root / row.path) for row in manifest.rows):
        wrong = f"none of its {len(manifest.rows)} photos is in {manifest.root}"
        raise InputError(Problem(str(path), wrong, "name the folder that its paths start from with --root"))
    return manifest


def check(manifest: Manifest, *, look_at_labels: bool = True) -> Checkup:
    """Look for everything. Photos that were looked at before, and features that were computed, are not again."""
    with Looks(manifest.root) as looks:
        photos = looks.at([row.path for row in manifest.rows])
        found = [*_files(manifest, photos), *_groups(manifest), *_classes(manifest), *_moments(manifest, photos)]
        pairs = duplicates.find(looks, photos)
        found += _copies(manifest, pairs)
        known = Checkup(manifest, (), tuple(pairs), photos=tuple(photos))
        unit_of = _units(manifest, photos, pairs)
        rows = _foldable(manifest, photos, unit_of)
        if not len(rows):
            why = f"no two classes with {FOLDS} readable photos (or groups) each"
            why = "the labels are taken as numbers, not as names of classes" if manifest.numeric else why
            return replace(known, findings=_sorted(found), not_checked=(f"labels and short cuts: {why}",))
        target = _targets(manifest, rows)
        paths, fold = [manifest.rows[row].path for row in rows], _folds(manifest, rows, unit_of, FOLDS)
        told = shortcuts.look(looks.small(paths), target, fold)
    found += [_shortcut(one) for one in told if one.strong]
    known = replace(known, shortcuts=tuple(told))
    if not look_at_labels:
        return replace(known, findings=_sorted(found), not_checked=("labels: not asked for",))
    if not odd_labels.available():
        lacking = ("labels: they need ImageNet's features: pip install 'agrikd[pretrained]'",)
        return replace(known, findings=_sorted(found), not_checked=lacking)
    denied = odd_labels.look(manifest, photos, rows, target, _folds(manifest, rows, unit_of, odd_labels.FOLDS))
    names = sorted({str(manifest.rows[row].target) for row in rows})
    for one in denied.suspects:
        row = manifest.rows[rows[one.index]]
        said = f"labelled {row.target} ({one.own:.0%}); the model says {names[one.said]} ({one.other:.0%})"
        found.append(Finding("odd label", (row.path,), said))
    left_out = (denied.left_out,) if denied.left_out else ()
    known = replace(known, label_model=denied.model, label_accuracy=denied.accuracy, not_checked=left_out)
    return replace(known, findings=_sorted(found))


def _files(manifest: Manifest, photos: Sequence[Look]) -> list[Finding]:
    found = []
    for row, photo in zip(manifest.rows, photos, strict=True):
        for defect in photo.defects:
            kind = "broken" if defect in BROKEN else "odd file"
            found.append(Finding(kind, (row.path,), f"{defect}: {(BROKEN | ODD)[defect]}"))
        if row.sha256 and photo.sha256 and row.sha256 != photo.sha256:
            found.append(Finding("changed", (row.path,), "its sha256 is not the manifest's"))
        found += [Finding("unfit", (row.path,), f"{wrong}: {mend}") for wrong, mend in manifests.row_mistakes(row)]
        for name in manifests.lost_in_csv(row):
            said = f"the name {name!r} starts or ends with a space, or holds what a CSV cannot: rename it"
            found.append(Finding("unfit", (row.path,), said))
    return found


def _copies(manifest: Manifest, pairs: Sequence[Pair]) -> list[Finding]:
    row_of = {row.path: row for row in manifest.rows}
    found, contrary = [], set()
    for paths in duplicates.linked(pair.paths for pair in pairs):
        labels = sorted({target for path in paths if (target := row_of[path].target)})
        if len(labels) > 1:
            contrary.update(paths)
            weakest = min((pair for pair in pairs if pair.paths[0] in paths), key=lambda pair: pair.agreement)
            said = f"{_same(weakest)}, labelled {' and '.join(labels)}"
            found.append(Finding("contradiction", tuple(paths), said))
    for pair in pairs:
        one, other = (row_of[path].split for path in pair.paths)
        if one != other:
            found.append(Finding("leaked copy", pair.paths, f"{_same(pair)}, in {one} and {other}"))
        elif pair.paths[0] not in contrary:
            found.append(Finding("copy", pair.paths, f"{_same(pair)}, both in {one}"))
    return found


def _same(pair: Pair) -> str:
    return "the same bytes" if pair.kind == "exact" else f"the same picture (agreement {pair.agreement:.2f})"


def _groups(manifest: Manifest) -> list[Finding]:
    found = []
    for group, rows in by_group(manifest).items():
        if len(splits := sorted({row.split for row in rows}, key=SPLITS.index)) > 1:
            said = f"group {group!r}: {len(rows)} photos in {' and '.join(splits)}"
            found.append(Finding("straddling group", tuple(_one_a_split(rows)), said))
    return found


def _moments(manifest: Manifest, photos: Sequence[Look]) -> list[Finding]:
    row_of = {row.path: row for row in manifest.rows}
    found = []
    for moment in moments.guess(photos):
        rows = [row_of[path] for path in moment.paths]
        if len({row.split for row in rows}) > 1 and not all(row.group for row in rows):
            what = f"taken within a minute of each other, from {moment.name}" if moment.by == "time" else moment.name
            paths = tuple(_one_a_split(rows))
            found.append(Finding("straddling moment", paths, f"{len(rows)} photos: {what}"))
    return found


def _classes(manifest: Manifest) -> list[Finding]:
    if manifest.numeric:
        return []
    counts = {split: Counter(manifest.rows[i].target for i in manifest.indices(split, True)) for split in SPLITS}
    found = []
    for name in manifest.classes:
        train, test = counts["train"][name], counts["test"][name]
        if not train:
            found.append(Finding("untaught class", (), f"{name}: no labelled photo in train, {test} in test"))
        if counts["test"] and test < FEW_TO_JUDGE:
            found.append(Finding("few", (), f"{name}: {test} test photos, fewer than {FEW_TO_JUDGE}"))
    if taught := counts["train"].most_common():
        (most, n), (least, m) = taught[0], taught[-1]
        if n >= UNEVEN * m:
            found.append(Finding("uneven", (), f"train holds {n} photos of {most} and {m} of {least}"))
    return found


def _shortcut(one: Shortcut) -> Finding:
    seen = {"border": "the outer tenth of the photo", "colours": "the colours, wherever they are"}[one.sees]
    said = f"a linear model that sees only {seen} is right in {one.accuracy:.0%} (chance {one.chance:.0%})"
    return Finding("short cut", (), said)


def _units(manifest: Manifest, photos: Sequence[Look], pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """[N]: what must not vouch for itself in another fold, a group or copies, has one number."""
    rows = [replace(row, sha256=photo.sha256) for row, photo in zip(manifest.rows, photos, strict=True)]
    return kept_together(rows, [pair.paths for pair in pairs])


def _foldable(manifest: Manifest, photos: Sequence[Look], unit_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labelled readable rows of the classes with a unit for each of `FOLDS`; none if one class is left.

    Numbers are no classes: of them there is none.
    """
    if manifest.numeric:
        return np.array([], np.int64)
    known = [
        i
        for i, (row, photo) in enumerate(zip(manifest.rows, photos, strict=True))
        if photo.readable and row.target not in (None, NOT_A_PLANT)
    ]
    units = defaultdict(set)
    for i in known:
        units[manifest.rows[i].target].add(int(unit_of[i]))
    rows = [i for i in known if len(units[manifest.rows[i].target]) >= FOLDS]
    several = len({manifest.rows[i].target for i in rows}) > 1
    return np.array(rows if several else [], np.int64)


def _folds(manifest: Manifest, rows: NDArray[np.int64], unit_of: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The fold of each of the rows, `most` in all or one a unit of the smallest class."""
    targets = [str(manifest.rows[i].target) for i in rows]
    together = [str(unit) for unit in unit_of[rows]]
    units = Counter(target for target, _ in set(zip(targets, together, strict=True)))
    return folds(targets, min(most, *units.values()), 0, together)


def _targets(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    names = sorted({str(manifest.rows[row].target) for row in rows})
    return np.array([names.index(str(manifest.rows[row].target)) for row in rows])


def by_group(manifest: Manifest) -> dict[str, list[Row]]:
    """The rows of each group that is named."""
    found = defaultdict(list)
    for row in manifest.rows:
        if row.group:
            found[row.group].append(row)
    return found


def _one_a_split(rows: Iterable[Row]) -> list[str]:
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.split, row.path)
    return list(first.values())


def _sorted(found: Iterable[Finding]) -> tuple[Finding, ...]:
    order: Callable[[Finding], int] = lambda one: list(KINDS).index(one.kind)  # noqa: E731
    return tuple(sorted(found, key=order))
