"""What a person sees while they wait and when it is done: progress with rate and ETA, tables, errors."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agrikd import ranks

T = TypeVar("T")
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)
"""Words go to stderr, results to stdout, so that `--json` can be piped."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


_live: Progress | None = None


@contextmanager
def _progress() -> Iterator[Progress]:
    """The one display, shared by jobs inside jobs; silent where stderr is no terminal, and in a study's workers."""
    global _live
    if _live is not None:
        yield _live
        return
    quiet = not sys.stderr.isatty() or multiprocessing.parent_process() is not None or not ranks.leads()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=quiet) as _live:
        try:
            yield _live
        finally:
            _live = None


@contextmanager
def job(what: str, total: int | None = None, done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and ETA; call back with how much is done and, where it became known, of how much."""
    with _progress() as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(completed: int, total: int | None = None) -> None:
            bar.update(task, completed=completed, total=total)

        try:
            yield advance
        finally:
            bar.remove_task(task)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate as a `job`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with job(what, total) as advance:
        for number, item in enumerate(items, start=1):
            yield item
            advance(number)


def say(text: str) -> None:
    """One line of words for the person at the terminal; of several ranks the first speaks."""
    if ranks.leads():
        with suppress(OSError, SystemExit):  # nobody may be left who reads
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
