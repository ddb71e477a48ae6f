"""What a person sees while they wait and when it is done: progress with rate and ETA, tables, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as Eta
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)
"""Words go to stderr, results to stdout, so that `--json` can be piped."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


def progress() -> Progress:
    """A progress display; silent where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        Eta(),
        console=stderr,
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def track(items: Sequence[T] | Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Iterate with a progress bar; `done` of `total` were done before (a resumed job)."""
    total = total if total is not None else len(items) + done if isinstance(items, Sequence) else None
    with progress() as bar:
        task = bar.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for work that calls back with (done, total)."""
    with progress() as bar:
        line = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def say(text: str) -> None:
    """One line of words for the person at the terminal."""
    stderr.print(text, soft_wrap=True, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table; cells that are figures stand right, words left. Nothing in a cell is read as markup."""
    cells = [[Text(cell, justify="right" if cell[:1].isdigit() else "left") for cell in row] for row in rows]
    made = Table(title=Text(title), title_justify="left")
    for column in columns:
        made.add_column(Text(column), overflow="fold")
    for row in cells:
        made.add_row(*row)
    return made


def complain(text: str) -> None:
    """An error for a person: what, where, the way out."""
    stderr.print(Text("error: ", style="bold red") + Text(text), soft_wrap=True)
