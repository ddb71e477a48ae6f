"""From what people have (folders of photos, a table of labels) to a Manifest, with every assumption said aloud.

A photo is known by its suffix and the sha256 of its bytes; it is not decoded, but a cut file is seen. All that is wrong
comes in one `InputError`; what is merely odd (other files, copies, a split that had to be drawn) in a sentence.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from agrikd import console, files, image
from agrikd.data import manifest as manifests
from agrikd.data import tables
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row
from agrikd.data.splits import about_numbers, in_ranges, stratified
from agrikd.errors import InputError, Problem

UNLABELLED = ("unlabelled", "unlabeled")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
PLACES = ("path", "images/path", "split/class/path", "class/path", "split/path", "season/split/class/path")
"""Where a table's photos may lie under its folder."""

TEST_SHARE, VAL_SHARE, VAL_FROM = 0.2, 0.1, 50
"""A val split is drawn only where each class keeps `VAL_FROM` rows beside the test rows: below that, labels are
too scarce to spend on selection, and out-of-fold predictions do its work."""


@dataclass
class _Found:
    """What a look at the source gave. A row's split is "" where the source does not say. table: it is one, whose labels
    may be numbers; those of folders are names."""

    root: Path
    table: bool = False
    rows: list[Row] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    hidden: int = 0
    loops: int = 0

    @property
    def manifest(self) -> Manifest:
        return Manifest(tuple(self.rows), self.root)

    @property
    def numeric(self) -> bool:
        return self.table and self.manifest.numeric

    def wrong(self, path: str, wrong: str, mend: str = "") -> None:
        self.problems.append(Problem(_shown(str(self.root / path)), wrong, mend))

    def skipped(self) -> list[str]:
        counts = {
            f"files that are no pictures: {_names(self.other_files)}": len(self.other_files),
            "hidden files or folders": self.hidden,
            "links back into a folder already seen": self.loops,
        }
        return [f"skipped {count} {what}" for what, count in counts.items() if count]


def from_folder(folder: Path, seed: int = 0) -> tuple[Manifest, list[str]]:
    """Read `folder/<class>/…`, `folder/<train, val or test>/<class>/…`, or photos in no class folder (unlabelled).

    A class folder may hold folders. `unlabelled` holds photos without a label, `not_a_plant` pictures that judge
    "not a plant I know". Given splits are kept; without a test split one is drawn by `seed`, stratified by class.
    Returns the manifest, its paths relative to `folder`, and the assumptions made, as sentences. One file is in
    memory at a time. Raises `InputError` with all problems.
    """
    return _finish(_walk(folder), seed)


def survey(folder: Path) -> Manifest:
    """What `from_folder` begins with: nothing hashed or left out; what is no photo is said.

    A photo whose split is not given stands in train, a picture of no plant in test, since train may not hold it.
    """
    _require_photos(found := _walk(folder))
    if found.problems:
        raise InputError(found.problems)
    for sentence in found.skipped():
        console.say(f"· {sentence}")
    rows = sorted(found.rows, key=lambda row: row.path)
    splits = (row.split or ("test" if row.target == NOT_A_PLANT else "train") for row in rows)
    return Manifest(tuple(replace(row, split=split) for row, split in zip(rows, splits, strict=True)), found.root)


def _walk(folder: Path) -> _Found:
    """The rows of `folder`, by its folders' names."""
    if not folder.is_dir():
        raise InputError(Problem(str(folder), "there is no such folder", "give the folder that holds the photos"))
    found = _Found(folder.resolve())
    folders, photos = _look(found, found.root)
    given = [name for name in folders if name.casefold() in SPLIT_NAMES]
    special = [name for name in folders if _label(name) in (None, NOT_A_PLANT)]
    if not given:
        _read_classes(found, PurePosixPath(), folders, photos)
    else:
        found.said.append(f"found the folders {_names(given)} and kept them as splits")
        _read_classes(found, PurePosixPath(), special, [])
        for name in given:
            _read_classes(found, PurePosixPath(name), *_look(found, found.root / name))
        astray = [name for name in folders if name not in (*given, *special) and _pictures(found, PurePosixPath(name))]
        for name in astray + photos:
            found.wrong(name, f"stands beside {_names(given)}", "move it into one of them, or into 'unlabelled'")
    return found


