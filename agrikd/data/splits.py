"""Who learns and who judges: splits, low-data subsets and folds, from a manifest and a seed alone.

What must not be torn apart (one plant, one plot, one photo in two copies) is kept together. Nothing depends
on the order of the rows: they are drawn by a hash of the seed and the photo.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agrikd.data.manifest import NOT_A_PLANT, SPLITS, Manifest, Row
from agrikd.errors import InputError, Problem

_RANGES = 5


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together: how many of each class, and the rank that decides who is drawn first."""

    rows: tuple[int, ...]
    classes: Counter[str]
    rank: tuple[str, str]


def stratified(
    manifest: Manifest, shares: Mapping[str, float], seed: int, together: Sequence[tuple[str, str]] = ()
) -> Manifest:
    """Assign a split to every row, of each class as near to `shares` as its groups allow.

    shares: of each split, together 1, e.g. {"train": 0.7, "val": 0.1, "test": 0.2}. Rows of one group, copies
    (equal sha256) and the pairs of paths in `together` stay together. A row without a label goes to train, the only
    split that may hold it; where its group went to val or test it is left out of the result, since there it would
    give the test away.
    Rows of `NOT_A_PLANT` go to val and test only, and whatever shares a group with one goes with it.
    Raises `InputError` naming each class that cannot have a row in every split with a share above 0.
    """
    if not set(shares) <= set(SPLITS) or min(shares.values(), default=0) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares are {dict(shares)}, expected shares of {', '.join(SPLITS)} that sum to 1")
    wanted = {split: shares[split] for split in SPLITS if shares.get(split, 0) > 0}
    units = [unit for unit in _units(manifest.rows, seed, together) if unit.classes]
    if len(wanted) == 1 and "train" in wanted and (strange := _totals(units).get(NOT_A_PLANT)):
        wrong = f"has {strange} rows, and there is no val or test to hold them"
        raise InputError(Problem(f"class {NOT_A_PLANT!r}", wrong, "give val or test a share, or take them out"))
    quotas: dict[tuple[str, str], float] = {}
    for name, total in _totals(units).items():
        allowed = {split: share for split, share in wanted.items() if name != NOT_A_PLANT or split != "train"}
        quotas.update({(name, split): total * share / sum(allowed.values()) for split, share in allowed.items()})
    dealt = _deal(units, quotas)
    _require_all(units, dealt, tuple(wanted))
    split_of = {row: split for unit, split in zip(units, dealt, strict=True) for row in unit.rows}
    rows = [replace(row, split=split_of.get(i, "train")) for i, row in enumerate(manifest.rows)]
    return Manifest(tuple(row for row in rows if row.target is not None or row.split == "train"), manifest.root)


def by_season(
    manifest: Manifest,
    seasons: Mapping[str, str],
    val_share: float,
    seed: int,
    together: Sequence[tuple[str, str]] = (),
) -> Manifest:
    """Let whole seasons judge and the rest train; a group, copies and the pairs of `together` are never torn apart.

    seasons: the split (val or test) of each season that judges, e.g. {"2026": "test"}. val_share: how much of the
    rest goes to val, drawn as `stratified` draws; 0 for none. A row without a season goes where its group goes, else
    it trains; a picture of no plant without one goes to test. Left out of the result are rows without a label that
    would judge and, where no val share is asked for, pictures of no plant that would train.
    Raises `InputError` with all of `season_mistakes`, or those of `stratified` for the val share.
    """
    if not set(seasons.values()) <= {"val", "test"}:
        raise ValueError(f"the seasons go to {dict(seasons)}, expected val or test")
    if problems := season_mistakes(manifest, seasons, together):
        raise InputError(problems)
    rows = manifest.rows
    split_of, rest = {}, []
    for unit in _units(rows, seed, together):
        alone = "test" if set(unit.classes) == {NOT_A_PLANT} else "train"
        split = next(iter(_first_of_split(unit, rows, seasons)), alone)
        if split == "train":
            rest += [rows[i] for i in unit.rows]
        else:
            split_of.update({rows[i].path: split for i in unit.rows if rows[i].target is not None})
    if val_share:
        shares = {"train": 1 - val_share, "val": val_share}
        drawn = stratified(Manifest(tuple(rest), manifest.root), shares, seed, together).rows
        split_of.update({row.path: row.split for row in drawn})
    else:
        split_of.update({row.path: "train" for row in rest if row.target != NOT_A_PLANT})
    kept = tuple(replace(row, split=split_of[row.path]) for row in rows if row.path in split_of)
    return Manifest(kept, manifest.root)


