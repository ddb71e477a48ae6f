"""From a manifest to one with new splits: what was asked for, every mistake in it at once, and what was assumed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agrikd import files
from agrikd.data import manifest as manifests
from agrikd.data.manifest import NOT_A_PLANT, SPLITS, Manifest
from agrikd.data.sources import is_file
from agrikd.data.splits import about_numbers, by_season, in_ranges, season_mistakes, stratified
from agrikd.errors import InputError, Problem

WAYS = ("stratified", "group", "season")
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}

Pairs = Sequence[tuple[str, str]]
"""Paths of two photos that show the same."""


@dataclass(frozen=True)
class SplitConfig:
    """How to split.

    by: "stratified" (each class by the shares), "group" (the same, and every labelled photo must name its group) or
    "season" (the named seasons judge whole, the rest trains). train, val, test: shares, together 1; None is that of
    `SHARES`. By season only `val` may be given, the share of what does not judge; None is 0.
    """

    by: str = "stratified"
    train: float | None = None
    val: float | None = None
    test: float | None = None
    test_seasons: tuple[str, ...] = ()
    val_seasons: tuple[str, ...] = ()
    seed: int = 0

    @property
    def shares(self) -> dict[str, float]:
        """Of each split; by season, of what the seasons leave."""
        if self.by == "season":
            return {"train": 1 - (self.val or 0), "val": self.val or 0}
        given = {"train": self.train, "val": self.val, "test": self.test}
        return {split: SHARES[split] if share is None else share for split, share in given.items()}

    @property
    def seasons(self) -> dict[str, str]:
        """The split of each season that judges."""
        return {**dict.fromkeys(self.val_seasons, "val"), **dict.fromkeys(self.test_seasons, "test")}

    def mistakes(self) -> list[Problem]:
        """What is wrong with it, whatever the manifest."""
        if self.by not in WAYS:
            return [Problem("--by", f"is {self.by!r}", f"expected one of {', '.join(WAYS)}")]
        given = {split: share for split in SPLITS if (share := getattr(self, split)) is not None}
        problems = [
            Problem(f"--{split}", f"is {share:g}", "a share from 0 to 1")
            for split, share in given.items()
            if not 0 <= share <= 1
        ]
        total = sum(self.shares.values())
        if not problems and abs(total - 1) > 1e-6:
            sum_of = " + ".join(f"{share:g}" for share in self.shares.values())
            mend = f"not given, they are {', '.join(f'{share:g}' for share in SHARES.values())}"
            problems.append(Problem("--train --val --test", f"{sum_of} is {total:g}, not 1", mend))
        elif not problems and self.shares["train"] <= 0:
            problems.append(Problem("--train", "is left no share: nothing would be learnt from", "give it one"))
        return problems + (self._season_mistakes(given) if self.by == "season" else self._other_mistakes())

    def _season_mistakes(self, given: dict[str, float]) -> list[Problem]:
        mend = "a season judges whole; of the rest, --val may take a share"
        problems = [Problem(f"--{split}", "has no meaning by season", mend) for split in given if split != "val"]
        if not self.test_seasons:
            problems.append(Problem("--test-season", "is missing", "name the season that judges"))
        if self.val and self.val_seasons:
            problems.append(Problem("--val --val-season", "are both given", "choose one"))
        both = [name for name in self.val_seasons if name in self.test_seasons]
        return problems + [Problem(f"season {name!r}", "is to be both val and test", "choose one") for name in both]

    def _other_mistakes(self) -> list[Problem]:
        flags = {"--test-season": self.test_seasons, "--val-season": self.val_seasons}
        return [Problem(flag, "is for seasons alone", "add --by season") for flag, names in flags.items() if names]


@dataclass(frozen=True)
class Resplit:
    """What was written. counts: photos of each class, by split."""

    manifest: Path
    counts: dict[str, dict[str, int]]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "manifest": str(self.manifest), "assumptions": list(self.assumptions)}

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [(name, *(str(counts[split]) for split in SPLITS)) for name, counts in self.counts.items()]


def resplit(
    source: Path,
    config: SplitConfig,
    out: Path | None = None,
    findings: Path | None = None,
    root: Path | None = None,
) -> Resplit:
    """Write the manifest `source` with new splits to `out` (default: `source`-split.csv beside it).

    findings: what `agrikd data check` wrote; its pairs of duplicates stay together. root: where the photos' paths
    start, by default the folder of `source`. The file at `out` must not be there, unless it is `source` itself.
    Raises one `InputError` with all that is wrong.
    """
    out = out or source.with_name(f"{source.stem}-split.csv")
    problems, before, pairs = config.mistakes(), None, None
    if out.exists() and out.resolve() != source.resolve():
        problems.append(Problem(str(out), "is there already", "choose another --out, or move it away"))
    try:
        labelled = manifests.load(source, root)
        before = in_ranges(labelled)
    except InputError as error:
        problems += error.problems
    try:
        pairs = read_pairs(findings) if findings else None
    except InputError as error:
        problems += error.problems
    if before:
        problems += _mistakes(before, config, pairs or (), str(source))
    if problems or not before:
        raise InputError(problems)
    after = draw(before, config, pairs or ())
    target = {row.path: row.target for row in labelled.rows}
    manifests.write(replace(after, rows=tuple(replace(row, target=target[row.path]) for row in after.rows)), out)
    said = [*about_numbers(labelled), *_assumptions(before, after, config), *_about_root(before, out)]
    said += _about_pairs(before, pairs, findings) if findings and pairs is not None else [_not_looked(source)]
    return Resplit(out, _counts(after), tuple(said))


def draw(manifest: Manifest, config: SplitConfig, together: Pairs = ()) -> Manifest:
    """The manifest with new splits, from its rows and the seed alone; the pairs of paths in `together` stay together.

    Raises one `InputError` with all that is wrong with the config and with the rows.
    """
    if problems := config.mistakes() + _mistakes(manifest, config, together, "the manifest"):
        raise InputError(problems)
    if config.by == "season":
        return by_season(manifest, config.seasons, config.val or 0, config.seed, together)
    return stratified(manifest, config.shares, config.seed, together)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The duplicates of a findings file; raises `InputError` where it is none."""
    found = files.read_json(path)
    duplicates = found.get("duplicates") if isinstance(found, dict) else None
    if not isinstance(duplicates, list) or not all(map(_is_pair, duplicates)):
        mend = "write it with: agrikd data check MANIFEST"
        raise InputError(Problem(str(path), "holds no list of duplicates, each with its two paths", mend))
    return [(one, other) for one, other in (item["paths"] for item in duplicates)]


