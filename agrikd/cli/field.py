"""What looks at a field: the agent on a laptop."""

from __future__ import annotations

import sys
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agrikd import console
from agrikd.cli._options import AsJson, show
from agrikd.errors import InputError, Problem

if TYPE_CHECKING:
    from agrikd.access import Access

Folder = Annotated[Path, typer.Argument(help="The agent's folder.")]
Role = Literal["viewer", "reviewer"]


def register(app: typer.Typer) -> None:
    """Add these verbs."""
    app.command("agent")(agent)
    app.command("app")(show_app)
    group = typer.Typer(no_args_is_help=True, help="Who may look at the app from another machine.")
    group.command("add")(access_add)
    group.command("remove")(access_remove)
    group.command("list")(access_list)
    app.add_typer(group, name="access")


def agent(
    model: Annotated[
        Path | None, typer.Argument(help="A Run or an exported .onnx (default: the folder's release).")
    ] = None,
    source: Annotated[
        str, typer.Option(help="usb:0, rtsp://…, a video, a folder of photos, or demo; agent.yaml says more.")
    ] = "",
    folder: Annotated[Path, typer.Option(help="Where records, pictures and agent.yaml are.")] = Path("field"),
    port: Annotated[int | None, typer.Option(help="Of the live view on this machine (default: 8600).")] = None,
) -> None:
    """Look through a camera, record what the model says, and let others watch: a device, on a laptop.

    Example: agrikd agent runs/coffee --source demo
    """
    from agrikd import extras, files
    from agrikd.device import settings
    from agrikd.device.__main__ import run_agent
    from agrikd.device.agent import Agent
    from agrikd.device.child import Limits, Model
    from agrikd.device.store import SETTINGS, Store

    extras.require(extras.AGENT)
    own = settings.chosen(folder / SETTINGS, source, port)
    if model and not model.exists():
        raise InputError(Problem(str(model), "is not there", "expected a Run folder or an exported .onnx"))
    with files.storage_errors(folder):
        store = Store(folder)
    held = Model(model.parent, model.name, store.engines) if model else None
    run_agent(Agent(store, Limits(), own, held))


def show_app(
    folder: Folder = Path("field"),
    runs: Annotated[Path | None, typer.Option(help="The folder of Runs to show (default: runs beside FOLDER).")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the app.")] = 8501,
    host: Annotated[str, typer.Option(help="The address to listen at; others than this machine need a password.")] = (
        "127.0.0.1"
    ),
    cert: Annotated[Path | None, typer.Option(help="A certificate (PEM), for TLS without a proxy.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
) -> None:
    """Show what the agent of a folder sees, in a browser.

    The organisation's own accounts sign in where FOLDER/.streamlit/secrets.toml says how.

    Example: agrikd app field
    """
    from agrikd import site, web

    web.require_tls(host, cert, key)
    site.run(site.Field(folder), host, port, runs, (cert, key))


def access_add(
    name: Annotated[str, typer.Argument(help="Who.", show_default=False)],
    folder: Folder = Path("field"),
    role: Annotated[Role, typer.Option(help="A viewer looks; a reviewer also labels and rolls back.")] = "viewer",
    password: Annotated[
        bool, typer.Option(help="Or none: NAME is an e-mail address, and its account signs in (app/README.md).")
    ] = True,
) -> None:
    """Let somebody into the app from another machine, or change his password and role.

    The password is asked for, or read from stdin where that is no terminal.

    Example: agrikd access add Ana --role reviewer

    Example: agrikd access add ana@farm.example --no-password
    """
    held = _access(folder)
    held.put(name, _password(name) if password else None, role)
    console.say(f"{name} may come in, as a {role}")


def _access(folder: Path) -> Access:
    """Raises `InputError` where there is no such folder: a mistyped one would let nobody in."""
    from agrikd.access import Access

    if not folder.is_dir():
        raise InputError(Problem(str(folder), "there is no such folder", "name the agent's folder"))
    return Access(folder)


def _password(name: str) -> str:
    typed = sys.stdin.isatty()
    password = getpass(f"A password for {name}: ") if typed else sys.stdin.readline().rstrip("\n")
    if typed and getpass("Once more: ") != password:
        raise InputError(Problem("the second password", "is another one", "type the same twice"))
    return password


def access_remove(
    name: Annotated[str, typer.Argument(help="Who.", show_default=False)], folder: Folder = Path("field")
) -> None:
    """Let somebody in no more, from this moment on.

    Example: agrikd access remove Ana
    """
    _access(folder).remove(name)
    console.say(f"{name} may not come in any more")


def access_list(folder: Folder = Path("field"), as_json: AsJson = False) -> None:
    """Say who may come in from another machine.

    Example: agrikd access list
    """
    roles = {name: one["role"] for name, one in sorted(_access(folder).users.items())}
    show(as_json, roles, f"the app of {folder}", ("name", "role"), list(roles.items()))
