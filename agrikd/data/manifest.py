"""The manifest: a CSV that names every photo, its label, its split and what must not be torn apart.

Columns: path (relative to the CSV's folder), target (empty: no label), split (train, val or test),
group (plant, plot or photo session; optional), season (optional), sha256 (of the file), source (where it came
from). A row without a label is a first-class row of `train`: a teacher can still speak about it.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize

from agrikd import files, image
from agrikd.data import tables
from agrikd.errors import InputError, Problem
from agrikd.types import Image, Scale

SPLITS = ("train", "val", "test")
_MOST_NUMBERED_CLASSES = 20
"""Classes may be called 0 to 19; more numbers than that are measurements."""
NOT_A_PLANT = "not_a_plant"
"""A reserved target: pictures of no plant the model knows. Only val and test may hold them; they judge the
"not a plant I know" score and are no class of the task."""
ALIKE = "differ only in capitals, or in how an accent is stored"
"""What is wrong with names that `alike` puts together."""


@dataclass(frozen=True)
class Row:
    """One photo. `target` is None where nobody has labelled it."""

    path: str
    target: str | None
    split: str
    group: str = ""
    season: str = ""
    sha256: str = ""
    source: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
REQUIRED = ("path", "target", "split")


@dataclass(frozen=True)
class Manifest:
    """Rows in a fixed order (a row's index is its identity in a batch); their paths start from `root`."""

    rows: tuple[Row, ...]
    root: Path

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels in sorted order, the reserved one left out."""
        return tuple(sorted({row.target for row in self.rows if row.target and row.target != NOT_A_PLANT}))

    @cached_property
    def numeric(self) -> bool:
        """Whether the labels are numbers rather than names of classes: all of them are, and there are many."""
        return len(self.classes) > _MOST_NUMBERED_CLASSES and all(math.isfinite(_number(name)) for name in self.classes)

    @cached_property
    def digest(self) -> str:
        """Changes when any photo, label, split or group does; not when the folder moves."""
        return files.digest([asdict(row) for row in self.rows])

    def file(self, index: int) -> Path:
        return self.root / self.rows[index].path

    def identity(self, index: int) -> str:
        """What a cache knows a photo by: its sha256, else where it lies, its size and when it last changed."""
        path, row = self.file(index), self.rows[index]
        if row.sha256 or not path.is_file():
            return row.sha256 or str(path)
        found = path.stat()
        return f"{path}:{found.st_size}:{found.st_mtime_ns}"

    def photo(self, index: int) -> Image:
        """The row's photo; raises `InputError` where it cannot be read, or is not the one the manifest was made of."""
        path, row = self.file(index), self.rows[index]
        data = files.read_bytes(path)
        if row.sha256 and files.sha256(data) != row.sha256:
            mend = "if the change is meant, make the manifest again with: agrikd init"
            raise InputError(Problem(str(path), "has changed since the manifest was made (sha256)", mend))
        return image.decode(data, str(path))

    def indices(self, split: str, labelled: bool | None = None) -> tuple[int, ...]:
        """Rows of a split; `labelled` True or False keeps those with or without a label of the task."""

        def wanted(row: Row) -> bool:
            known = row.target is not None and row.target != NOT_A_PLANT
            return row.split == split and (labelled is None or known == labelled)

        return tuple(index for index, row in enumerate(self.rows) if wanted(row))

    def others(self, split: str) -> tuple[int, ...]:
        """Rows of a split that show no plant of the task."""
        return tuple(i for i, row in enumerate(self.rows) if row.split == split and row.target == NOT_A_PLANT)


def read(path: Path, root: Path | None = None) -> Manifest:
    """Read a manifest to learn from: `load` it, and refuse what would make results dishonest (see `check`).

    The photos' paths start from `root`, by default the CSV's folder.
    """
    return _read(path, root, check)


def load(path: Path, root: Path | None = None) -> Manifest:
    """Read a manifest to look at, or to split anew: mistakes of form are refused, contradictions are not."""
    return _read(path, root, lambda manifest, where: _repeated(manifest.rows, where))


def _read(path: Path, root: Path | None, found: Callable[[Manifest, str], list[Problem]]) -> Manifest:
    """Every mistake in one `InputError`, with its line; `found` says what is wrong with the rows together."""
    table = tables.read(files.read_text(path, "make one with: agrikd init FOLDER"), str(path))
    said = [f"lacks the column {name!r}" for name in REQUIRED if name not in table.header]
    said += [f"has an unknown column {name!r}" for name in table.header if name not in COLUMNS]
    if said := said + table.repeated:
        raise InputError(Problem(f"{path}:1", text, f"the columns are {', '.join(COLUMNS)}") for text in said)
    rows, problems = [], list(table.problems)
    for where, cells in table.lines:
        rows.append(_row(cells))
        problems += [Problem(where, wrong, mend) for wrong, mend in row_mistakes(rows[-1])]
    if not rows and not problems:
        problems.append(Problem(str(path), "has no rows", "make one with: agrikd init FOLDER"))
    manifest = Manifest(tuple(rows), (root or path.parent).resolve())
    problems += found(manifest, str(path))
    if problems:
        raise InputError(problems)
    return manifest


def write(manifest: Manifest, path: Path) -> None:
    """Check, then `save`."""
    if problems := check(manifest, str(path)):
        raise InputError(problems)
    save(manifest, path)


def save(manifest: Manifest, path: Path) -> None:
    """Write as CSV, whole or not at all, contradictions and all."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "target": row.target or ""} for row in manifest.rows)
    files.write_text(path, out.getvalue())


def check(manifest: Manifest, where: str) -> list[Problem]:
    """What would make results dishonest: one photo or one group in two splits, one photo with two labels."""
    rows = manifest.rows
    problems = _repeated(rows, where)
    for name, key in (("group", lambda row: row.group), ("sha256", lambda row: row.sha256)):
        for value, photos in _photos_by(rows, key, lambda row: row.split).items():
            if len(photos) > 1:
                wrong = f"{name} {value!r} stands in {' and '.join(sorted(photos))}"
                mend = f"a plant or photo may be in one split only; see {' and '.join(photos.values())}"
                problems.append(Problem(where, wrong, mend))
    for value, photos in _photos_by(rows, lambda row: row.sha256, lambda row: row.target or "").items():
        if len(labels := sorted(photos.keys() - {""})) > 1:
            wrong = f"the same photo (sha256 {value[:12]}…) is labelled {' and '.join(labels)}"
            mend = f"keep the right label; see {' and '.join(photos[label] for label in labels)}"
            problems.append(Problem(where, wrong, mend))
    return problems


def alike(names: Iterable[str]) -> list[list[str]]:
    """Names that a person takes for one, each such lot together."""
    found = defaultdict(list)
    for name in names:
        found[normalize("NFC", name).casefold()].append(name)
    return [same for same in found.values() if len(same) > 1]


def numbers_of(manifest: Manifest, indices: Iterable[int], scale: Scale, where: str) -> list[float]:
    """The labels of rows as numbers; raises one `InputError` naming each that is none, or none of the scale."""
    found, problems = [], []
    for index in indices:
        row = manifest.rows[index]
        value = _number(str(row.target))
        if not scale.low <= value <= scale.high:
            wrong = f"the label is {row.target!r}, expected a number from {scale.low:g} to {scale.high:g}"
            problems.append(Problem(f"{where}: {row.path}", wrong, "mend the label, or task.low and task.high"))
        found.append(value)
    if problems:
        raise InputError(problems)
    return found


def _number(text: str) -> float:
    """NaN, which lies in no range, where the text is no number; 1_0, which Python takes, is none."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def require_files(manifest: Manifest, where: str) -> None:
    """Raise one `InputError` naming every photo that is not there."""
    absent = [row.path for i, row in enumerate(manifest.rows) if not manifest.file(i).is_file()]
    if absent:
        mend = f"paths start from {manifest.root}"
        raise InputError(Problem(where, f"the photo {path} is not there", mend) for path in absent)


def _row(cells: dict[str, str]) -> Row:
    path, target, split = (cells[name] for name in REQUIRED)
    rest = {name: cell for name, cell in cells.items() if name not in REQUIRED}
    if "sha256" in rest:
        rest["sha256"] = rest["sha256"].lower()  # some tools print it in capitals
    return Row(path and PurePosixPath(path).as_posix(), target or None, split, **rest)  # ./a and a are one file


def lost_in_csv(row: Row) -> list[str]:
    """Its names that a CSV would not give back: reading strips them, and UTF-8 knows no lone surrogates."""
    names = (row.path, row.target or "", row.group, row.season)
    return [name for name in names if name != name.strip() or any(category(one) in ("Cc", "Cs") for one in name)]


def row_mistakes(row: Row) -> list[tuple[str, str]]:
    """What is wrong with a row by itself, each with the way out."""
    mistakes = []
    if not row.path:
        mistakes.append(("has no path", ""))
    elif Path(row.path).is_absolute() or ".." in Path(row.path).parts:
        mistakes.append((f"the path {row.path!r} leaves the manifest's folder", "paths are relative to the CSV"))
    if row.split not in SPLITS:
        mistakes.append((f"the split is {row.split!r}", f"expected one of {', '.join(SPLITS)}"))
    if row.target is None and row.split in ("val", "test"):
        mistakes.append((f"a row of {row.split} has no label", "rows without a label belong to train"))
    if row.target == NOT_A_PLANT and row.split == "train":
        mistakes.append((f"the target {NOT_A_PLANT!r} stands in train", "use it in val and test only"))
    return mistakes


def _repeated(rows: Iterable[Row], where: str) -> list[Problem]:
    seen: dict[str, int] = defaultdict(int)
    for row in rows:
        seen[row.path] += 1
    return [Problem(where, f"the path {path} stands {n} times") for path, n in seen.items() if n > 1]


def _photos_by(
    rows: Iterable[Row], key: Callable[[Row], str], value: Callable[[Row], str]
) -> dict[str, dict[str, str]]:
    """The first photo of each value found beside a key."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if key(row):
            found[key(row)].setdefault(value(row), row.path)
    return found
