"""What people do wrong at the command line: each is a message and an exit code, and leaves nothing half-written."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("torch", reason="pip install 'agrikd[train]'")
pytest.importorskip("onnxruntime", reason="pip install 'agrikd[export]'")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from agrikd import jobs, train
from agrikd.cli import app
from agrikd.data.synthetic import SyntheticConfig, write_dataset
from agrikd.export import artefacts, onnx

SCREEN = 24
"""Lines of a terminal: a report must fit."""
AGRIKD = (sys.executable, "-c", "from agrikd.cli import main; main()")
FINISHED = ("weights.safetensors", "model.onnx")
"""What makes a folder count as a finished Run or an export."""

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Lab:
    """A dataset, a Run on it and its export: made once, and never changed."""

    photos: Path
    run: Path
    onnx: Path


CLASSES = ("healthy", "rust", "blight")
COUNTS = {"train_per_class": 4, "unlabelled": 6, "val_per_class": 2, "test_per_class": 4, "non_plant": 2}


def raw_recipe(photos: Path | str) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": {"manifest": f"{photos}/manifest.csv"},
        "student": {"timm": "test_efficientnet", "input_size": 32},
        "optim": {"steps": 4, "batch": 4, "checkpoint_every": 2},
    }


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    write_dataset(folder / "photos", SyntheticConfig(size=64, classes=CLASSES, **COUNTS))
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw_recipe(folder / "photos")))
    run = train.fit(jobs.load(recipe), folder / "run").folder
    artefacts.export(run, "fp32", 2, folder / "student.onnx")
    return Lab(folder / "photos", run, folder / "student.onnx")


class Scene:
    """A folder with a good recipe in it, to be spoilt."""

    def __init__(self, lab: Lab, here: Path) -> None:
        self.lab, self.raw, self.here = lab, raw_recipe(lab.photos), here
        self.recipe, self.own, self.out = here / "recipe.yaml", here / "photos", here / "out"
        with (lab.photos / "manifest.csv").open() as table:
            self.first = next(csv.DictReader(table))["path"]
        self.write(self.raw)

    def write(self, raw: Any) -> None:
        """The recipe: a mapping, or text as it is."""
        self.recipe.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))

    def copy_photos(self) -> None:
        """Work on a copy of the photos, `own`."""
        shutil.copytree(self.lab.photos, self.own)
        self.write(raw_recipe("photos"))

    def sort_photos(self) -> None:
        """Those of the test split in folders of their classes, at {here}/sorted."""
        with (self.lab.photos / "manifest.csv").open(newline="") as table:
            for row in csv.DictReader(table):
                if row["split"] == "test" and row["target"] != "not_a_plant":
                    (self.here / "sorted" / row["target"]).mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.lab.photos / row["path"], self.here / "sorted" / row["target"])

    def copy_run(self) -> None:
        """The Run, at `out`, with its recipe."""
        shutil.copytree(self.lab.run, self.out)
        shutil.copy(self.out / "recipe.yaml", self.recipe)

    def fill(self, words: str) -> str:
        """Words with the scene's places put in."""
        places = {"photos": self.lab.photos, "run": self.lab.run, "onnx": self.lab.onnx, **vars(self)}
        return words.format(**places, distill=f"distill {self.recipe} --out {self.out}")


@pytest.fixture
def scene(lab: Lab, tmp_path: Path) -> Scene:
    return Scene(lab, tmp_path)


# What a command said and left.


@dataclass(frozen=True)
class Said:
    code: int
    text: str


def in_process(*words: str | Path) -> Said:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.output)


def child(*words: str | Path, **user: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **user)


def on_its_own(*words: str | Path) -> Said:
    """In a process of its own; an error belongs on stderr."""
    done = child(*AGRIKD, *words)
    assert not done.stdout
    return Said(done.returncode, done.stderr)


