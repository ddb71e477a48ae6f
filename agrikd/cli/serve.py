"""The verb of the machine that devices speak to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agrikd import console

_TOKEN = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "agrikd" / "serve.token"


def register(app: typer.Typer) -> None:
    """Add this verb."""
    app.command()(serve)


def serve(
    teacher: Annotated[
        Path | None, typer.Option(help="A Run folder or an .onnx file: asked for second opinions.", show_default=False)
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            envvar="AGRIKD_HUB",
            help="A folder, or a database's URL as postgresql://user@host/name: keeps what devices record.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="The pictures' folder (default: in the hub's folder).")] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8700,
    token_file: Annotated[Path, typer.Option(help="Made where it is not there; devices need a copy.")] = _TOKEN,
    cert: Annotated[Path | None, typer.Option(help="A certificate (PEM), for TLS without a proxy.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
) -> None:
    """Answer devices: a teacher's second opinion, a hub for their records, or both; until Ctrl-C.

    Example: agrikd serve --teacher runs/teacher --hub records
    """
    from agrikd import serve as serving
    from agrikd import web
    from agrikd.errors import InputError, Problem
    from agrikd.hub import Hub

    if teacher is None and hub is None:
        raise InputError(Problem("agrikd serve", "has nothing to serve", "name --teacher, --hub or both"))
    web.require_tls(host, cert, key)
    web.require_port(host, port)
    token = web.token(token_file)
    made = serving.app(
        serving.Teacher.open(teacher) if teacher else None, Hub.open(hub, pictures) if hub else None, token
    )
    console.say(f"{web.address(host, port, cert)}, with the token in {token_file}")
    web.serve(made, host, port, cert, key)
