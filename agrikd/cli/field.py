"""What looks at a field: the agent on a laptop."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add these verbs."""
    app.command("agent")(agent)
    app.command("app")(show_app)


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
    from agrikd import files
    from agrikd.device import settings
    from agrikd.device.__main__ import run_agent
    from agrikd.device.agent import Agent
    from agrikd.device.child import Limits, Model
    from agrikd.device.store import SETTINGS, Store
    from agrikd.errors import MissingExtraError

    for module in ("cv2", "onnxruntime", "fastapi", "uvicorn", "websockets"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "agent")
    with files.storage_errors(folder):
        store = Store(folder)
    own = settings.chosen(folder / SETTINGS, source, port)
    held = Model(model.parent, model.name, store.engines) if model else None
    run_agent(Agent(store, Limits(), own, held))


def show_app(
    folder: Annotated[Path, typer.Argument(help="The agent's folder.")] = Path("field"),
    port: Annotated[int, typer.Option(help="Of the app on this machine.")] = 8501,
) -> None:
    """Show what the agent of a folder sees, in a browser on this machine.

    Example: agrikd app field
    """
    from agrikd import site

    site.run(site.Field(folder), port)
