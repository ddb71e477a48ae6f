"""What a calibration is fitted to: held-out predictions, and what the training photos look like.

Where labels are too few for a val split, k trainings are each judged on their fold; photos of the judged plants and
copies of the judged photos, labelled or not, are kept from them. A distilled student's teacher has learned from the
judged rows' labels, so for it these predictions are a little too good; a val split has no such leak.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import console, evaluate, files, image, known, learned
from agrikd.calibrate import HeldOut
from agrikd.data.augment import Augment, another_camera, seed_of
from agrikd.data.manifest import Manifest
from agrikd.data.splits import kept_together
from agrikd.errors import InputError, Problem
from agrikd.jobs import open_manifest, stratum_folds
from agrikd.predict.torch import TorchPredictor
from agrikd.recipe import Recipe
from agrikd.run import Run
from agrikd.tasks import open_task
from agrikd.train import fit

_VIEWS, _SIZE = 10, (224, 224)
_FOLDS = 3
_MOST_PHOTOS = 500
"""Of which views are drawn, 5,500 rows for a Gaussian of 50 statistics: a minute of one core."""


def held_out(run: Run, count: int | None = None) -> HeldOut:
    """What the Run's net, or its likes, said of rows that they never learned from.

    The val split if there is one; else stored held-out predictions, unless they are known to be of another number of
    folds than `count`; else `count` folds (by default 3) are trained, into the Run's folder, and their predictions
    stored.
    """
    manifest, seed = open_manifest(run.recipe), run.recipe.seed
    if rows := manifest.indices("val", labelled=True):
        if familiar := learned.seen(run, manifest, rows):
            mend = "train it again on this manifest"
            wrong = f"has learned from {familiar} of the {len(rows)} photos of val: its manifest was split anew since"
            raise InputError(Problem(str(run.folder), wrong, mend))
        return HeldOut(*_predicted(run.folder, manifest, rows), "val", looks(manifest, seed))
    truth, logits = _out_of_fold(run, manifest, count)
    return HeldOut(logits, truth, "out-of-fold", looks(manifest, seed))


def looks(manifest: Manifest, seed: int) -> known.Fit | None:
    """What the labelled training photos look like, and ten views of each; None where they are fewer than 20.

    Copies count once; of more than 500 photos so many are drawn. The same manifest and seed give the same fit.
    """
    rows = [*{manifest.identity(row): row for row in manifest.indices("train", labelled=True)}.values()]
    if len(rows) < known.FEWEST:
        fewer = f"{len(rows)} labelled training photos, fewer than {known.FEWEST}"
        console.say(f"“not a plant I know” is not said: there are {fewer}")
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:_MOST_PHOTOS])
    features = [_looks_of(manifest, int(row), seed) for row in console.track(chosen, "learn what plants look like")]
    photo = np.repeat(np.arange(len(chosen)), _VIEWS + 1)
    console.say(f"“not a plant I know”: learned from {len(chosen)} of {len(rows)} photos and {_VIEWS} views of each")
    return known.fit(np.concatenate(features), photo, seed)


def _looks_of(manifest: Manifest, index: int, seed: int) -> NDArray[np.float32]:
    """`known.statistics` of a photo and its views, [1 + 10, 50]."""
    row, photo, augment = manifest.rows[index], manifest.photo(index), Augment("field", _SIZE)
    small, found = image.resize(photo, _SIZE), [known.statistics(photo)]
    for view in range(_VIEWS):
        rng = np.random.default_rng((seed, 4, seed_of(row, view)))
        drawn = augment(small, row, int(rng.integers(2**31)))
        found.append(known.statistics(another_camera(drawn, rng)))
    return np.stack(found)


def _out_of_fold(run: Run, manifest: Manifest, count: int | None) -> tuple[NDArray[Any], NDArray[np.float32]]:
    stored, had = run.held_out(), run.folds()
    wanted = (had or _FOLDS) if count is None else count
    if stored and had in (None, wanted):
        if count and not had:
            console.say(f"{run.folder / 'held_out.npz'} does not say of how many folds it is, and is used as it is")
        return stored
    if stored:
        console.say(f"the held-out predictions that are stored are of {had} folds: {wanted} are trained now")
    made = _crossfit(run, manifest, wanted)
    run.write_held_out(*made, folds=wanted)
    return made


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
        folder = run.folder / "folds" / f"{count}-{number}"
        rest = _without(manifest, judged)
        if _is_of_another(folder, run.recipe, rest):
            shutil.rmtree(folder)
        part = fit(run.recipe, folder, resume=True, manifest=rest)
        made.append(_predicted(part.folder, manifest, judged))
    return np.concatenate([truth for _, truth in made]), np.concatenate([logits for logits, _ in made])


def _is_of_another(folder: Path, recipe: Recipe, manifest: Manifest) -> bool:
    """Whether a fold was begun on other photos, or under a teacher that has been taught anew since."""
    path = folder / "run.json"
    record = files.read_json(path) if path.exists() else {}
    now = {"data_digest": manifest.digest, "weights": learned.weights_of(recipe)}
    return any(record.get(name, value) != value for name, value in now.items())


def _without(manifest: Manifest, judged: tuple[int, ...]) -> Manifest:
    """The manifest with the judged rows, and all of their groups and copies, without a label in test, at which training
    never looks, nor its gate."""
    unit_of = kept_together(manifest.rows)
    out = set(unit_of[list(judged)].tolist())
    rows = (
        replace(row, split="test", target=None) if unit in out else row
        for row, unit in zip(manifest.rows, unit_of, strict=True)
    )
    return replace(manifest, rows=tuple(rows))


def _predicted(folder: Path, manifest: Manifest, rows: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    predictor = TorchPredictor.from_run(folder)
    made = evaluate.predict_rows(predictor, manifest, rows)
    truth = evaluate.truth_of(manifest, rows, predictor.spec, "held out")
    return np.stack([one.logits for one in made]), truth
