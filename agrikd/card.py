"""A model card in Markdown (Mitchell et al. 2019, arXiv:1810.03993): what a model is for, from what, how good, how
sure, in what forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agrikd import files
from agrikd.evaluate import Refusals
from agrikd.export.artefacts import Artefact
from agrikd.run import Run
from agrikd.types import ModelSpec


def card(run: Run, made: Sequence[Artefact], spec: ModelSpec) -> str:
    """The card of a Run with these exports; figures that were never measured are said to be missing."""
    return "\n".join((f"# {run.recipe.name}", "", *_model(run, spec), *_figures(run), *_exports(made)))


def _model(run: Run, spec: ModelSpec) -> Iterator[str]:
    recipe, record = run.recipe, run.record()
    scale = spec.scale
    asked = (
        f"a number from {scale.low:g} to {scale.high:g} {scale.unit}" if scale else f"one of {', '.join(spec.classes)}"
    )
    yield f"`{recipe.student.timm}` at {spec.input_size[1]} × {spec.input_size[0]} pixels. It answers {asked}."
    yield ""
    teachers = ", ".join(f"`{one.timm or one.run}`" for one in recipe.teachers) or "none"
    yield f"- Method: {recipe.method.name}; teachers: {teachers}; {recipe.optim.steps} steps, seed {recipe.seed}"
    yield f"- Data: `{recipe.data.manifest.name}`, digest `{record['data_digest'][:16]}`"
    yield f"- Recipe: digest `{record['recipe_digest'][:16]}`"
    yield f"- {_sureness(spec)}"
    yield f"- {_acquaintance(spec)}"
    yield ""


def _sureness(spec: ModelSpec) -> str:
    found = spec.calibration
    if found is None:
        return "Not calibrated: its probabilities are a plain softmax."
    return (
        f"Calibrated on {found.rows} rows ({found.evidence}): temperature {found.temperature:.2f}; its set of "
        f"candidates or interval holds the truth in {found.coverage:.0%} of photos like these."
    )


def _acquaintance(spec: ModelSpec) -> str:
    found = spec.calibration
    if found is None or found.known is None:
        return "It never says “not a plant I know”: whatever it is shown, it answers."
    return (
        f"“Not a plant I know”: {found.known}, with a limit that {found.known_kept:.0%} of their views pass. It knows "
        "photos of the kind it was taught with, not botany: leaves of other crops may pass, and plants it knows may "
        "be refused where they are framed or lit otherwise."
    )


def _figures(run: Run) -> Iterator[str]:
    """Of every report that stands in the Run folder."""
    yield "## How good"
    yield ""
    reports = sorted(run.folder.glob("report_*.json"))
    if not reports:
        yield f"Not measured: agrikd evaluate {run.folder.name}"
    for path in reports:
        said: dict[str, Any] = files.read_json(path)
        figures = (f"{name} {_estimate(said[name])}" for name in ("macro_f1", "accuracy", "mae", "r2") if name in said)
        yield f"- On {said['rows']} photos of {said['split']}: {', '.join(figures)}"
        if counts := said.get("refusals"):
            yield f"- As “not a plant I know” it refuses there {Refusals(**counts)}"
    yield ""


def _estimate(said: dict[str, float]) -> str:
    return f"{said['value']:.3f} ({said['low']:.3f} to {said['high']:.3f})"


def _exports(made: Sequence[Artefact]) -> Iterator[str]:
    yield "## Forms"
    yield ""
    for one in made:
        yield f"- {one.precision}, {one.size_bytes / 1e6:.1f} MB, for TensorRT {', '.join(one.releases)}: {one.found}"
    yield ""
