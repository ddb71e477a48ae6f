"""The errors a user may meet, and the exit code of each.

AgriKDError            1   something a user can mend; never a traceback
├── InputError         2   a file, recipe, manifest or image is wrong: every mistake in one report
├── MissingExtraError  3   an optional package is not installed
├── GateError          4   the teacher is not fit to teach
├── ParityError        5   an exported model does not answer as its source does
├── TrainingError      6   training cannot go on (a non-finite loss, a checkpoint of another recipe)
├── StorageError       7   the disk is full, or the place cannot be written
├── DeviceError        8   a device, its accelerator or the link to it does not do what was asked
├── TrustError         9   who signed it is not trusted, or it is not for this device, or older than what is there
└── RolledBackError   10   a release was tried and not kept; the one before it serves
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


class AgriKDError(Exception):
    """Something a user can mend. `str()` is what is shown; `exit_code` is the process's."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands (file, row, key), what is wrong, and how to mend it."""

    where: str
    wrong: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.said}\n    → {self.mend}" if self.mend else self.said

    @property
    def said(self) -> str:
        return f"{self.where}: {self.wrong}"


class InputError(AgriKDError):
    """What the user gave is wrong. Carries every mistake found, not only the first; shows what fits a screen."""

    exit_code = 2
    most_shown = 12

    def __init__(self, problems: Iterable[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        lines = []
        for mend, alike in groupby(self.problems[: self.most_shown], lambda problem: problem.mend):
            lines += [problem.said for problem in alike]
            lines += [f"    → {mend}"] if mend else []
        if (more := len(self.problems) - self.most_shown) > 0:
            lines.append(f"… and {more} more like these")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # a study's worker sends it to the parent


class MissingExtraError(AgriKDError):
    """An optional package is missing; says which extra brings it."""

    exit_code = 3

    def __init__(self, package: str, extra: str) -> None:
        self.missing = package, extra
        super().__init__(f"{package} is not installed\n    → pip install 'agrikd[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), self.missing


class GateError(AgriKDError):
    """The teacher was refused; the reasons are in the message."""

    exit_code = 4


class ParityError(AgriKDError):
    """The exported model and its source disagree; nothing was written."""

    exit_code = 5


class TrainingError(AgriKDError):
    """Training cannot go on."""

    exit_code = 6


class StorageError(AgriKDError):
    """The disk is full, or the place cannot be written; nothing half-written was left."""

    exit_code = 7


class DeviceError(AgriKDError):
    """A device, its accelerator or the link to it does not do what was asked; the message has its own words."""

    exit_code = 8


class TrustError(AgriKDError):
    """What is offered may not be used here: its signatures, its age or its device are wrong."""

    exit_code = 9


class RolledBackError(AgriKDError):
    """A release was tried and not kept; the reason is in the message, and the release before it serves."""

    exit_code = 10


def listed(names: Sequence[object]) -> str:
    """All of a few names; the ends of many, such as a number's bins."""
    few = names if len(names) <= 40 else (*names[:2], "…", names[-1])
    return ", ".join(map(str, few))