def season_mistakes(
    manifest: Manifest, seasons: Mapping[str, str], together: Sequence[tuple[str, str]] = ()
) -> list[Problem]:
    """Why `by_season` cannot be: unknown seasons, what they would tear apart, empty splits, classes nobody learns."""
    rows = manifest.rows
    known = sorted({row.season for row in rows} - {""})
    mend = f"the seasons are {', '.join(known)}" if known else "no photo has a season: fill the column season"
    problems = [Problem(f"season {name!r}", "no photo has it", mend) for name in seasons if name not in known]
    plants: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for unit in _units(rows, 0, together):
        first = _first_of_split(unit, rows, seasons)
        plants[next(iter(first), "train")].update(unit.classes)
        if len(first) > 1:
            problems.append(_torn(*list(first.values())[:2]))
    if problems:
        return problems
    mend = "label more photos, or choose other seasons"
    empty = [split for split in sorted({"train", *seasons.values()}) if not plants[split].keys() - {NOT_A_PLANT}]
    problems = [Problem(f"split {split}", "would hold no labelled photo of a plant", mend) for split in empty]
    if "train" not in empty:
        mend = "let another season judge, or leave the class out"
        absent = [name for name in manifest.classes if name not in plants["train"]]
        problems += [Problem(f"class {name!r}", "no photo of it would be left in train", mend) for name in absent]
    return problems


def in_ranges(manifest: Manifest) -> Manifest:
    """The manifest with ranges for labels where these are numbers, each with a fifth of the photos; else itself.

    For what knows classes alone: to split by, to show, to count.
    """
    if not manifest.numeric:
        return manifest
    plain = [row.target is not None and row.target != NOT_A_PLANT for row in manifest.rows]
    values = np.array([float(str(row.target)) for row, known in zip(manifest.rows, plain, strict=True) if known])
    ends = np.unique(np.quantile(values, np.linspace(0, 1, _RANGES + 1)))
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(ends)]
    place = iter(np.clip(np.searchsorted(ends, values, "right") - 1, 0, len(names) - 1).tolist())
    rows = (replace(row, target=names[next(place)]) if k else row for row, k in zip(manifest.rows, plain, strict=True))
    return replace(manifest, rows=tuple(rows))


def about_numbers(manifest: Manifest) -> list[str]:
    """What is assumed of labels that are numbers, as a sentence."""
    if not manifest.numeric:
        return []
    return ["the labels are taken as numbers, not as names of classes: each range of them is split like a class"]


def subset(manifest: Manifest, labels: int | None, seed: int, *, by_class: bool = True) -> Manifest:
    """Hide all but n labels of each class (of all photos, where `by_class` is False): the low-data regime.

    None keeps the manifest as it is. The rows stay, as unlabelled rows of train. The rows of val count: they too were
    labelled by somebody, so a class has n − (its rows in val) labels left in train. The 5 labels of a seed are among
    its 10. The test rows are not touched. Raises `InputError` naming every class that has too few labels, or too many
    in val.
    """
    if labels is None:
        return manifest
    if labels < 1:
        raise ValueError(f"{labels} labels, expected 1 or more, or None for all")
    rows = manifest.rows

    def kind(index: int) -> str:
        return f"class {str(rows[index].target)!r}" if by_class else "data.labels"

    spent = Counter(kind(i) for i in manifest.indices("val", labelled=True))
    train: dict[str, list[int]] = {f"class {name!r}": [] for name in manifest.classes} if by_class else {}
    for index in manifest.indices("train", labelled=True):
        train.setdefault(kind(index), []).append(index)
    problems, kept = [], set()
    for name, indices in train.items():
        if spent[name] >= labels:
            wrong = f"{spent[name]} rows in val, which count: none of {labels} labels is left for train"
            problems.append(Problem(name, wrong, "move rows of val to train, or ask for more labels"))
        elif spent[name] + len(indices) < labels:
            wrong = f"{len(indices)} labelled rows in train and {spent[name]} in val, fewer than {labels}"
            problems.append(Problem(name, wrong, "label more photos, or ask for fewer"))
        ordered = sorted(indices, key=lambda i: _rank(rows[i], seed))
        kept.update(ordered[: labels - spent[name]])
    if problems:
        raise InputError(problems)
    hidden = set(manifest.indices("train", labelled=True)) - kept
    return Manifest(
        tuple(replace(row, target=None) if i in hidden else row for i, row in enumerate(rows)), manifest.root
    )