def _is_pair(value: Any) -> bool:
    paths = value.get("paths") if isinstance(value, dict) else None
    return isinstance(paths, list) and len(paths) == 2 and all(isinstance(path, str) for path in paths)


def _mistakes(manifest: Manifest, config: SplitConfig, together: Pairs, where: str) -> list[Problem]:
    """What is wrong with the rows: what no new split mends, and what the way of splitting needs."""
    in_one_split = tuple(replace(row, split="train") for row in manifest.rows)
    problems = manifests.check(Manifest(in_one_split, manifest.root), where)
    if not manifest.classes:
        return [*problems, Problem(where, "no photo has a label: there is nothing to split", "fill the column target")]
    if config.by == "season":
        problems += season_mistakes(manifest, config.seasons, together)
    labelled = [row for row in manifest.rows if row.target not in (None, NOT_A_PLANT)]
    alone = sorted(row.path for row in labelled if not row.group)
    if config.by == "group" and alone:
        some = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
        wrong = f"{len(alone)} of {len(labelled)} labelled photos have no group: {some}"
        mend = "fill the column group with the plant, plot or photo session of each; else split --by stratified"
        problems.append(Problem(where, wrong, mend))
    return problems


def _assumptions(before: Manifest, after: Manifest, config: SplitConfig) -> list[str]:
    shares = ", ".join(f"{share:.0%} {split}" for split, share in config.shares.items() if share)
    rows, kept = before.rows, {row.path for row in after.rows}
    left_out = [row for row in rows if row.path not in kept]
    labelled = [row for row in rows if row.target not in (None, NOT_A_PLANT)]
    said = [f"the splits that stood there are not kept; drawn anew, of each class {shares} (seed {config.seed})"]
    if config.by == "season":
        whole = "; ".join(f"season {name} is {split}, whole" for name, split in config.seasons.items())
        said = [f"the splits that stood there are not kept; {whole}; of the rest {shares} (seed {config.seed})"]
    if config.by == "season" and (timeless := sum(not row.season for row in labelled)):
        said.append(f"{timeless} labelled photos have no season: they train, unless their group or a copy judges")
    if not any(row.group for row in labelled):
        said.append("no groups known: photos of one plant may stand in both train and test")
    elif alone := sum(not row.group for row in labelled):
        said.append(f"{alone} labelled photos have no group: each stands for a plant of its own")
    if unknown := sum(not row.sha256 for row in rows):
        said.append(f"{unknown} photos have no sha256: copies of them are not known")
    if unlabelled := sum(row.target is None for row in left_out):
        said.append(f"left out {unlabelled} photos without a label whose group, copy or season judges")
    if others := sum(row.target == NOT_A_PLANT for row in left_out):
        said.append(f"left out {others} pictures of no plant, which train may not hold: --val gives them a place")
    for split, wanted in (("val", bool(config.shares.get("val") or config.val_seasons)), ("test", True)):
        absent = set(before.classes) - {row.target for row in after.rows if row.split == split}
        if wanted and absent:
            said.append(f"{split} holds no photo of {', '.join(sorted(absent))}")
    return said


def _about_root(manifest: Manifest, out: Path) -> list[str]:
    if not any(is_file(manifest.root / row.path) for row in manifest.rows):
        return [f"no photo is in {manifest.root}: name the folder that the paths start from with --root"]
    if out.parent.resolve() != manifest.root:
        return [f"the photos' paths still start from {manifest.root}: name it as data.root in recipes"]
    return []


def _about_pairs(manifest: Manifest, pairs: Pairs, findings: Path) -> list[str]:
    known = {row.path for row in manifest.rows}
    kept = sum(one in known and other in known for one, other in pairs)
    said = [f"{kept} pairs of duplicates in {findings} stay together"]
    if lost := len({path for pair in pairs for path in pair} - known):
        said.append(
            f"{lost} photos named in {findings} are not in the manifest: what is paired with one stays together"
        )
    return said


def _not_looked(source: Path) -> str:
    return f"duplicates were not looked for: agrikd data check {shlex.quote(str(source))}"


def _counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    found = Counter((row.target, row.split) for row in manifest.rows)
    names = {name: name for name in (*manifest.classes, NOT_A_PLANT)} | {"no label": None}
    counts = {said: {split: found[name, split] for split in SPLITS} for said, name in names.items()}
    return {said: each for said, each in counts.items() if sum(each.values())}
