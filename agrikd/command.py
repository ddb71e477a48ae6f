"""How a command line ends: with a message and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from agrikd import console, extras, files
from agrikd.errors import AgriKDError

INTERRUPTED = 130


class Group(TyperGroup):
    """A user's mistake is a message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with files.storage_errors(), _missing_extras():
                return super().invoke(ctx)
        except AgriKDError as error:
            console.complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.complain(
                "interrupted; what was finished is kept\n    → the same command goes on (distill: --resume)"
            )
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _missing_extras() -> Iterator[None]:
    """An import of what an extra brings ends as a `MissingExtraError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (known := extras.of(error)) is None:
            raise
        raise known from None