def from_csv(path: Path, seed: int = 0, columns: Mapping[str, str] | None = None) -> tuple[Manifest, list[str]]:
    """Read a table with a line a photo: its file and label and, where known, its split, group and season.

    columns: the table's own name of "path", "target", "split", "group" or "season", where it is none of
    `tables.COLUMN_NAMES`. Photos are looked for at `PLACES` under the table's folder, which is the manifest's. An empty
    label, or `unlabelled`, is no label. The rest is as in `from_folder`.
    """
    found = _Found(path.parent.resolve(), table=True)
    text = files.read_text(path)
    table = tables.read(text, str(path), max(",;\t", key=text.partition("\n")[0].count))
    took = tables.roles(path, table, columns or {})
    found.said.append("took the columns " + ", ".join(f"{name!r} as {role}" for role, name in took.items()))
    if left := [name for name in table.header if name not in took.values()]:
        found.said.append(f"left out the columns {_names(left)}")
    found.problems += table.problems
    places: Counter[str] = Counter()
    for where, line in table.lines:
        cells = {role: line[name] for role, name in took.items()}
        found.problems += [replace(problem, where=where) for problem in _read_line(found, cells, places)]
    found.said += [f"found {n} photos as {place}" for place, n in places.items() if place != "path"]
    if classes := found.manifest.classes:
        found.said.append(f"took the {len(classes)} labels as {_meaning(found, classes)}")
    return _finish(found, seed)