def check_words(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said.text
    assert "Traceback" not in said.text
    assert said.text.count("\n") <= SCREEN, said.text
    for word in words:
        assert word in said.text, f"{word!r} is not in:\n{said.text}"


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, and a digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def check_left(before: dict[str, str], after: dict[str, str], *, begun: bool = False) -> None:
    """Nothing new and nothing changed; where a Run had begun, nothing that counts as done and no temporary file."""
    if not begun:
        assert after == before
    new = [Path(path).name for path in after.keys() - before.keys()]
    assert not [name for name in new if name.startswith(".") or name in FINISHED]


# What spoils a scene.

Spoil = Callable[[Scene], Any]


def recipe(raw: Any = None, **keys: Any) -> Spoil:
    """The recipe is `raw`, or has other top-level keys."""
    return lambda scene: scene.write(raw if raw is not None else {**scene.raw, **keys})


def manifest(change: Callable[[Rows], Rows | None]) -> Spoil:
    """The manifest's rows are changed in place, or replaced by what `change` returns."""

    def spoil(scene: Scene) -> None:
        scene.copy_photos()
        path = scene.own / "manifest.csv"
        with path.open() as table:
            rows = list(csv.DictReader(table))
        rows = change(rows) or rows
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    return spoil


def photo(change: Callable[[Path], Any], *, sha256: bool = False) -> Spoil:
    """The first photo is changed; without `sha256` in the manifest, only its pixels can tell."""

    def spoil(scene: Scene) -> None:
        manifest(lambda rows: rows if sha256 else [{**row, "sha256": ""} for row in rows])(scene)
        change(scene.own / scene.first)

    return spoil


def files_in(*names: str, text: str = "") -> Spoil:
    def spoil(scene: Scene) -> None:
        for name in names:
            (scene.here / name).parent.mkdir(parents=True, exist_ok=True)
            (scene.here / name).write_text(text)

    return spoil


def first(**cells: str) -> Spoil:
    """The manifest's first row has other cells."""
    return manifest(lambda rows: rows[0].update(cells))


def column(old: str, new: str) -> Spoil:
    return manifest(lambda rows: [{new if k == old else k: v for k, v in row.items()} for row in rows])


def kept(wanted: Callable[[dict[str, str]], bool]) -> Spoil:
    return manifest(lambda rows: [row for row in rows if wanted(row)])


def in_both(key: str) -> Spoil:
    def change(rows: Rows) -> None:
        train_row, test_row = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
        test_row[key] = train_row[key]

    return manifest(change)


changed = photo(lambda path: path.write_text("x"), sha256=True)
renamed = manifest(lambda rows: [{**row, "target": row["target"].replace("rust", "mosaic")} for row in rows])


def other_study(scene: Scene) -> None:
    recipe(**TEACHER)(scene)
    files_in("out/tiny/study-of.json", text='{"recipe": "another", "data": "the same"}')(scene)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def cut_table(scene: Scene) -> None:
    scene.copy_photos()
    cut(scene.own / "manifest.csv")


def no_test_photos(scene: Scene) -> None:
    scene.copy_photos()
    shutil.rmtree(scene.own / "images" / "test")


def unfinished(checkpoint: bytes = b"") -> Spoil:
    """A Run that was interrupted, with that checkpoint."""

    def spoil(scene: Scene) -> None:
        scene.copy_run()
        (scene.out / "weights.safetensors").unlink()
        if checkpoint:
            (scene.out / "checkpoint.pt").write_bytes(checkpoint)

    return spoil


def broken(name: str) -> Spoil:
    """A Run one of whose files of JSON is none."""

    def spoil(scene: Scene) -> None:
        scene.copy_run()
        (scene.out / name).write_text("{}\n" if name == "calibration.json" else "{\n")
        if name == "metrics.jsonl":
            (scene.out / "weights.safetensors").unlink()

    return spoil


def broken_recipe(scene: Scene) -> None:
    scene.copy_run()
    (scene.out / "recipe.yaml").write_text("name: {")


def nan_weights(scene: Scene) -> None:
    scene.copy_run()
    path = scene.out / "weights.safetensors"
    with safe_open(path, "pt") as opened:
        said = opened.metadata()
    values = load_file(path)
    values["classifier.bias"].fill_(float("nan"))
    save_file(values, path, said)


def foreign_weights(scene: Scene) -> None:
    scene.copy_run()
    path = scene.out / "weights.safetensors"
    save_file(load_file(path), path)


def foreign_onnx(scene: Scene) -> None:
    """Our export without what it says of itself."""
    package = pytest.importorskip("onnx", reason="pip install 'agrikd[export]'")
    model = package.load(scene.lab.onnx)
    del model.metadata_props[:]
    package.save(model, scene.here / "foreign.onnx")


# The table.


@dataclass(frozen=True)
class Mistake:
    """A command line with {places} of the scene. What is `wrong`, `where` it stands and the `way` out must be said.

    given: spoils the scene first. own: in a process of its own. begun: a Run had begun when it was found.
    """

    name: str
    line: str
    wrong: str
    where: str
    way: str
    given: Spoil = lambda scene: None
    code: int = 2
    own: bool = False
    begun: bool = False


M = Mistake
TEACHER = {"teachers": [{"timm": "test_resnet", "input_size": 32}], "method": {"name": "kd"}}
CHECKPOINT = b"PK\x03\x04" + 5000 * b"\0"

RECIPES = [
    M("no recipe", "distill {here}/mine.yaml", "there is no such file", "{here}/mine.yaml", "agrikd init", own=True),
    M("recipe is a folder", "distill {here}", "Is a directory", "{here}", "agrikd init"),
    M("recipe under a file", "distill {recipe}/r.yaml", "Not a directory", "{recipe}/r.yaml", "agrikd init"),
    M("recipe is a photo", "distill {photos}/{first}", "is not UTF-8", "{first}", "save it as UTF-8"),
    M("no YAML", "{distill}", "is not valid YAML", "recipe.yaml:2", "bracket", recipe("name: x\n  data: [")),
    M("no mapping", "{distill}", "is not a recipe", "recipe.yaml", "expected a mapping", recipe("- one\n- two\n")),
    M("empty", "{distill}", "is not a recipe", "recipe.yaml", "expected a mapping", recipe("")),
    M("unknown key", "{distill}", "unknown key", "recipe.yaml: optm", "did you mean 'optim'?", recipe(optm={})),
    M("nested key", "{distill} -s data.manifets=x", "unknown key", "recipe.yaml: data.manifets", "manifest", own=True),
    M("key in a list", "{distill}", "unknown key", "teachers.0.tim", "'timm'", recipe(teachers=[{"tim": "resnet18"}])),
    M("missing key", "{distill}", "is missing", "recipe.yaml: student", "init", recipe("name: x\ndata: {manifest: m}")),
    M("wrong type", "{distill} -s optim.steps=many", "got 'many'", "recipe.yaml: optim.steps", "be a valid integer"),
    M("out of range", "{distill} -s optim.lr=-1", "got -1", "recipe.yaml: optim.lr", "should be greater than 0"),
    M("huge seed", "{distill} -s seed=99999999999999999999", "got 9999", "recipe.yaml: seed", "should be less than"),
    M("unknown net", "{distill} -s student.timm=resnet81", "no model 'resnet81'", "recipe.yaml: student", "resnet18"),
    M("unknown task", "{distill} -s task.name=counting", "no task 'counting'", "task.name", "known: classification"),
    M("unknown method", "{distill} -s method.name=kld", "no method 'kld'", "recipe.yaml: method.name", "mean 'kd'?"),
    M("method's key", "{distill} -s method.T=2", "unknown key", "recipe.yaml: method.T", "known here: weight_task"),
    M("no variable", "{distill} -s data.root='${{NONE}}'", "${{NONE}} is not set", "data.root", "export NONE=…"),
    M("--set without =", "{distill} -s optim.lr", "is not key=value", "--set optim.lr", "as in optim.lr=1e-3"),
    M("--set into a value", "{distill} -s name.x=1", "nothing called 'x'", "--set name.x=1", "write key.sub=value"),
    M(
        "--set past the end",
        "{distill} -s teachers.3.timm=x",
        "'3' is not inside",
        "--set teachers.3.timm=x",
        "from 0",
        recipe(teachers=[]),
    ),
    M("--set into no list", "{distill} -s teachers.0.timm=x", "should be a list", "recipe.yaml: teachers", "a list"),
    M(
        "value for a group",
        "{distill} -s data=m.csv",
        "got 'm.csv'",
        "recipe.yaml: data",
        "should be a group of settings",
    ),
    M("--set of no YAML", "{distill} -s 'optim=['", "is not valid YAML", "--set optim=[", "write key.sub=value"),
]

NETS = [
    M(
        "timm and run",
        "{distill} -s student.run={run}",
        "exactly one of 'timm'",
        "recipe.yaml: student",
        "'run' (a Run folder)",
    ),
    M(
        "no weights",
        "{distill} -s student.weights={here}/w.safetensors",
        "no such file",
        "w.safetensors",
        "set weights to",
    ),
    M(
        "weights are words",
        "{distill} -s student.weights={here}/w.safetensors",
        "is no readable safetensors file",
        "{here}/w.safetensors",
        "copy it again",
        files_in("w.safetensors", text="404 not found"),
    ),
    M(
        "weights of another net",
        "{distill} -s student.timm=test_resnet -s student.weights={run}/weights.safetensors",
        "does not fit the net",
        "weights.safetensors",
        "the weights are of another net",
    ),
    M("no package", "{distill} -s student.weights=package", "no package carries", "test_eff", "tf_efficientnet_lite0"),
    M("wrong kwarg", "{distill} -s student.kwargs.act_layer=foo", "KeyError: 'foo'", "kwargs", "leave it out"),
    M(
        "wrong type of kwarg",
        "{distill} -s student.kwargs.drop_rate=x",
        "cannot take 32",
        "net test_eff",
        "its kwargs are",
    ),
    M("no spread", "{distill} -s 'student.std=[0,0,0]'", "got 0", "recipe.yaml: student.std.0", "be greater than 0"),
    M("small views", "{distill} -s data.size=32 -s student.input_size=64", "is 32 × 32", "data.size", "leave it out"),
    M("unknown kwarg", "{distill} -s student.kwargs.depth=3", "'depth'", "kwargs", "leave it out"),
    M(
        "a size that the net cannot take",
        "{distill} -s student.timm=levit_128s -s student.input_size=64",
        "cannot take 64 × 64 pixels",
        "net levit_128s",
        "its own input_size is [224, 224]",
    ),
    M(
        "student of other classes",
        "{distill} -s student.timm=null -s student.run={run}",
        "know the classes blight, healthy, rust",
        "student",
        "name a timm model",
        renamed,
    ),
    M(
        "teacher of other classes",
        "{distill} -s method.name=kd --teacher {run}",
        "it knows (blight, healthy, rust)",
        "class names and order",
        "--override-gate",
        renamed,
        code=4,
        begun=True,
    ),
    M("untaught teacher", "{distill}", "is random", "trained head", "agrikd teach", recipe(**TEACHER), 4, begun=True),
    M("kd without a teacher", "{distill} -s method.name=kd", "needs a teacher", "teachers", "or use method none"),
    M("nobody to teach", "teach {recipe} --out {out}", "no timm model to teach", "teachers", "name a timm model"),
    M("no such teacher", "{distill} -s method.name=kd --teacher {here}/t", "is no Run", "{here}/t", "agrikd teach"),
    M("no baseline", "{distill} --student-alone {here}/a", "is no Run", "{here}/a", "expected a folder"),
]

PHOTOS = [
    M("no manifest", "{distill} -s data.manifest=m.csv", "there is no file", "data.manifest", "agrikd init"),
    M("no column", "{distill}", "lacks the column 'target'", "manifest.csv:1", "path, t", column("target", "label")),
    M("unknown column", "{distill}", "column 'plot'", "manifest.csv:1", "columns are path", column("group", "plot")),
    M("bad split", "{distill}", "the split is 'trian'", "manifest.csv:2", "train, val, test", first(split="trian")),
    M("unlabelled test", "{distill}", "has no label", "manifest.csv:2", "to train", first(split="test", target="")),
    M("photo elsewhere", "{distill}", "leaves the manifest's folder", "manifest.csv:2", "→", first(path="../x.jpg")),
    M("cut table", "{distill}", "the header's 7 fields", "manifest.csv:", "they are path, target", cut_table),
    M("open quote", "{distill}", "is not CSV", "manifest.csv:", "never closed", first(source='"' + 200_000 * "x")),
    M("photo in two splits", "{distill}", "in test", "sha256", "see images/", in_both("sha256")),
    M("plant in two splits", "{distill}", "in test and train", "group 't", "see images/", in_both("group")),
    M("no photo", "{distill}", "{first} is not there", "manifest.csv", "paths start from {own}", photo(Path.unlink)),
    M("no photos", "{distill} -s data.root={here}", "more like these", "manifest.csv", "paths start from {here}"),
    M("changed", "{distill} -s student.input_size=48", "has changed since", "{first}", "agrikd init", changed),
    M("cut photo", "{distill}", "is cut short", "{own}/{first}", "copy it again", photo(cut)),
    M("empty photo", "{distill}", "0 bytes", "{own}/{first}", "copy", photo(lambda p: p.write_bytes(b""))),
    M("text photo", "{distill}", "cannot be decoded", "{first}", "expected .jpg", photo(lambda p: p.write_text("404"))),
    M("few labels", "{distill} -s data.labels_per_class=99", "fewer than 99", "class 'blight'", "label more photos"),
    M(
        "share of nothing",
        "{distill} -s data.unlabelled_share=0.5 -s method.name=kd --teacher {run}",
        "no row of train lacks a label",
        "data.unlabelled_share",
        "set data.unlabelled_share=0",
        kept(lambda row: row["target"] != ""),
    ),
    M("one class", "{distill}", "has 1 class", "task", "label the photos", kept(lambda r: r["target"] in ("", "rust"))),
    M("no labels", "{distill}", "has 0 classes", "task", "label the photos", kept(lambda row: row["target"] == "")),
]

FOLDERS = [
    M("Run there", "distill {out}/recipe.yaml --out {out}", "holds a finished Run", "{out}", "--out", Scene.copy_run),
    M("Run begun", "{distill}", "holds a Run already", "{out}", "go on with --resume", unfinished(CHECKPOINT)),
    M(
        "resume of another recipe",
        "{distill} --resume -s optim.lr=0.1",
        "holds a Run of another recipe",
        "{out}",
        "use its own recipe",
        unfinished(CHECKPOINT),
        own=True,
    ),
    M(
        "cut checkpoint",
        "{distill} --resume",
        "damag",
        "checkpoint.pt",
        "delete",
        unfinished(CHECKPOINT),
        6,
        begun=True,
    ),
    M("no checkpoint", "{distill} --resume", "damaged", "checkpoint.pt", "delete", unfinished(b"404"), 6, begun=True),
    M("loss explodes", "{distill} -s optim.lr=1e30 -s optim.clip=0", "not finite", "step", "lower", code=6, begun=True),
    M("file for --out", "distill {recipe} --out {recipe}", "a file is in the way", "{recipe}", "another place", code=7),
    M("file above", "distill {recipe} --out {recipe}/r", "a file is in the way", "{recipe}/r", "another place", code=7),
    M("long name", "distill {recipe} --out {here}/" + 300 * "x", "too long", 300 * "x", "a shorter one", code=7),
    M(
        "far too many views",
        "{distill} -s data.views=1000000000000 -s method.name=kd --teacher {run} --override-gate x",
        "the file would be too large",
        "features",
        "fewer data.views",
        code=7,
        begun=True,
    ),
    M(
        "log broken",
        "{distill} --resume",
        "is broken",
        "{out}/metrics.jsonl:1",
        "delete the line",
        broken("metrics.jsonl"),
    ),
    M(
        "no calibration",
        "predict {out} {recipe}",
        "no calibration",
        "{out}/cal",
        "calibrate",
        broken("calibration.json"),
    ),
    M(
        "record broken",
        "{distill} --resume",
        "not valid JSON",
        "{out}/run.json:2",
        "copy it",
        broken("run.json"),
    ),
    M("calibrate no Run", "calibrate {here}", "is no Run", "{here}", "made by agrikd teach or agrikd distill"),
    M("calibrate too soon", "calibrate {out}", "has not finished", "{out}", "--resume", unfinished()),
    M("calibrate on few", "calibrate {run}", "there are 6 held-out rows", "calibrate", "expected at least 20"),
    M("share above one", "calibrate {run} --coverage 2", "is 2.0", "coverage", "expected a share between 0 and 1"),
    M("Run's recipe broken", "calibrate {out}", "is not valid YAML", "{out}/recipe.yaml:1", "bracket", broken_recipe),
    M("foreign weights", "predict {out} {recipe}", "does not say its", "{out}/weights.saf", "train", foreign_weights),
    M("weights are NaN", "export onnx {out}", "(NaN)", "{out}/weights.safetensors", "lower optim.lr", nan_weights),
]

JUDGING = [
    M("no model", "evaluate {here}/run", "is no model", "{here}/run", "expected a Run folder"),
    M("twice", "evaluate {run} {onnx} {run}", "is given twice", "{run}", "name each model once"),
    M("no such split", "evaluate {run} --split tset", "has no labelled rows", "split tset", "train, val, test"),
    M(
        "empty split",
        "evaluate {run} --data {own}/manifest.csv",
        "has no labelled rows",
        "split val",
        "splits with labels: train, test",
        kept(lambda row: row["split"] != "val"),
    ),
    M(
        "labels it does not know",
        "evaluate {run} --data {own}/manifest.csv",
        "does not know: mosaic",
        "split val",
        "the model knows blight, healthy, rust",
        renamed,
    ),
    M("no such data", "evaluate {run} --data {here}/m.csv", "no such file", "{here}/m.csv", "agrikd init"),
    M(
        "onnx, no data",
        "evaluate {onnx} --report {out}",
        "does not know its photos",
        "--data",
        "name a manifest with --data",
    ),
    M("no report", "evaluate {onnx} --data {photos}/manifest.csv", "no Run to keep", "--report", "say where"),
    M(
        "photos gone",
        "evaluate {run} --data {own}/manifest.csv",
        "is not there",
        "images/test/",
        "paths start from {own}",
        no_test_photos,
    ),
    M(
        "photos changed",
        "evaluate {run} --data {own}/manifest.csv --split train",
        "has changed since",
        "{first}",
        "agrikd init",
        changed,
    ),
    M("nothing to compare", "compare {recipe} --out {out}", "a method with a teacher", "tiny: method", "name: kd"),
    M(
        "no views",
        "compare {recipe} --out {out} -s data.size=64",
        "fixed set of views",
        "tiny: data.views",
        "20",
        recipe(**TEACHER),
    ),
    M(
        "two of one name",
        "compare {recipe} {recipe} --out {out} -s data.views=2 -s data.size=64",
        "two recipes have it",
        "name tiny",
        "give each a name",
        recipe(**TEACHER),
    ),
    M(
        "study of another recipe",
        "compare {recipe} --out {out} -s data.views=2 -s data.size=64",
        "holds a study of another recipe",
        "{out}/tiny",
        "choose another --out",
        other_study,
    ),
    M("labels in words", "compare {recipe} --out {out} --labels 5,few", "'few' is no number", "--labels", "5,20,all"),
    M(
        "a method misspelt",
        "compare {recipe} --out {out} --methods kd,dkdd -s data.views=2 -s data.size=64",
        "no method 'dkdd'",
        "--methods 2",
        "did you mean 'dkd'",
        recipe(**TEACHER),
    ),
    M(
        "a sum of one method",
        "distill {recipe}",
        "method kd stands twice",
        "method.also",
        "name each once",
        recipe(**{**TEACHER, "method": {"name": "kd", "also": [{"name": "kd"}]}}),
    ),
    M(
        "an ensemble of one",
        "distill {recipe}",
        "at least two members",
        "teachers.0",
        "ensemble",
        recipe(method={"name": "kd"}, teachers=[{"ensemble": [{"timm": "resnet18"}]}]),
    ),
    M("no seeds", "compare {recipe} --out {out} --seeds 0", "is 0", "seeds", "expected at least 1", recipe(**TEACHER)),
]

DATA = [
    M("init on nothing", "init {here}/none", "there is no such folder", "{here}/none", "give the folder", own=True),
    M("init on an empty folder", "init {here}/p", "holds no photos", "{here}/p", "expected .jpg", files_in("p/a.txt")),
    M("init on a file", "init {recipe} --out {out}", "neither a folder nor a table", "{recipe}", "a CSV"),
    M("init over a recipe", "init {photos} --out {here}", "is there already", "{recipe}", "choose another --out"),
    M("init over a manifest", "init {photos} --out {here}/p", "is there", "p/m", "away", files_in("p/manifest.csv")),
    M("init on unsorted photos", "init {photos}/images/test", "holds no class folder", "images/test", "one sub-folder"),
    M("init on one class", "init {here}/p", "one class only", "{here}/p", "→", files_in("p/rust/a.jpg", text="x")),
    M("init on empty photos", "init {here}/p", "0 bytes", "p/b/b.jpg", "copy", files_in("p/a/a.jpg", "p/b/b.jpg")),
    M("synth over something", "data synth {here}", "is not empty", "{here}", "choose a new folder", own=True),
    M("synth too small", "data synth {out} --size 8", "is 8", "synthetic.size", "from 64 to 4096"),
]

MODELS = [
    M("export of no Run", "export onnx {here}", "is no Run", "{here}", "made by agrikd teach or agrikd distill"),
    M("a folder there", "export onnx {run} --out {out}", "a folder is in", "{out}", "another", files_in("out/x"), 7),
    M("export on no photo", "export onnx {run} --out {out} --images 0", "Invalid value", "--images", "equal to 1"),
    M("no such onnx", "predict {here}/m.onnx {recipe}", "no such file", "{here}/m.onnx", "its folder", own=True),
    M("photo for a model", "predict {photos}/{first} {photos}/{first}", "is no model", "{first}", "or an .onnx file"),
    M(
        "foreign onnx",
        "predict {here}/foreign.onnx {recipe}",
        "does not say",
        "foreign.onnx",
        "export onnx",
        foreign_onnx,
    ),
    M(
        "words for onnx",
        "predict {here}/m.onnx {photos}/{first}",
        "cannot open it",
        "{here}/m.onnx",
        "agrikd export",
        files_in("m.onnx", text="404 not found"),
        own=True,
    ),
    M("empty onnx", "predict {here}/m.onnx {recipe}", "cannot open", "m.onnx", "agrikd export", files_in("m.onnx")),
]

WORDS = [
    M("unknown verb", "distil {recipe}", "No such command 'distil'", "distil", "distill", own=True),
    M("unknown option", "{distill} --stes x=1", "No such option", "--stes", "--set"),
    M("missing argument", "predict {onnx}", "Missing argument", "'photos'", "--help"),
    M("no number", "calibrate {run} --folds three", "Invalid value", "--folds", "valid integer"),
    M("no processes", "compare {recipe} --out {out} --processes -1", "Invalid value", "--processes", "equal to 1"),
]

MISTAKES = [*RECIPES, *NETS, *PHOTOS, *FOLDERS, *JUDGING, *DATA, *MODELS, *WORDS]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_said_and_leaves_nothing(mistake: Mistake, scene: Scene) -> None:
    mistake.given(scene)
    before = listing(scene.here)
    said = (on_its_own if mistake.own else in_process)(*shlex.split(scene.fill(mistake.line)))
    check_words(said, mistake.code, *map(scene.fill, (mistake.wrong, mistake.where, mistake.way)))
    check_left(before, listing(scene.here), begun=mistake.begun)


def test_the_table_is_long_enough() -> None:
    assert len(MISTAKES) >= 100 and len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
    assert sum(mistake.own for mistake in MISTAKES) >= 6
    assert {mistake.code for mistake in MISTAKES} == {2, 4, 6, 7}


# Several mistakes at once, and what a mistake costs.


def run(scene: Scene, line: str) -> Said:
    return in_process(*shlex.split(scene.fill(line)))


def test_all_of_a_recipe_is_wrong_in_one_report(scene: Scene) -> None:
    spoilt = {"student": {"timm": "mobilenetv3_smal_050"}, "method": {"name": "kd", "temprature": 3}}
    scene.write({**scene.raw, **spoilt, "optim": {"step": 3}, "task": {"name": "clasification"}})
    said = run(scene, "{distill} -s data.manifest=m.csv -s teachers='[{{timm: resnet81}}]'")
    check_words(said, 2, "method.temprature: unknown key", "did you mean 'temperature'?")
    check_words(said, 2, "optim.step: unknown key", "did you mean 'steps'?", "task.name: there is no task")
    check_words(said, 2, "student.timm: timm knows no model", "mobilenetv3_small_050", "teachers.0.timm", "resnet18")
    check_words(said, 2, "data.manifest: there is no file")
    assert not scene.out.exists()


def test_every_bad_photo_is_named_at_once(scene: Scene) -> None:
    files_in("empty.jpg", "half.png")(scene)
    (scene.here / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + 100 * b"\0")
    said = run(scene, "predict {onnx} {here}/empty.jpg {photos}/{first} {here}/none.jpg {here}/half.png")
    check_words(said, 2, "empty.jpg: is empty (0 bytes)", "none.jpg: there is no such file", "half.png: is cut short")
    assert scene.first not in said.text


def test_a_folder_of_photos_is_asked_about(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agrikd.cli.models._AT_ONCE", 2)
    for name in ("p/b/2.png", "p/1.png", "p/b/3.png", "p/.hidden.png"):
        (scene.here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scene.lab.photos / scene.first, scene.here / name)
    files_in("p/notes.txt", "empty/a.txt")(scene)
    done = child(*AGRIKD, *shlex.split(scene.fill("predict --json {onnx} {here}/p")))
    assert done.returncode == 0, done.stderr
    said = [one["photo"] for one in json.loads(done.stdout)]
    assert said == [f"{scene.here}/p/{name}" for name in ("1.png", "b/2.png", "b/3.png")]
    check_words(run(scene, "predict {onnx} {here}/p {here}/empty"), 2, "empty: holds no photos", "expected .jpg")
    files_in("p/a.png", "p/z.png")(scene)
    check_words(run(scene, "predict {onnx} {here}/p"), 2, "a.png: is empty", "z.png: is empty")


def test_what_the_gate_refuses_can_be_overridden_as_it_says(scene: Scene) -> None:
    scene.write({**scene.raw, **TEACHER})
    check_words(run(scene, "{distill}"), 4, "--override-gate")
    assert run(scene, "{distill} --override-gate 'a test'").code == 0
    check_words(run(scene, "{distill} --override-gate 'a test'"), 2, "holds a finished Run already")


def test_a_run_is_not_resumed_on_other_labels(scene: Scene) -> None:
    scene.copy_photos()
    assert run(scene, "{distill}").code == 0
    (scene.out / "weights.safetensors").unlink()
    table = scene.own / "manifest.csv"
    table.write_text(table.read_text().replace(",rust,train,", ",blight,train,", 1))
    check_words(run(scene, "{distill} --resume"), 2, "other photos or labels", str(scene.out), "put the manifest back")


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", r"caf\udce9.jpg"), ("ascii", "caf")])
def test_a_name_that_the_terminal_cannot_show(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("COLUMNS", "300")  # no name is cut in two
    latin = scene.here / os.fsdecode("caf\u00e9.jpg".encode("latin-1"))
    shutil.copy(scene.lab.photos / scene.first, latin)
    for line in ("predict {onnx} ", "predict --json {onnx} "):
        done = child(*AGRIKD, *shlex.split(scene.fill(line)), latin)
        assert done.returncode == 0 and shown in done.stdout, done.stderr


def test_a_missing_extra(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check_words(run(scene, "predict {onnx} {photos}/{first}"), 3, "onnxruntime", "pip install 'agrikd[export]'")


def test_an_export_that_answers_otherwise(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("onnx", reason="pip install 'agrikd[export]'")
    fold = onnx.fold

    def nudge(path: Path) -> None:
        fold(path)
        model = package.load(path)
        (bias,) = [one for one in model.graph.initializer if one.name.endswith("classifier.bias")]
        bias.CopyFrom(package.numpy_helper.from_array(package.numpy_helper.to_array(bias) + 1, bias.name))
        package.save(model, path)

    monkeypatch.setattr(onnx, "fold", nudge)
    check_words(run(scene, "export onnx {run} --out {out}/m.onnx"), 5, "m.onnx does not answer", "nothing was written")
    assert not list(scene.out.iterdir())


# The disk is full.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount here to make a small disk with")
    done = child("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place)
    if done.returncode:
        pytest.skip(f"a small disk cannot be made here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


FULL = {
    "checkpoint": ("distill {recipe} --out {disk}/run", True),
    "examples": ("distill {recipe} --out {disk}/run -s optim.checkpoint_every=100", True),
    "export": ("export onnx {run} --images 2 --out {disk}/m.onnx", False),
    "synth": ("data synth {disk}/leaves --size 64 --per-class 4 --unlabelled 0 --test-per-class 4", False),
    "report": ("evaluate {run} --report {disk}/report.html", False),
}


@pytest.mark.parametrize(("line", "begun"), FULL.values(), ids=FULL)
def test_a_full_disk(scene: Scene, disk: Path, line: str, begun: bool) -> None:
    said = run(scene, line.replace("{disk}", str(disk)))
    check_words(said, 7, str(disk), "the disk is full", "free some space")
    check_left({}, listing(disk), begun=begun)


def test_a_disk_that_fills_up_while_an_export_is_made(scene: Scene, disk: Path) -> None:
    size = scene.lab.onnx.stat().st_size
    for times, code in ((1.5, 7), (4, 0)):
        child("mount", "-o", f"remount,size={int(times * size)}", disk).check_returncode()
        said = run(scene, f"export onnx {{run}} --images 2 --out {disk}/m.onnx")
        check_words(said, code, "the disk is full" if code else "answers")
        assert [path.name for path in disk.iterdir()] == ([] if code else ["m.onnx"])


def test_a_full_disk_stops_init_between_its_two_files(scene: Scene, disk: Path) -> None:
    refused = 0
    scene.sort_photos()
    for pages in range(8):
        (disk / "other").write_bytes((64 - 4 * pages) * 1024 * b"x")
        said = run(scene, f"init {{here}}/sorted --out {disk}")
        if said.code == 0:
            break
        check_words(said, 7, str(disk), "the disk is full")
        assert [path.name for path in disk.iterdir()] == ["other"]
        refused += 1
    assert refused >= 2 and (disk / "recipe.yaml").exists()


@pytest.mark.parametrize("key", ["data.cache_mb=0", "data.cache_mb=100"])
def test_a_full_cache(scene: Scene, disk: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A write through a memory map would end the process without a word."""
    monkeypatch.setenv("AGRIKD_CACHE", str(disk))
    line = "{distill} --teacher {run} --override-gate test -s method.name=kd -s data.views=20 -s " + key
    said = on_its_own(*shlex.split(scene.fill(line)))
    check_words(said, 7, str(disk), "the disk is full", "free some space")
    check_left({}, listing(scene.out) if scene.out.exists() else {}, begun=True)


# A place that one may not write.


@pytest.fixture
def locked(lab: Lab) -> Iterator[Scene]:
    """A scene that everybody may read and nobody may write, but for {out}."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(lab, Path(folder))
        scene.copy_photos()
        scene.sort_photos()
        scene.out.mkdir()
        scene.out.chmod(0o777)
        scene.here.chmod(0o555)
        yield scene
        scene.here.chmod(0o755)


@pytest.fixture(scope="module")
def unprivileged() -> Callable[..., Said]:
    """Runs a command line as a user without rights: root becomes nobody."""
    ways: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), {})]
    if os.geteuid() == 0:
        setpriv = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        reads_all = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # where python is root's own
        ways = [((), {"user": 65534, "group": 65534, "extra_groups": []}), ((*setpriv, *reads_all), {})]
    for before, user in ways:
        try:
            if child(*before, *AGRIKD, "--version", **user).returncode == 0:
                break
        except OSError:
            continue
    else:
        pytest.skip(f"an unprivileged user may not read {sys.executable} or the package, and nothing is copied")

    def command(*words: str) -> Said:
        done = child(*before, *AGRIKD, *words, **user)
        return Said(done.returncode, done.stderr)

    return command


LOCKED = {
    "init": "init {here}/sorted --out {here}/new",
    "synth": "data synth {here}/leaves --size 64 --per-class 1 --unlabelled 0 --test-per-class 0",
    "distill": "distill {recipe} --out {here}/runs/one",
}


@pytest.mark.parametrize("line", LOCKED.values(), ids=LOCKED)
def test_a_place_one_may_not_write(
    locked: Scene, unprivileged: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("AGRIKD_CACHE", str(locked.out))
    before = listing(locked.here)
    said = unprivileged(*shlex.split(locked.fill(line)))
    check_words(said, 7, str(locked.here), "may not be written", "choose another place")
    after = {name: held for name, held in listing(locked.here).items() if not name.startswith("out/")}
    check_left(before, after)


# Ctrl-C.


def test_ctrl_c_keeps_the_checkpoint_and_resume_goes_on(scene: Scene) -> None:
    scene.write({**scene.raw, "optim": {"steps": 200, "batch": 4, "checkpoint_every": 2}})
    words = [*AGRIKD, *shlex.split(scene.fill("{distill}"))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hears no Ctrl-C
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    try:
        while child.poll() is None and not (scene.out / "checkpoint.pt").exists():
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=120)
    finally:
        child.kill()
    check_words(Said(child.returncode, stderr), 130, "interrupted", "what was finished is kept", "--resume")
    check_left({}, listing(scene.out), begun=True)
    assert run(scene, "{distill}").code == 2
    check_words(run(scene, "{distill} --resume"), 0, "next: agrikd calibrate")
    assert (scene.out / "weights.safetensors").exists() and not (scene.out / "checkpoint.pt").exists()
