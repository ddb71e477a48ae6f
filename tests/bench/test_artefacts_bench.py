"""Six nets, trained on three real sets at once, in every precision: which answer as they did, and what eight bits cost.

Some hours on two cores; `AGRIKD_ARTEFACTS` names a folder where trained nets are kept, so that it can go on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agrikd import console, files, image, metrics
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import ParityError
from agrikd.export import artefacts, fp16, lint, parity
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.torch import TorchPredictor
from agrikd.types import Image

pytestmark = pytest.mark.bench

ROOT = Path(__file__).resolve().parents[2]
SETS = {
    "coffee": ("coffee-leaf", "cls-coffee-leaf"),
    "plantvillage": ("plantvillage-mini", "cls-plantvillage-mini"),
    "deepweeds": ("deepweeds-season1", "cls-deepweeds-seasons"),
}
OTHER_SEASON = ("season2/test", "season2_new_classes")
"""Of deepweeds: more photos to agree on."""
SIZE = 112
NETS: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"weights": "mobilenetv2_100.in1k.safetensors", "lr": 2e-3, "steps": 300},
    "tf_efficientnet_lite0": {"weights": "tf_efficientnet_lite0.in1k.safetensors", "lr": 2e-3, "steps": 300},
    "mobilenetv3_small_050": {"lr": 1e-2, "steps": 2000},
    "repvit_m0_9": {"lr": 4e-3, "steps": 600},
    "convnext_atto": {"lr": 2e-3, "steps": 1500},
    "vit_tiny_patch16_224": {"lr": 1e-3, "steps": 600},
}
"""Two begin with ImageNet weights, four from nothing."""
RESAMPLES, MAY_LOSE, FEWEST_KEPT = 2000, 0.03, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("AGRIKD_ARTEFACTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("artefacts")


def gathered(folder: Path, datasets: Path) -> Path:
    """One manifest of the three sets, each class named after its set."""
    rows: list[Row] = []
    for name, (manifest, photos) in SETS.items():
        for row in manifests.read(ROOT / "data" / "manifests" / f"{manifest}.csv", datasets / photos).rows:
            target = row.target and f"{name}: {row.target}"
            rows.append(replace(row, path=f"{photos}/{row.path}", target=target))
    manifests.write(Manifest(tuple(rows), datasets), folder / "manifest.csv")
    return folder / "manifest.csv"


def trained(name: str, manifest: Path, datasets: Path, weights: Path) -> Path:
    """The Run of a net; one that is there already is not trained again."""
    run, own = manifest.parent / name, NETS[name]
    student: dict[str, Any] = {"timm": name, "input_size": SIZE}
    if "weights" in own:
        student["weights"] = str(weights / own["weights"])
    if name.startswith("vit"):
        student["kwargs"] = {"img_size": SIZE}
    recipe = {
        "name": name,
        "data": {"manifest": str(manifest), "root": str(datasets), "size": SIZE, "views": 20},
        "student": student,
        "optim": {"steps": own["steps"], "batch": 32, "lr": own["lr"]},
    }
    files.write_text(run.with_suffix(".yaml"), yaml.safe_dump(recipe))
    verb = ["distill", run.with_suffix(".yaml"), "--hard-labels", "--out", run, "--resume"]
    if not (run / "weights.safetensors").exists():
        subprocess.run(
            [sys.executable, "-m", "agrikd", *verb],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
    return run


def test_six_nets_in_every_precision(folder: Path, datasets: Path, weights: Path) -> None:
    manifest = gathered(folder, datasets)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda name: trained(name, manifest, datasets, weights), NETS))
    others = [path for part in OTHER_SEASON for path in sorted((datasets / SETS["deepweeds"][1] / part).rglob("*.jpg"))]
    lost = [exported(run, manifests.read(manifest, datasets), image.read_all(others)) for run in runs]
    assert sum(most <= MAY_LOSE for most in lost) >= FEWEST_KEPT


def exported(run: Path, manifest: Manifest, others: list[Image]) -> float:
    """Every precision of a Run, held to its bounds; the most that eight bits lose."""
    for precision in artefacts.FILES:
        try:
            made = artefacts.export(run, precision, len(manifest.indices("test")))
        except ParityError as error:
            assert precision in ("int8", "int8f16"), error
            console.say(f"{run.name} {precision}: {error}")
            continue
        assert made.releases and not lint.lint(run / str(made.file), made.releases)
        claimed = ", ".join(made.releases)
        console.say(f"{run.name} {precision} ({claimed}), {made.size_bytes / 1e6:.1f} MB: {made.found}")
    _agree(run, others)
    return _most_lost(run, manifest)


def _agree(run: Path, others: list[Image]) -> None:
    source = TorchPredictor.from_run(run)
    found = parity.compare(source, OrtPredictor(run / artefacts.FILES["fp32"]), others)
    parity.require(found, run.name)
    half = parity.compare(source, fp16.in_torch(source), others, fp16.MARGIN / 2)
    parity.require_same_answers(half, run.name)
    console.say(f"{run.name}, other season: fp32 {found}; fp16 {half}")


def _most_lost(run: Path, manifest: Manifest) -> float:
    """Upper end of the 95 % interval of the macro-F1 that eight bits lose, the rows drawn within each set."""
    path = run / artefacts.FILES["int8"]
    if not path.exists():
        return 1.0
    rows = manifest.indices("test", labelled=True)
    classes = OrtPredictor(path).spec.classes
    truth = np.array([classes.index(str(manifest.rows[row].target)) for row in rows])
    sets = np.array([manifest.rows[row].path.split("/")[0] for row in rows])
    photos = image.read_all([manifest.file(row) for row in rows])
    before, after = (
        np.array([predictor([one])[0].top for one in photos])
        for predictor in (OrtPredictor(run / artefacts.FILES["fp32"]), OrtPredictor(path))
    )
    rng = np.random.default_rng(0)
    drawn = np.zeros((RESAMPLES, len(rows)), np.float32)
    for own in map(np.flatnonzero, sets == np.unique(sets)[:, None]):
        drawn[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), RESAMPLES)
    lost = [metrics.macro_f1_of(drawn, truth, said, len(classes)) for said in (before, after)]
    most = float(np.quantile(lost[0] - lost[1], 0.975))
    score = metrics.macro_f1(metrics.confusion(truth, before, len(classes)))
    console.say(f"{run.name}: macro-F1 {score:.3f}; eight bits lose at most {100 * most:.2f} points, drawn by set")
    return most
