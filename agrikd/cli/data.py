"""`agrikd init` and `agrikd data …`: photos to a manifest."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from agrikd import console
from agrikd.cli._options import AsJson, show
from agrikd.errors import InputError, Problem

_CARD = ("name", "task", "licence", "to download")


def register(app: typer.Typer) -> None:
    """`init`, and the verbs of `data`."""
    app.command()(init)
    group = typer.Typer(no_args_is_help=True, help="Make and look at datasets.")
    group.command()(get)
    group.command()(synth)
    group.command()(check)
    group.command("show")(show_photos)
    group.command()(split)
    group.command("from-field")(from_field)
    group.command()(join)
    app.add_typer(group, name="data")


def init(
    photos: Annotated[
        Path, typer.Argument(help="A folder, one sub-folder a class, or a CSV, one line a photo.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where manifest.csv and recipe.yaml go (default: beside the photos).")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="ROLE=NAME", help="Of a CSV: its column of path, target, split, group …")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random test split, where none is given.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a manifest and a recipe from a folder of photos or a table of labels, and say what was assumed.

    Photos without a label go into a folder named 'unlabelled' beside the class folders: a teacher speaks about them
    too. 'not_a_plant' holds pictures of something else; folders named train, val and test are kept as splits.
    In a table a photo without a label has an empty one; photos lie beside it or in 'images'.

    Example: agrikd init photos --out season-2026
             agrikd init labels.csv --column target=Species
    """
    from agrikd.data.start import start

    made = start(photos, out, seed, _columns(column or []))
    for sentence in made.assumptions:
        console.say(f"· {sentence}")
    rows = [(name, str(count)) for name, count in made.counts.items()]
    show(as_json, made.to_json(), f"{made.manifest}", ("rows", ""), rows)
    console.say(f"next: agrikd teach {shlex.quote(str(made.recipe))}")


def _columns(pairs: list[str]) -> dict[str, str]:
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise InputError(Problem(f"--column {pair}", "names no column", "as in target=Species") for pair in wrong)
    return {role: name for role, _, name in (pair.partition("=") for pair in pairs)}