def strata(values: Sequence[float], groups: Sequence[str], size: int) -> NDArray[np.int64]:
    """Numbers as classes for `folds`: groups that are neighbours in their mean, `size` of them together.

    values, groups: [N]. The last stratum takes what is left over. Raises `InputError` for fewer groups than `size`.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < size:
        mend = f"use at most {len(names)} folds, or label more photos"
        raise InputError(Problem("folds", f"there are {len(names)} groups of photos for {size} folds", mend))
    means = np.bincount(place, np.asarray(values, np.float64)) / np.bincount(place)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(means, kind="stable")] = np.arange(len(names))
    return np.asarray(np.minimum(rank // size, len(names) // size - 1)[place], np.int64)


def kept_together(rows: Sequence[Row], together: Sequence[tuple[str, str]] = ()) -> NDArray[np.int64]:
    """[N]: rows of one group, copies (equal sha256) and pairs of paths, directly or through others, have one number."""
    unit_of = np.empty(len(rows), np.int64)
    for number, unit in enumerate(_units(rows, 0, together)):
        unit_of[list(unit.rows)] = number
    return unit_of


def folds(
    targets: Sequence[int] | Sequence[str] | NDArray[np.int64],
    k: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """The fold, 0 to k − 1, of each of N rows: every fold has about the same share of every class.

    groups [N]: rows of equal name stay in one fold; "" stands alone. Raises `InputError` naming each class with
    fewer than k rows (with groups: fewer than k groups), since each fold must hold all classes.
    """
    if k < 2 or not len(targets):
        raise ValueError(f"{k} folds of {len(targets)} rows: expected 2 folds or more, and rows")
    if groups is not None and len(groups) != len(targets):
        raise ValueError(f"there are {len(groups)} groups and {len(targets)} targets: expected one per row")
    names = list(groups) if groups is not None else [""] * len(targets)
    rows = [Row(str(i), str(target), "train", str(names[i])) for i, target in enumerate(targets)]
    units = _units(rows, seed)
    found = Counter(name for unit in units for name in unit.classes)
    if few := {name: n for name, n in sorted(found.items()) if n < k}:
        what = "rows" if len(units) == len(rows) else "groups"
        mend = f"use at most {min(few.values())} folds, or label more photos"
        raise InputError(
            Problem(f"class {name!r}", f"has {n} {what}, too few for {k} folds", mend) for name, n in few.items()
        )
    quotas = {(name, str(fold)): total / k for name, total in _totals(units).items() for fold in range(k)}
    fold_of = np.empty(len(rows), np.int64)
    for unit, fold in zip(units, _deal(units, quotas), strict=True):
        fold_of[list(unit.rows)] = int(fold)
    return fold_of


def _units(rows: Sequence[Row], seed: int, together: Sequence[tuple[str, str]] = ()) -> list[_Unit]:
    """Rows joined by a common group, a common sha256 or a pair of paths, directly or through others; the order is
    drawn by `seed`. Paths of `together` may be no rows: those that are joined through one stay together."""
    parent = list(range(len(rows)))

    def top(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        for key in (("group", row.group), ("sha256", row.sha256)):
            if key[1]:
                parent[top(i)] = top(first.setdefault(key, i))
    at = {row.path: i for i, row in enumerate(rows)}
    for one, other in together:
        for path in (one, other):
            if path not in at:
                at[path] = len(parent)
                parent.append(at[path])
        parent[top(at[one])] = top(at[other])
    joined = defaultdict(list)
    for i in range(len(rows)):
        joined[top(i)].append(i)
    units = [
        _Unit(
            rows=tuple(members),
            classes=Counter(target for i in members if (target := rows[i].target) is not None),
            rank=min(_rank(rows[i], seed) for i in members),
        )
        for members in joined.values()
    ]
    return sorted(units, key=lambda unit: unit.rank)


def _first_of_split(unit: _Unit, rows: Sequence[Row], seasons: Mapping[str, str]) -> dict[str, Row]:
    """The splits that the seasons of a unit's rows give it, each with its first row; none where no season is known."""
    found: dict[str, Row] = {}
    for row in sorted((rows[i] for i in unit.rows), key=lambda row: row.path):
        if row.season:
            found.setdefault(seasons.get(row.season, "train"), row)
    return found


