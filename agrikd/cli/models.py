"""The verbs of finished models: export, predict, demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agrikd import console, files
from agrikd.cli._options import AsJson, RunFolder, show
from agrikd.errors import InputError, Problem
from agrikd.types import figure

if TYPE_CHECKING:
    from agrikd.export.artefacts import Precision
    from agrikd.predict._base import Predictor
    from agrikd.types import Prediction

_AT_ONCE = 32
"""Photos that `predict` holds in memory."""


def register(app: typer.Typer) -> None:
    """Add these verbs."""
    group = typer.Typer(no_args_is_help=True, help="Write a Run's net for other runtimes.")
    group.command("onnx")(export_onnx)
    group.command("fp16")(export_fp16)
    group.command("int8")(export_int8)
    group.command("check")(export_check)
    app.add_typer(group, name="export")
    app.command()(predict)
    app.command()(bench)
    app.command("device-report")(device_report)
    app.command()(demo)


Out = Annotated[Path | None, typer.Option(help="(default: in the Run folder)")]
Images = Annotated[int, typer.Option(min=1, help="Photos of the Run's data to compare on.")]


def export_onnx(run: RunFolder, out: Out = None, images: Images = 200, as_json: AsJson = False) -> None:
    """Write the net as ONNX in FP32, if it gives the same answers there; else refuse and write nothing.

    Example: agrikd export onnx runs/coffee
    """
    _export(run, "fp32", images, out, as_json)


def export_fp16(run: RunFolder, out: Out = None, images: Images = 64, as_json: AsJson = False) -> None:
    """Write it in half precision, a Jetson's default, if no activation overflows and the answers stay the same.

    Example: agrikd export fp16 runs/coffee
    """
    _export(run, "fp16", images, out, as_json)


def export_int8(
    run: RunFolder,
    fp16_scales: Annotated[
        bool, typer.Option("--fp16-scales", help="For TensorRT 10.12 and later; else for older ones.")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write it in eight bits, if labelled photos say that at most 3 points of macro-F1 are lost.

    Example: agrikd export int8 runs/coffee
    """
    _export(run, "int8f16" if fp16_scales else "int8", 200, out, as_json)


def export_check(
    model: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)], as_json: AsJson = False
) -> None:
    """Say which releases of TensorRT can read a file, and why not the others; exit code 5 where none can.

    Example: agrikd export check runs/coffee/model.fp16.onnx
    """
    from agrikd.export import artefacts, lint

    findings = lint.lint(model)
    wrong = {release: [one for one in findings if one.release == release] for release in lint.RELEASES}
    rows = [(release, f"{len(found)} findings" if found else "reads it") for release, found in wrong.items()]
    show(as_json, [vars(one) for one in findings], str(model), ("TensorRT", ""), rows)
    if findings:
        console.say(artefacts.said(findings))
    if all(wrong.values()):
        raise typer.Exit(5)


def _export(run: Path, precision: Precision, images: int, out: Path | None, as_json: bool) -> None:
    from agrikd.export import artefacts

    made = artefacts.export(run, precision, images, out)
    size, releases = f"{made.size_bytes / 1e6:.1f} MB", ", ".join(made.releases)
    rows = [("answers", made.found), ("size", size), ("TensorRT, by its documents", releases)]
    show(as_json, {"path": str(out or run / str(made.file)), **vars(made)}, f"{made.file}", (made.precision, ""), rows)


