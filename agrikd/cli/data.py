"""`agrikd init` and `agrikd data …`: photos to a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agrikd import console
from agrikd.cli._options import AsJson, show


def register(app: typer.Typer) -> None:
    app.command()(init)
    group = typer.Typer(no_args_is_help=True, help="Make and look at datasets.")
    group.command()(synth)
    app.add_typer(group, name="data")


def init(
    folder: Annotated[Path, typer.Argument(help="Photos: one sub-folder a class, or unsorted.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where manifest.csv and recipe.yaml go (default: FOLDER).")] = None,
    seed: Annotated[int, typer.Option(help="Of the random test split, where none is given.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a manifest and a recipe from a folder of photos, and say what was assumed.

    Example: agrikd init photos --out season-2026
    """
    from agrikd.data.start import start

    made = start(folder, out or folder, seed)
    for sentence in made.assumptions:
        console.say(f"· {sentence}")
    rows = [(name, str(count)) for name, count in made.counts.items()]
    show(as_json, made.to_json(), f"{made.manifest}", ("rows", ""), rows)
    console.say(f"next: agrikd teach {made.recipe}")


def synth(
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    seed: Annotated[int, typer.Option()] = 0,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 256,
    per_class: Annotated[int, typer.Option(help="Labelled training pictures a class.")] = 20,
    unlabelled: Annotated[int, typer.Option(help="Training pictures without a label.")] = 300,
    test_per_class: Annotated[int, typer.Option()] = 40,
    as_json: AsJson = False,
) -> None:
    """Draw a synthetic leaf dataset: for trying and testing, it says nothing about real plants.

    Example: agrikd data synth leaves --per-class 20
    """
    from agrikd.data.synthetic import SyntheticConfig, write_dataset

    config = SyntheticConfig(
        seed, size, train_per_class=per_class, unlabelled=unlabelled, test_per_class=test_per_class
    )
    with console.job("draw leaves") as progress:
        manifest = write_dataset(out, config, progress)
    drawn = {split: sum(row.split == split for row in manifest.rows) for split in ("train", "val", "test")}
    rows = [(split, str(n)) for split, n in drawn.items()]
    show(as_json, {"manifest": str(out / "manifest.csv"), **drawn}, f"{out} (synthetic)", ("split", "pictures"), rows)
