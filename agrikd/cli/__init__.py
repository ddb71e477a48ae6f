"""The command line: `agrikd VERB`. A file a group of verbs; heavy imports wait inside the verbs."""

from __future__ import annotations

import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from agrikd import __version__, console, files, ranks
from agrikd.cli import data, doctor, lab, models, ship
from agrikd.errors import AgriKDError, InputError, Problem

INTERRUPTED = 130


class _Group(TyperGroup):
    """A user's mistake is a message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with files.storage_errors():
                return super().invoke(ctx)
        except AgriKDError as error:
            console.complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.complain(
                "interrupted; what was finished is kept\n    → the same command goes on (distill: --resume)"
            )
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    help="Distil large teachers into small students on small plant datasets. Start with: agrikd demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agrikd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    verb = context.invoked_subcommand
    if ranks.world() > 1 and verb != "distill":
        wrong = f"agrikd {verb} does its work in one process, not {ranks.world()}"
        raise InputError(Problem("torchrun", wrong, f"start it alone: agrikd {verb} …"))


for group in (doctor, data, lab, models, ship):
    group.register(app)


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name, or a table, that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
