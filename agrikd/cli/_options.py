"""Options and output that several verbs share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agrikd import console
from agrikd.errors import InputError, Problem

if TYPE_CHECKING:
    from agrikd.grid import Plan

RecipeFile = Annotated[Path, typer.Argument(help="A recipe (YAML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="A Run folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, as in optim.steps=200.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CheckCache = Annotated[
    bool, typer.Option("--check-cache", help="Compute 1 % of what is stored of a teacher anew; stop if it differs.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]


def show(as_json: bool, value: Any, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The result on stdout: a table for people, or JSON for programs."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
    else:
        console.stdout.print(console.table(title, columns, rows))


def tell(as_json: bool, value: Any, words: str) -> None:
    """What was done: words for people on stderr, or JSON for programs on stdout."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
    else:
        console.say(words)


def runs_folder(recipe_file: Path, name: str) -> Path:
    """Where a recipe's Runs go unless --out says otherwise: runs/ beside the recipe."""
    return recipe_file.parent / "runs" / name


def with_flags(
    overrides: list[str] | None, teachers: list[Path] | None, alone: Path | None, override_gate: str | None
) -> tuple[str, ...]:
    """`distill`'s flags as overrides of the recipe; what --set says comes last."""
    flags = []
    if teachers:
        flags.append("teachers=" + json.dumps([{"run": str(path)} for path in teachers]))
    if alone:
        flags.append("gate.student_alone=" + json.dumps(str(alone)))
    if override_gate:
        flags.append("gate.override=" + json.dumps(override_gate))
    return (*flags, *(overrides or ()))


def grid_plan(seeds: int, methods: str, labels: str, students: str) -> Plan:
    """`compare`'s lists, each with commas between; labels are numbers or "all"."""
    from agrikd.grid import Plan

    numbers = []
    for text in _listed(labels):
        if text != "all" and not (text.isdecimal() and int(text)):
            raise InputError(Problem("--labels", f"{text!r} is no number of labels", "write numbers or all: 5,20,all"))
        numbers.append(0 if text == "all" else int(text))
    return Plan(seeds, _listed(methods) or None, tuple(numbers) or None, _listed(students) or None)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
