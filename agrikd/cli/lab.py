"""The verbs of the lab: teach, distill, calibrate, evaluate, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agrikd import console
from agrikd.cli._options import (
    AsJson,
    CheckCache,
    Overrides,
    RecipeFile,
    Resume,
    RunFolder,
    grid_plan,
    runs_folder,
    show,
    with_flags,
)

Out = Annotated[Path | None, typer.Option(help="The Run folder to make (default: runs/NAME beside the recipe).")]


def register(app: typer.Typer) -> None:
    for verb in (teach, distill, calibrate, evaluate, compare):
        app.command()(verb)


def teach(recipe: RecipeFile, out: Out = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Tune the recipe's first teacher on the labelled photos, in stages, each kept only if it helps.

    Example: agrikd teach recipe.yaml
    """
    from agrikd import jobs
    from agrikd import teach as teaching

    made = jobs.load(recipe, tuple(overrides or ()))
    jobs.use_cores(made)
    run = teaching.teach(made, out or runs_folder(recipe, f"{made.name}-teacher"))
    said = run.record()
    off = f"off by, {made.task.unit}".rstrip(", ") if made.task.scale else "share wrong"
    rows = [
        (s["stage"], f"{s['mistake']:.3f}", f"{s['nll']:.3f}", "kept" if s["kept"] else "–") for s in said["stages"]
    ]
    show(as_json, {"run": str(run.folder), **said}, str(run.folder), ("stage", off, "log loss", ""), rows)
    console.say(f"next: agrikd distill {recipe} --teacher {run.folder}")


def distill(
    recipe: RecipeFile,
    teacher: Annotated[
        list[Path] | None, typer.Option(help="A taught teacher's Run, in place of the recipe's.")
    ] = None,
    hard_labels: Annotated[bool, typer.Option("--hard-labels", help="The baseline: no teacher, no pool.")] = False,
    student_alone: Annotated[Path | None, typer.Option(help="The baseline's Run, which the teacher must beat.")] = None,
    override_gate: Annotated[str | None, typer.Option(help="A reason to go on with a refused teacher.")] = None,
    check_cache: CheckCache = False,
    out: Out = None,
    resume: Resume = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the recipe's student by the recipe's method.

    Example: agrikd distill recipe.yaml --teacher runs/coffee-teacher --student-alone runs/coffee-alone

    In two processes: torchrun --nproc-per-node 2 -m agrikd distill recipe.yaml
    """
    from agrikd import jobs, ranks, train

    made = jobs.load(recipe, with_flags(overrides, teacher, student_alone, override_gate))
    made = made.without_teacher() if hard_labels else made
    jobs.use_cores(made)
    run = train.fit(made, out or runs_folder(recipe, made.name), resume=resume, check_cache=check_cache)
    if not ranks.leads():
        return
    last = run.history()[-1]
    rows = [(name, f"{value:.4g}") for name, value in last.items()]
    show(as_json, {"run": str(run.folder), **last}, str(run.folder), ("last steps", ""), rows)
    console.say(f"next: agrikd calibrate {run.folder}")


def calibrate(
    run: RunFolder,
    target_risk: Annotated[float, typer.Option(help="Error allowed among the answers that are not 'unsure'.")] = 0.1,
    coverage: Annotated[
        float, typer.Option(help="How often the candidates, or a number's interval, must hold the truth.")
    ] = 0.9,
    known_kept: Annotated[float, typer.Option(help="Share of known plants not called unknown.")] = 0.95,
    folds: Annotated[
        int | None,
        typer.Option(help="Trainings where there is no val split (default: as many as were stored, else 3)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the temperature and the thresholds for "unsure" and "not a plant I know" on held-out photos.

    Example: agrikd calibrate runs/coffee
    """
    from agrikd import calibrate as calibrating
    from agrikd.crossfit import held_out
    from agrikd.run import Run

    opened = Run.open(run)
    shares = {"target_risk": target_risk, "coverage": coverage, "known_kept": known_kept}
    made = calibrating.calibrate(held_out(opened, folds), opened.recipe.task.scale, **shares)
    opened.write_calibration(made)
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in vars(made).items()]
    show(as_json, vars(made), f"{run}: calibration", ("", ""), rows)


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Run folders or .onnx files.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="A manifest; needed for .onnx files (default: the first Run's).")
    ] = None,
    split: Annotated[str, typer.Option(help="val while you choose; test once, at the end.")] = "val",
    teacher: Annotated[Path | None, typer.Option(help="A Run to measure agreement with; it is judged too.")] = None,
    report: Annotated[Path | None, typer.Option(help="The HTML report (default: report.html in the last Run).")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge models on the labelled photos of a split and write one HTML report.

    Example: agrikd evaluate runs/coffee-alone runs/coffee --split test --teacher runs/coffee-teacher
    """
    from agrikd.judge import judge

    made = judge(models, data, split, teacher, report)
    show(as_json, made.to_json(), made.title, made.columns, made.rows)
    for sentence in made.verdicts:
        console.say(sentence)
    console.say(f"{made.note}\nreport: {made.path}".strip())


def compare(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, one a dataset.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where runs, runs.csv and study.html go; finished runs are kept.")],
    seeds: Annotated[int, typer.Option(help="At least 3 for a study.")] = 5,
    methods: Annotated[str, typer.Option(help="Names with commas between (default: the recipe's).")] = "",
    labels: Annotated[str, typer.Option(help="Per class (of numbers: in all), as in 5,20,all.")] = "",
    students: Annotated[str, typer.Option(help="timm names, or name=weights (default: the recipe's).")] = "",
    processes: Annotated[int | None, typer.Option(min=1, help="(default: as many as cores)")] = None,
    check_cache: CheckCache = False,
    dry_run: Annotated[bool, typer.Option(help="Say what it would cost, and stop.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Student alone against distilled, and against distilled with the unlabelled pool: does it help?

    Example: agrikd compare coffee.yaml --methods kd,dkd --labels 5,20,all --out studies/coffee --dry-run
    """
    from agrikd import compare as comparing
    from agrikd import jobs

    plan = grid_plan(seeds, methods, labels, students)
    made = [jobs.load(path, tuple(overrides or ())) for path in recipes]
    if dry_run:
        found = [comparing.estimate(recipe, plan, out) for recipe in made]
        rows = [(c.recipe, f"{c.runs}", f"{c.steps}", f"{c.teacher_views}", f"{c.core_minutes:.0f}") for c in found]
        asked = ("recipe", "runs", "steps each", "teacher views", "core-minutes")
        show(as_json, [vars(c) for c in found], "What it would cost", asked, rows)
        return
    said = comparing.compare(made, plan, out, processes, check_cache)
    show(as_json, said.to_json(), str(out), *said.brief())
    for sentence in said.words():
        console.say(sentence)
    console.say(f"report, with every figure: {out / 'study.html'}")
