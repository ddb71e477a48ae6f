"""The command line: `agrikd VERB`. A file a group of verbs; heavy imports wait inside the verbs."""

from __future__ import annotations

import io
import sys

import typer

from agrikd import __version__, ranks
from agrikd.cli import data, deploy, doctor, field, lab, models, serve, ship
from agrikd.command import Group
from agrikd.errors import InputError, Problem

app = typer.Typer(
    cls=Group,
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


for group in (doctor, data, lab, models, ship, deploy, field, serve):
    group.register(app)


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name, or a table, that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