def _torn(one: Row, other: Row) -> Problem:
    mend = "let both seasons judge, or correct the season"
    if one.group and one.group == other.group:
        wrong = f"stands in the seasons {one.season} and {other.season}; see {one.path} and {other.path}"
        return Problem(f"group {one.group!r}", wrong, mend)
    wrong = f"belong together (a group, a copy or a duplicate) and stand in the seasons {one.season} and {other.season}"
    return Problem(f"{one.path} and {other.path}", wrong, mend)


def _rank(row: Row, seed: int) -> tuple[str, str]:
    """A photo's place in the draw: by its content, so that neither the rows' order nor a renaming matters."""
    return hashlib.sha256(f"{seed}:{row.sha256 or row.path}".encode()).hexdigest(), row.path


def _totals(units: Iterable[_Unit]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for unit in units:
        totals.update(unit.classes)
    return dict(sorted(totals.items()))


def _deal(units: Sequence[_Unit], quotas: Mapping[tuple[str, str], float]) -> list[str]:
    """The part of each unit, so that each (class, part) comes near its quota.

    Iterative stratification (Sechidis et al. 2011) over groups: units of the rarest class first, large before
    small; each goes where a class of its own is still missing, else where most of its rows are still wanted
    (steepest descent on the squared distance to the quotas). Where every unit is one row, each quota is met but
    for rounding and for parts that would have been empty.
    """
    found = Counter(name for unit in units for name in unit.classes)
    totals, missing, wanted = _totals(units), set(quotas), dict(quotas)
    load = dict.fromkeys((part for _, part in quotas), 0)
    dealt = [""] * len(units)

    def order(at: int) -> tuple[int, int, tuple[str, str]]:
        return min(found[name] for name in units[at].classes), -len(units[at].rows), units[at].rank

    for at in sorted(range(len(units)), key=order):
        classes = dict(sorted(units[at].classes.items(), key=lambda item: (found[item[0]], item[0])))
        worth = {
            part: (
                [(name, part) in missing for name in classes],
                round(sum(n * wanted[name, part] / totals[name] for name, n in classes.items()), 9),
                -load[part],
            )
            for part in load
            if all((name, part) in quotas for name in classes)
        }
        best = dealt[at] = max(worth, key=lambda part: worth[part])
        load[best] += len(units[at].rows)
        for name, n in classes.items():
            missing.discard((name, best))
            wanted[name, best] -= n
    return dealt


def _require_all(units: Sequence[_Unit], dealt: Sequence[str], splits: Sequence[str]) -> None:
    """Raise one `InputError` naming every class that is absent from a split, and why it is."""
    holds = {(name, split) for unit, split in zip(units, dealt, strict=True) for name in unit.classes}
    groups = Counter(name for unit in units for name in unit.classes)
    problems = []
    for name, rows in _totals(units).items():
        lacking = [split for split in splits if (name, split) not in holds]
        if name == NOT_A_PLANT or not lacking:
            continue
        apart = f" in {groups[name]} groups that stay together" if groups[name] < rows else ""
        few = f"too few for {', '.join(splits)} (none left for {', '.join(lacking)})"
        wrong = f"has {rows} labelled row{'s' * (rows != 1)}{apart}: {few}"
        mend = "label more photos of it, ask for fewer splits, or leave the class out"
        mend += "; another seed may deal the groups better" if apart and groups[name] >= len(splits) else ""
        problems.append(Problem(f"class {name!r}", wrong, mend))
    if problems:
        raise InputError(problems)
