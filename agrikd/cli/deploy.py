"""What a board needs before it has agrikd."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agrikd import console
from agrikd.cli._options import AsJson, show


def register(app: typer.Typer) -> None:
    """Add these verbs."""
    deploy = typer.Typer(no_args_is_help=True, help="Set up a board for agrikd: see deploy/jetson/README.md.")
    deploy.callback()(lambda: None)
    deploy.command("wheelhouse")(wheelhouse)
    app.add_typer(deploy, name="deploy")


def wheelhouse(
    out: Annotated[Path, typer.Argument(help="The folder to fill.", show_default=False)],
    python: Annotated[list[str] | None, typer.Option(help="Of the boards (default: 3.10 and 3.12).")] = None,
    platform: Annotated[
        str, typer.Option(help="The newest that the boards take: 2_35 is the glibc of JetPack 6.")
    ] = "manylinux_2_35_aarch64",
    wheel: Annotated[
        Path | None, typer.Option(help="agrikd's own wheel (default: made of this checkout).", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Gather the wheels from which boards install agrikd without internet; the same command goes on.

    Example: agrikd deploy wheelhouse wheels --python 3.10
    """
    from agrikd import extras
    from agrikd import wheelhouse as house

    extras.require(extras.WHEELHOUSE)  # before minutes of downloads
    boards = [house.Board(one, platform) for one in dict.fromkeys(python or ("3.10", "3.12"))]
    made = house.make(out, boards, wheel)
    said = {"folder": str(out), "fetched": made.fetched, "kept": made.kept, "size_bytes": made.size_bytes}
    rows = [(name, f"{(out / name).stat().st_size:,}") for name in sorted(made.files)]
    show(as_json, {**said, "files": made.files}, str(out), ("wheel", "bytes"), rows)
    console.say(f"{out}: {made.size_bytes / 1e6:.0f} MB, {made.fetched} wheels fetched, {made.kept} were there")