def get(
    name: Annotated[str | None, typer.Argument(help="A dataset's card; without one, all are listed.")] = None,
    to: Annotated[Path | None, typer.Option(help="A new folder (default: the card's, under $AGRIKD_DATA).")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask: I have read the licence.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the cards.")] = False,
    cards: Annotated[Path | None, typer.Option(help="A folder of other cards (YAML).")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a public dataset: what it is and may be used for is shown first. The same command goes on after a stop.

    Example: agrikd data get ibean --to photos/ibean
    """
    from agrikd.data import cards as stored
    from agrikd.data import download

    if listed or name is None:
        known = [(c.name, c.task, c.licence, download.size_of(c)) for c in stored.all_cards(cards)]
        show(as_json, [dict(zip(_CARD, row, strict=True)) for row in known], "Dataset cards", _CARD, known)
        return
    plan = download.plan(stored.card(name, cards), to)
    for line in plan.lines():
        console.say(line)
    _agree(yes or plan.there)
    got = download.get(plan)
    value = {"folder": str(plan.folder), **got.model_dump(), "next": plan.next}
    rows = [("folder", str(plan.folder)), ("files", f"{got.files:,}"), ("size", download.size(got.bytes))]
    show(as_json, value, plan.card.name, ("", ""), rows)
    console.say(f"next: {plan.next}")


def _agree(yes: bool) -> None:
    """Ask, on stderr; raises `InputError` where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        mend = "read the licence above, then add --yes"
        raise InputError(Problem("data get", "asks before it downloads, and there is no terminal to ask at", mend))
    if not typer.confirm("Download it?", err=True):
        console.say("nothing was downloaded")
        raise typer.Exit(1)


def synth(
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    seed: Annotated[int, typer.Option()] = 0,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 256,
    per_class: Annotated[int, typer.Option(help="Labelled training pictures a class.")] = 20,
    unlabelled: Annotated[int, typer.Option(help="Training pictures without a label.")] = 300,
    test_per_class: Annotated[int, typer.Option()] = 40,
    defects: Annotated[bool, typer.Option("--defects", help="Plant defects, and say which in defects.json.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw a synthetic leaf dataset: for trying and testing, it says nothing about real plants.

    Example: agrikd data synth leaves --per-class 20
    """
    from agrikd.data.defects import DefectConfig, write_spoilt
    from agrikd.data.synthetic import SyntheticConfig, write_dataset

    config = SyntheticConfig(
        seed, size, train_per_class=per_class, unlabelled=unlabelled, test_per_class=test_per_class
    )
    with console.job("draw leaves") as progress:
        if defects:
            manifest = write_spoilt(out, config, DefectConfig(seed), progress)
        else:
            manifest = write_dataset(out, config, progress)
    drawn = {split: sum(row.split == split for row in manifest.rows) for split in ("train", "val", "test")}
    rows = [(split, str(n)) for split, n in drawn.items()]
    show(as_json, {"manifest": str(out / "manifest.csv"), **drawn}, f"{out} (synthetic)", ("split", "pictures"), rows)


def split(
    manifest: Annotated[Path, typer.Argument(help="A manifest; it is not changed.", show_default=False)],
    by: Annotated[str, typer.Option(help="stratified, group (every photo must have one) or season.")] = "stratified",
    train: Annotated[float | None, typer.Option(help="Share of each class (default: 0.7).")] = None,
    val: Annotated[float | None, typer.Option(help="(default: 0.1; by season 0, of what does not judge)")] = None,
    test: Annotated[float | None, typer.Option(help="(default: 0.2)")] = None,
    test_season: Annotated[list[str] | None, typer.Option(help="A season that is test, whole.")] = None,
    val_season: Annotated[list[str] | None, typer.Option(help="A season that is val, whole.")] = None,
    keep_together: Annotated[Path | None, typer.Option(help="Findings whose duplicates stay together.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw; the order of the rows has no part in it.")] = 0,
    out: Annotated[Path | None, typer.Option(help="(default: MANIFEST-split.csv beside it)")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the manifest's paths start (default: its folder).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a new manifest with new splits; one plant's photos, copies and known duplicates stay together.

    Example: agrikd data split manifest.csv --by season --test-season 2026
    """
    from agrikd.data.resplit import SplitConfig, resplit

    seasons = tuple(test_season or ()), tuple(val_season or ())
    made = resplit(manifest, SplitConfig(by, train, val, test, *seasons, seed), out, keep_together, root)
    for sentence in made.assumptions:
        console.say(f"· {sentence}")
    show(as_json, made.to_json(), str(made.manifest), ("class", "train", "val", "test"), made.rows)


def check(
    data: Annotated[Path, typer.Argument(help="A manifest, or a folder of photos.", show_default=False)],
    root: Annotated[Path | None, typer.Option(help="Where the manifest's paths start (default: its folder).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of check.html and check.json (default: beside it).")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a manifest without what makes figures untrue.")] = None,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Look for wrong labels (takes longest).")] = True,
    as_json: AsJson = False,
) -> None:
    """Look for what makes results untrue: broken files, copies, torn groups, wrong labels, short cuts.

    Ends with exit code 1 where training on it would be dishonest.

    Example: agrikd data check photos --fix honest.csv
    """
    from agrikd import checkup

    done = checkup.run(data, root, out, fix, labels)
    for sentence in (*done.checkup.not_checked, *done.said):
        console.say(f"· {sentence}")
    columns = ("finding", "times", "", "what to do")
    show(as_json, done.checkup.to_json(), checkup.verdict(done.checkup), columns, done.rows)
    console.say(f"look: {done.page}")
    if not done.checkup.honest:
        raise typer.Exit(1)


def show_photos(
    data: Annotated[Path, typer.Argument(help="A manifest, or a folder of photos.", show_default=False)],
    root: Annotated[Path | None, typer.Option(help="Where the manifest's paths start (default: its folder).")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write (default: show.html beside it).")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Photos shown of a class in a split, at most.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the draw of those photos.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what is in a dataset on one page: photos of each class, how many, how large, how bright, in each split.

    Example: agrikd data show photos --per-class 24
    """
    from agrikd import contact

    shown = contact.run(data, root, out, per_class, seed)
    if broken := len(shown.contents.broken):
        console.say(f"· {broken} photos cannot be read: agrikd data check {shlex.quote(str(data))}")
    show(as_json, shown.to_json(), f"{shown.contents.photos} photos", shown.columns, shown.rows)
    console.say(f"look: {shown.page}")


def from_field(
    folder: Annotated[Path, typer.Argument(help="The agent's folder.")] = Path("field"),
    out: Annotated[Path, typer.Option(help="A new folder for the photos and their manifest.")] = Path("from-field"),
    as_json: AsJson = False,
) -> None:
    """Make next season's photos of what people labelled: copies, a manifest, a recipe, and a table of who said what.

    Frames of one capture session stay in one split. A picture with several labels is left out, and said.

    Example: agrikd data from-field field --out season-2027
    """
    import contextlib
    import sqlite3

    from agrikd import records, review
    from agrikd.device.station import RECORDS

    kept = folder / RECORDS
    try:
        with contextlib.closing(records.read(kept)) as db:
            made = review.export(db, kept, out)
    except sqlite3.Error as error:
        mend = "copy the folder again; an agent that starts there sets it aside and begins anew"
        raise InputError(Problem(str(kept / records.DATABASE), f"cannot be read ({error})", mend)) from None
    for sentence in made.assumptions:
        console.say(f"· {sentence}")
    show(as_json, made.to_json(), str(made.manifest), ("label", "train", "val", "test"), made.counts)
    console.say(f"next: agrikd teach {shlex.quote(str(made.recipe))}")


def join(
    manifests: Annotated[list[Path], typer.Argument(help="Two or more; they are not changed.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The new manifest, in a folder above all photos.")] = Path("joined.csv"),
    root: Annotated[
        list[Path] | None, typer.Option(help="Where a manifest's paths start; one for each (default: its folder).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join seasons: the photos of several manifests in one, each once, with its label, split, group and season.

    One photo with two labels, or in two splits, groups or seasons, is refused. A recipe is written beside it.

    Example: agrikd data join season-2026/manifest.csv season-2027/manifest.csv --out both.csv
    """
    from agrikd.data.join import join as joined

    made = joined(manifests, out, root or ())
    for sentence in made.assumptions:
        console.say(f"· {sentence}")
    show(as_json, made.to_json(), str(made.manifest), ("season", "train", "val", "test"), made.rows)
    console.say(f"next: agrikd teach {shlex.quote(str(made.recipe))}")
