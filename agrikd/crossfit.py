"""Held-out predictions for a student where labels are too few for a val split: k trainings, each judged on its fold.

A distilled student's teacher has learned from the judged rows' labels, so for it these predictions are a little
too good; a val split has no such leak.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import console, evaluate
from agrikd.calibrate import HeldOut
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.jobs import open_manifest, stratum_folds
from agrikd.predict.torch import TorchPredictor
from agrikd.run import Run
from agrikd.tasks import open_task
from agrikd.train import fit


def held_out(run: Run, count: int) -> HeldOut:
    """What the Run's net, or its likes, said of rows that they never learned from.

    The val split if there is one; else stored held-out predictions; else `count` folds are trained, into the
    Run's folder, and their predictions stored.
    """
    manifest = open_manifest(run.recipe)
    if rows := manifest.indices("val", labelled=True):
        return HeldOut(*_predicted(run.folder, manifest, rows), "val")
    if (stored := run.held_out()) is None:
        stored = _crossfit(run, manifest, count)
        run.write_held_out(*stored)
    truth, logits = stored
    return HeldOut(logits, truth, "out-of-fold")


def _crossfit(run: Run, manifest: Manifest, count: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    if count < 2:
        mend = "ask for at least 2 folds, or give the manifest a val split"
        raise InputError(Problem("folds", f"there is no val split, and folds is {count}", mend))
    train = manifest.indices("train", labelled=True)
    task = open_task(run.recipe.task, manifest)
    fold = stratum_folds(task, manifest, train, count, run.recipe.seed)
    made = []
    for number in range(count):
        console.say(f"fold {number + 1} of {count}")
        judged = tuple(row for row, f in zip(train, fold, strict=True) if f == number)
        part = fit(run.recipe, run.folder / "folds" / str(number), resume=True, manifest=_without(manifest, judged))
        made.append(_predicted(part.folder, manifest, judged))
    return np.concatenate([truth for _, truth in made]), np.concatenate([logits for logits, _ in made])


def _without(manifest: Manifest, judged: tuple[int, ...]) -> Manifest:
    """The manifest with the judged rows out of train. They go to test, which training never looks at."""
    out = set(judged)
    rows = (replace(row, split="test") if i in out else row for i, row in enumerate(manifest.rows))
    return replace(manifest, rows=tuple(rows))


def _predicted(folder: Path, manifest: Manifest, rows: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    predictor = TorchPredictor.from_run(folder)
    made, _ = evaluate.predict_rows(predictor, manifest, rows)
    truth = evaluate.truth_of(manifest, rows, predictor.spec, "held out")
    return np.stack([one.logits for one in made]), truth
