"""The verbs of finished models: export, predict, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agrikd import console
from agrikd.cli._options import AsJson, RunFolder, show


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Write a Run's net for other runtimes.")
    group.command("onnx")(export_onnx)
    app.add_typer(group, name="export")
    app.command()(predict)
    app.command()(demo)


def export_onnx(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="(default: model.onnx in the Run folder)")] = None,
    images: Annotated[int, typer.Option(min=1, help="Photos of the Run's data to compare on.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Write the net as ONNX, if it gives the same answers there; else refuse and write nothing.

    Example: agrikd export onnx runs/coffee
    """
    from agrikd.export import onnx

    path = out or run / "model.onnx"
    found = onnx.export_run(run, path, images)
    rows = [(name, f"{value:.4g}") for name, value in vars(found).items()]
    show(as_json, {"path": str(path), **vars(found)}, str(path), ("parity", ""), rows)


def predict(
    model: Annotated[Path, typer.Argument(help="A Run folder or an .onnx file.", show_default=False)],
    photos: Annotated[list[Path], typer.Argument(help="Photos.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what is on photos.

    Example: agrikd predict runs/coffee/model.onnx leaf.jpg
    """
    from agrikd import image
    from agrikd.predict import open_predictor

    predictor = open_predictor(model)
    said = predictor(image.read_all(photos))
    spec = predictor.spec
    value = [one.to_json(str(photo), spec) for photo, one in zip(photos, said, strict=True)]
    asked = ("photo", spec.scale.unit or "value", "interval") if spec.scale else ("photo", "says", "", "candidates")
    show(as_json, value, spec.name, (*asked, "remark"), [_cells(one) for one in value])


def _cells(said: dict[str, Any]) -> tuple[str, ...]:
    if "value" in said:
        return said["photo"], f"{said['value']:.3g}", _interval(said["interval"]), said["remark"]
    candidates = ", ".join(said["candidates"])
    return said["photo"], said["says"], f"{said['probability']:.0%}", candidates, said["remark"]


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}" if ends else "not calibrated"


def demo(
    out: Annotated[Path, typer.Option(help="Where it works; an earlier demo there is gone on with.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """The whole journey on drawn leaves: init, teacher, student alone and distilled, report, export, predict.

    Example: agrikd demo
    """
    from agrikd.demo import run_demo

    made = run_demo(out)
    show(as_json, made.to_json(), made.title, made.columns, made.rows)
    console.say(f"{made.note}\nreport: {made.path}".strip())