def predict(
    model: Annotated[Path, typer.Argument(help="A Run folder or an .onnx file.", show_default=False)],
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what is on photos.

    Example: agrikd predict runs/coffee/model.onnx leaf.jpg
    """
    from agrikd import image
    from agrikd.predict import open_predictor

    predictor = open_predictor(model)
    found = image.photos_of(photos)
    spec = predictor.spec
    value = [one.to_json(str(photo), spec) for photo, one in zip(found, _answers(predictor, found), strict=True)]
    asked = ("photo", spec.scale.unit or "value", "interval") if spec.scale else ("photo", "says", "", "candidates")
    show(as_json, value, spec.name, (*asked, "remark"), [_cells(one) for one in value])


def _answers(predictor: Predictor, photos: Sequence[Path]) -> list[Prediction]:
    """Some photos in memory at a time; one `InputError` names all that cannot be read."""
    from agrikd import image

    said: list[Prediction] = []
    problems: list[Problem] = []
    for at in range(0, len(photos), _AT_ONCE):
        try:
            said += predictor(image.read_all(photos[at : at + _AT_ONCE]))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return said


def _cells(said: dict[str, Any]) -> tuple[str, ...]:
    if "value" in said:
        return said["photo"], figure(said["value"]), _interval(said["interval"]), said["remark"]
    candidates = ", ".join(said["candidates"])
    return said["photo"], said["says"], f"{said['probability']:.0%}", candidates, said["remark"]


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{figure(ends[0])} to {figure(ends[1])}" if ends else "not calibrated"


def bench(
    models: Annotated[list[Path], typer.Argument(help="Run folders or .onnx files.", show_default=False)],
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Of the backend; may be given twice.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="How many frames each answers.")] = 200,
    frame: Annotated[tuple[int, int], typer.Option(help="The camera's width and height, pixels.")] = (640, 480),
    as_json: AsJson = False,
) -> None:
    """Time models on this machine, all the way from a camera's frame, beside the bare session.

    Example: agrikd bench runs/coffee/model.onnx runs/coffee/model.int8.onnx --threads 1 --threads 2
    """
    from agrikd import bench as benching

    width, height = frame
    if min(frame) < 1:
        raise InputError(Problem("--frame", f"is {width} {height}", "two numbers of pixels, such as 1280 720"))
    found = benching.bench(models, threads or [1], frames, (height, width))
    rows = [
        (
            one.model,
            one.backend,
            f"{one.threads}",
            *(f"{ms:.2f}" for ms in (one.p50, one.p90, one.p99)),
            *("–" if ms is None else f"{ms:.2f}" for ms in (one.bare, one.openvino)),
        )
        for one in found
    ]
    asked = ("model", "backend", "threads", "p50 ms", "p90", "p99", "session alone", "OpenVINO alone")
    title = f"{found[0].frames} frames of {width} × {height}, one at a time"
    show(as_json, [one.to_json() for one in found], title, asked, rows)


def device_report(
    models: Annotated[list[Path], typer.Argument(help=".onnx files.", show_default=False)],
    photos: Annotated[Path, typer.Option(help="A folder of photos to compare the answers on.", show_default=False)],
    minutes: Annotated[float, typer.Option(min=0, help="Of frames, shared by the models.")] = 10.0,
    out: Annotated[Path, typer.Option(help="The JSON to send back.")] = Path("device-report.json"),
) -> None:
    """Try exported models on this board: build time, parity, latency over minutes with temperatures and clocks.

    Example: agrikd device-report model.onnx model.fp16.onnx --photos photos
    """
    from agrikd import device_report as reporting
    from agrikd.image import Photos

    found = sorted(path for path in photos.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise InputError(Problem(str(photos), "holds no photo (.jpg, .png)", "name a folder of some photos"))
    made = reporting.report(models, Photos.at(found[:200]), minutes)
    files.write_json(out, made)
    console.say(f"{reporting.row(made)}\nreport: {out}")


def demo(
    out: Annotated[Path, typer.Option(help="Where it works; an earlier demo there is gone on with.")] = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve", help="Then show it at work: camera, teacher and app.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the app that --serve opens.")] = 8501,
    as_json: AsJson = False,
) -> None:
    """The whole journey on drawn leaves: init, teacher, student alone and distilled, report, export, predict.

    Example: agrikd demo
    """
    if serve:
        from agrikd import web

        web.require_port("127.0.0.1", port)
    result = out / "result.json"
    if not result.exists():  # a demo that has ended reads its test split no second time
        from agrikd.demo import run_demo

        judged = run_demo(out)
        table = {"title": judged.title, "columns": judged.columns, "rows": judged.rows, "note": judged.note}
        files.write_json(result, table | judged.to_json())
    made = files.read_json(result)
    value = {key: made[key] for key in ("report", "models", "verdicts")}
    show(as_json, value, made["title"], made["columns"], made["rows"])
    for sentence in made["verdicts"]:
        console.say(sentence)
    console.say(f"{made['note']}\nreport: {made['report']}".strip())
    if serve:
        from agrikd.demo_live import serve_demo

        serve_demo(out, port)