def _look(found: _Found, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the pictures in `folder`; hidden and other files are counted."""
    folders, pictures = [], []
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                found.hidden += 1
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.name.casefold().endswith(image.SUFFIXES) and (entry.is_file() or not entry.exists()):
                pictures.append(entry.name)  # a broken link too: hashing reports a photo that cannot be read
            else:
                found.other_files.append(entry.name)
    except OSError as error:
        found.problems.append(Problem(_shown(str(folder)), f"cannot be read ({error.strerror})"))
    return folders, pictures


def _pictures(found: _Found, folder: PurePosixPath) -> list[str]:
    """Paths of all pictures below `folder`. A link back into a folder already seen is counted, not followed."""
    seen = {_identity(found.root / parent) for parent in folder.parents}
    waiting, pictures = [folder], []
    while waiting:
        here = waiting.pop()
        identity = _identity(found.root / here)
        if identity in seen:
            found.loops += 1
            continue
        seen.add(identity)
        inside, names = _look(found, found.root / here)
        waiting += [here / name for name in inside]
        pictures += [str(here / name) for name in names]
    return pictures


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _read_classes(found: _Found, at: PurePosixPath, folders: Sequence[str], loose: Sequence[str]) -> None:
    """Add the photos of the class folders in `at`; photos in a folder without class folders have no label."""
    split = SPLIT_NAMES[at.name.casefold()] if at.name else ""
    classes, empty = [], []
    for name in folders:
        photos, label = _pictures(found, at / name), _label(name)
        found.rows += [Row(photo, label, split) for photo in photos]
        below = {PurePosixPath(photo).parts[len(at.parts) + 1] for photo in photos}
        if label and (deeper := sorted(folder for folder in below if folder.casefold() in SPLIT_NAMES)):
            mend = f"point to {found.root / at / name}, or to a table of labels"
            found.wrong(str(at / name), f"holds {_names(deeper)}: it is a dataset, not a class", mend)
        if not photos:
            empty.append(name)
        elif label not in (None, NOT_A_PLANT):
            classes.append(name)
    where = f" of {at}" if at.name else ""
    if classes:
        found.said.append(f"took the {len(classes)} sub-folders{where} as {_meaning(found, classes)}")
    if empty:
        found.said.append(f"left out the folders{where} without pictures: {_names(empty)}")
    for name in loose:
        if len(empty) < len(folders):
            mend = "move it into one of them, or into 'unlabelled'"
            found.wrong(str(at / name), "lies beside the class folders", mend)
        found.rows.append(Row(str(at / name), None, split))


def _meaning(found: _Found, labels: Sequence[str]) -> str:
    return "numbers" if found.numeric else f"classes: {_names(labels)}"


def _read_line(found: _Found, cells: Mapping[str, str], places: Counter[str]) -> list[Problem]:
    """Add a table's line as a row and count where its photo was found, or say what is wrong with it."""
    problems = []
    label, split = _label(cells["target"]), cells.get("split", "")
    if "split" in cells and split.casefold() not in SPLIT_NAMES and (split or label):
        problems.append(Problem("", f"the split is {split!r}", f"expected one of {_names(list(SPLIT_NAMES))}"))
    folders = {"images": "images", "season": cells.get("season", ""), "split": split, "class": cells["target"]}
    photo, looked = "", []
    for place in PLACES:
        above = [folders[part] for part in place.split("/")[:-1]]
        tried = Path(os.path.normpath(found.root.joinpath(*above, cells["path"].replace("\\", "/"))))
        if cells["path"] and all(above) and tried.is_relative_to(found.root):
            looked.append(tried.relative_to(found.root).as_posix())
            if is_file(tried):
                photo = looked[-1]
                places[place] += 1
                break
    if not photo:
        mend = f"looked in {found.root} for {_names(looked)}" if looked else f"paths start from {found.root}, and stay"
        problems.append(Problem("", f"the photo {cells['path']!r} is not there", mend))
    elif not photo.casefold().endswith(image.SUFFIXES):
        problems.append(Problem("", f"{photo!r} is no picture file", f"expected {_names(image.SUFFIXES)}"))
    if not problems:
        split = SPLIT_NAMES.get(split.casefold(), "")
        found.rows.append(Row(photo, label, split, cells.get("group", ""), cells.get("season", "")))
    return problems


def is_file(path: Path) -> bool:
    """Whether a file can be seen at any path that a person may write."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a folder that may not be entered, a null byte
        return False


def _finish(found: _Found, seed: int) -> tuple[Manifest, list[str]]:
    """Hash the photos, drop copies, draw the splits that were not given; raise all problems at once."""
    found.rows.sort(key=lambda row: row.path)
    _require_photos(found)
    _hash(found)
    _drop_copies(found)
    _check_rows(found)
    if found.numeric:
        found.said += about_numbers(found.manifest)
    else:
        _check_classes(found)
    try:
        _draw_splits(found, seed)
    except InputError as error:
        found.problems += error.problems
    if found.problems:
        raise InputError(found.problems)
    made = found.manifest
    if problems := manifests.check(made, str(found.root)):
        raise InputError(problems)
    if made.classes and not any(row.group for row in made.rows):
        found.said.append("no groups known: photos of one plant may stand in both train and test")
    return made, [*found.said, *found.skipped()]


def _require_photos(found: _Found) -> None:
    if not found.rows and not found.problems:
        found.wrong("", "holds no photos", f"expected {_names(image.SUFFIXES)}")


def _hash(found: _Found) -> None:
    for at, row in enumerate(console.track(found.rows, "read photos")):
        try:
            data = files.read_bytes(found.root / row.path)
            image.require_whole(data, _shown(str(found.root / row.path)))
            found.rows[at] = replace(row, sha256=files.sha256(data))
        except InputError as error:
            found.problems += error.problems


def _drop_copies(found: _Found) -> None:
    """Keep each photo once; one photo with two labels, or in two splits, groups or seasons, is a contradiction."""
    by_content = defaultdict(list)
    for row in found.rows:
        by_content[row.sha256 or row.path].append(row)
    kept, dropped = [], []
    for copies in by_content.values():
        best, *others = sorted(copies, key=lambda row: (row.target is None, row.path))
        for what in ("target", "split", "group", "season"):
            values = sorted({(getattr(row, what), row.path) for row in copies if getattr(row, what)})
            if len({value for value, _ in values}) > 1:
                each = " and ".join(f"{path} ({value})" for value, path in values)
                found.problems.append(Problem(str(found.root), f"one photo has two {what}s: {each}", "keep one"))
            elif values:
                best = replace(best, **{what: values[0][0]})
        kept.append(best)
        dropped += [row.path for row in others]
    found.rows[:] = sorted(kept, key=lambda row: row.path)
    if dropped:
        found.said.append(f"left out {len(dropped)} byte-identical copies of other photos: {_names(dropped)}")


def _check_rows(found: _Found) -> None:
    for row in found.rows:
        if row.target is None and row.split in ("val", "test"):
            found.wrong(row.path, f"has no label and stands in {row.split}", "label it, or move it to 'unlabelled'")
        if row.target == NOT_A_PLANT and row.split == "train":
            found.wrong(row.path, f"is {NOT_A_PLANT} and stands in train", "such pictures belong to val and test")
        for name in manifests.lost_in_csv(row):
            wrong = f"the name {_shown(name)!r} starts or ends with a space, or holds what a CSV cannot"
            found.wrong(row.path, wrong, "rename it")


def _check_classes(found: _Found) -> None:
    """Classes that make no classification: one alone, two of one name, one that nobody teaches."""
    classes = found.manifest.classes
    for names in manifests.alike(classes):
        found.wrong("", f"the classes {_names(names)} {manifests.ALIKE}", "give them one name")
    if len(classes) == 1:
        mend = "point to what holds the class folders; photos without a label belong into 'unlabelled'"
        found.wrong("", f"has one class only, {classes[0]!r}: there is nothing to tell apart", mend)
    taught = {row.target for row in found.rows if row.split in ("train", "")}.intersection(classes)
    if taught and (judged := [name for name in classes if name not in taught]):
        found.wrong("", f"train holds no photo of {_names(judged)}", "add some, or take the class out")


def _draw_splits(found: _Found, seed: int) -> None:
    """Give a split to the rows that have none; without a test split, draw it from all that is not val."""
    given = {row.split for row in found.rows} - {""}
    open_ones = ("", "train") if "test" not in given else ("",)
    ranged, kind = (in_ranges(found.manifest).rows, "range") if found.numeric else (found.rows, "class")
    kept = [row for row in ranged if row.split not in open_ones]
    pool = [row for row in ranged if row.split in open_ones]
    judging = {row.group for row in kept if row.split != "train"} - {""}
    drawn = [row for row in pool if row.target is not None or row.group not in judging]
    plants = Counter(row.target for row in drawn if row.target not in (None, NOT_A_PLANT))
    shares = {"train": 1 - TEST_SHARE, "test": TEST_SHARE}
    if "test" in given:
        shares = {"val": 0.5, "test": 0.5} if "val" in given else {"test": 1.0}
    elif "val" not in given and plants and min(plants.values()) * (1 - TEST_SHARE) >= VAL_FROM:
        shares = {"train": 1 - TEST_SHARE - VAL_SHARE, "val": VAL_SHARE, "test": TEST_SHARE}
    made = stratified(Manifest(tuple(drawn), found.root), shares, seed).rows
    split_of = {row.path: row.split for row in (*kept, *made)}
    found.rows[:] = [replace(row, split=split_of[row.path]) for row in found.rows if row.path in split_of]
    if "test" not in given and plants:
        more = f" and {VAL_SHARE:.0%} into val" if "val" in shares else ""
        found.said.append(f"no test split given: put {TEST_SHARE:.0%} of each {kind} into test{more} (seed {seed})")
    has = {row.split for row in found.rows if row.target}
    if "train" in has and "val" not in has:
        why = "none given" if "test" in given else f"fewer than {VAL_FROM} photos of a {kind} to learn from"
        found.said.append(f"no val split ({why}): train is kept whole, out-of-fold predictions do its work")
    if unlabelled := sum(row.target is None for row in found.rows):
        found.said.append(f"{unlabelled} photos have no label and stand in train")
    if lost := len(pool) - len(made):
        found.said.append(f"left out {lost} unlabelled photos whose group is in val or test")


def _label(name: str) -> str | None:
    if name.casefold() in ("", *UNLABELLED):
        return None
    return NOT_A_PLANT if name.casefold() == NOT_A_PLANT else name


def _names(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(map(_shown, names[:most])) + (f" and {more} more" if (more := len(names) - most) > 0 else "")


def _shown(name: str) -> str:
    """A file name as text that can be printed, whatever its bytes."""
    return name.encode(errors="backslashreplace").decode()
