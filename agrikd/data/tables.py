"""A table of text as people and spreadsheets write it: a line of columns, then a line for each thing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agrikd.errors import InputError, Problem, listed

COLUMN_NAMES = {
    "path": ("path", "file", "filename", "file_name", "image", "img", "image_path"),
    "target": ("label", "class", "target", "class_name"),
    "split": ("split", "set", "subset"),
    "group": ("group", "plant", "plant_id", "plot", "plot_id", "session"),
    "season": ("season",),
}
"""What a table may call each; the first that is there is taken, capitals do not matter."""


@dataclass(frozen=True)
class Table:
    """lines: where each stands, and its cells by column. problems: of the lines that cannot be read."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, dict[str, str]], ...]
    problems: tuple[Problem, ...]

    @property
    def repeated(self) -> list[str]:
        """What is wrong with a header that names a column twice; columns without a name are left aside."""
        times = Counter(name for name in self.header if name)
        return [f"has the column {name!r} {n} times" for name, n in times.items() if n > 1]


def read(text: str, where: str, delimiter: str = ",") -> Table:
    """Without the spaces around columns and cells, and without lines whose cells are all empty.

    Raises `InputError` where the header cannot be read.
    """
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    found: list[tuple[str, list[str]]] = []
    problems = []
    try:
        found.extend((f"{where}:{reader.line_num}", [cell.strip() for cell in line]) for line in reader)
    except csv.Error as error:
        mend = "look for a quote that is never closed"
        problems.append(Problem(f"{where}:{reader.line_num}", f"is not CSV ({error})", mend))
    if problems and not found:
        raise InputError(problems)
    (_, header), *rest = found or [(where, [])]
    lines = [(at, cells) for at, cells in rest if any(cells)]
    mend = f"they are {', '.join(header)}; quote one that holds a comma"
    wrong = f"does not have the header's {len(header)} fields"
    problems += [Problem(at, wrong, mend) for at, cells in lines if len(cells) != len(header)]
    whole = ((at, dict(zip(header, cells, strict=True))) for at, cells in lines if len(cells) == len(header))
    return Table(tuple(header), tuple(whole), tuple(problems))


def roles(path: Path, table: Table, chosen: Mapping[str, str]) -> dict[str, str]:
    """The table's column for each of `COLUMN_NAMES` that it has; the person's choice first. Raises `InputError` with
    all that is wrong with them."""
    header = table.header
    has, known = f"it has {listed(header)}", listed(list(COLUMN_NAMES))
    unknown = [role for role in chosen if role not in COLUMN_NAMES]
    problems = [Problem(str(path), f"{role!r} is nothing that a column says", f"expected {known}") for role in unknown]
    problems += [Problem(f"{path}:1", wrong, "name each column once") for wrong in table.repeated]
    problems += [Problem(f"{path}:1", f"has no column {name!r}", has) for name in chosen.values() if name not in header]
    took = {}
    for role, names in COLUMN_NAMES.items():
        fitting = [column for name in names for column in header if column.casefold() == name]
        if role in chosen or fitting:
            took[role] = chosen.get(role) or fitting[0]
        elif role in ("path", "target"):
            problems.append(Problem(f"{path}:1", f"has no column for the {role}", f"expected {listed(names)}; {has}"))
    if problems:
        raise InputError(problems)
    return took
