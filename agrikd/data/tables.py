"""A table of text as people and spreadsheets write it: a line of columns, then a line for each thing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass

from agrikd.errors import InputError, Problem


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
