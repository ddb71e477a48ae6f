"""Which Runs there are, how far each is, and how two differ."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml

from agrikd import files
from agrikd.errors import InputError, Problem
from agrikd.gallery.judged import Judgement, judgements
from agrikd.gallery.log import last_step
from agrikd.gallery.texts import json_of, shown
from agrikd.recipe import NetSpec, Recipe, parse, read_yaml
from agrikd.run import Run
from agrikd.types import Calibration, ModelSpec

State = Literal["finished", "training", "begun", "interrupted", "stopped", "refused"]
UNFINISHED: tuple[State, ...] = ("training", "begun")
Obstacle = Literal["task", "photos", "labels", "split", "rows"]
OBSTACLES: tuple[Obstacle, ...] = get_args(Obstacle)
MOST_RUNS = 200
_DEEP, _MOST_INNER = 2, 500
_MOST_RECIPE_BYTES, _MOST_NESTED, _MOST_DIFFERENCES = 2**16, 40, 200
_MOST_REPORTS, _MOST_REPORT_BYTES = 10, 2**26
_SILENT_S = 600.0
"""A training that writes nothing for so long is taken for interrupted: nothing else tells."""
_WRITTEN = ("run.json", "recipe.yaml", "gate.json", "metrics.jsonl", "checkpoint.pt", "weights.safetensors")
_OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """A Run in short. record: its run.json. changed: when something was last written, UTC, seconds since 1970. step:
    None where no step was logged; steps: None where it was not made in the recipe's steps (`agrikd teach`). judged: the
    test split first. wrong: what of it cannot be read, in words."""

    run: Run
    record: dict[str, Any]
    state: State
    changed: float
    step: int | None
    steps: int | None
    judged: tuple[Judgement, ...]
    calibration: Calibration | None
    wrong: tuple[str, ...]

    @property
    def method(self) -> str:
        """How it was made: "teach", or the names of the method and of those that are added to it."""
        own = self.run.recipe.method
        return "teach" if self.steps is None else ", ".join(one.name for one in (own, *own.also))

    @property
    def teacher(self) -> str:
        return ", ".join(net(one) for one in self.run.recipe.teachers)


def find(root: Path, now: float) -> tuple[list[Summary], list[str]]:
    """The Runs that lie at most two folders deep, newest first, `MOST_RUNS` of them, and what is wrong with other
    folders there, in words. now: UTC, seconds since 1970. Raises `InputError` where there is no such folder."""
    if not root.is_dir():
        mend = "agrikd app FOLDER --runs RUNS names another; agrikd distill and agrikd demo make Runs"
        raise InputError(Problem(str(root), "is no folder of Runs", mend))
    found, wrong = [], []
    for place in islice(_places(root, _DEEP), MOST_RUNS):
        try:
            found.append(summary(opened(place), now))
        except InputError as error:
            wrong.append(shown(error))
        except OSError as error:
            wrong.append(shown(Problem(str(place), f"cannot be read ({error.strerror})")))
    return sorted(found, key=lambda one: -one.changed), wrong


def _places(place: Path, deep: int) -> Iterator[Path]:
    """Folders with a piece of a Run, and those right under the top that hold none."""
    try:
        inner = sorted(one for one in islice(place.iterdir(), _MOST_INNER) if one.is_dir()) if deep else []
        holds = any((place / name).exists() for name in _WRITTEN)
    except OSError:
        inner, holds = [], True  # whoever opens it will say why not
    if holds:
        yield place
        return
    under = [one for folder in inner if not folder.name.startswith(".") for one in _places(folder, deep - 1)]
    yield from under or ([place] if deep == _DEEP - 1 else [])


def opened(place: Path) -> Run:
    """A Run, finished or not; raises `InputError` where the folder is none, `OSError` where it cannot be looked at."""
    for name in ("recipe.yaml", "run.json"):
        if not (place / name).exists():
            mend = "expected a folder made by agrikd teach or agrikd distill"
            raise InputError(Problem(str(place), f"is no Run: it has no {name}", mend))
    at = (place / "recipe.yaml").stat()
    return Run(place, _recipe(place / "recipe.yaml", at.st_mtime_ns, at.st_size))


@lru_cache(maxsize=2 * MOST_RUNS)
def _recipe(path: Path, changed_ns: int, size_bytes: int) -> Recipe:
    """Refuses what agrikd never writes and what would take for ever to show: aliases of aliases, deep nesting."""
    if size_bytes > _MOST_RECIPE_BYTES:
        raise InputError(Problem(str(path), f"is too large for a recipe ({size_bytes} bytes)"))
    try:
        depth = 0
        for token in yaml.scan(files.read_text(path)):
            depth += isinstance(token, _OPENS) - isinstance(token, _CLOSES)
            if depth > _MOST_NESTED or isinstance(token, yaml.AliasToken):
                raise InputError(Problem(str(path), "is no recipe of a Run: it is nested too deep, or has aliases"))
    except yaml.YAMLError:
        pass  # read_yaml says what and where
    recipe = parse(read_yaml(path), str(path))
    try:
        recipe.to_yaml()
    except ValueError as error:
        raise InputError(Problem(str(path), f"holds what no recipe can ({error})")) from None
    return recipe


def summary(run: Run, now: float) -> Summary:
    """What a list says of a Run; `now` as in `find`."""
    wrong: list[str] = []

    def read(what: Callable[[], T], otherwise: T) -> T:
        try:
            return what()
        except InputError as error:
            wrong.append(shown(error))
            return otherwise

    nothing: dict[str, Any] = {}
    record = read(lambda: json_of(run.folder / "run.json"), nothing)
    judged, strange = judgements(run, record)
    taught = "stages" in record
    return Summary(
        run=run,
        record=record,
        state=read(lambda: state(run, now), "interrupted"),
        changed=changed(run),
        step=None if taught else read(lambda: last_step(run.metrics), None),
        steps=None if taught else run.recipe.optim.steps,
        judged=tuple(judged),
        calibration=read(lambda: calibration(run), None),
        wrong=(*wrong, *strange),
    )


def changed(run: Run) -> float:
    """When something was last written into a Run, UTC, seconds since 1970."""
    return max((at.stat().st_mtime for name in _WRITTEN if (at := run.folder / name).exists()), default=0.0)


def state(run: Run, now: float) -> State:
    """How far a Run is; raises `InputError` where its gate.json is damaged.

    begun: no step is logged yet, which is also how `agrikd teach` looks until its end. stopped: at a loss that was not
    finite. interrupted: nothing was written for ten minutes.
    """
    if run.done:
        return "finished"
    if run.checkpoint.exists() or (run.metrics.exists() and run.metrics.stat().st_size):
        last = changed(run)
        if any(path.stat().st_mtime >= last for path in run.folder.glob("non_finite_batch_*.pt")):
            return "stopped"
        return "training" if now - last < _SILENT_S else "interrupted"
    gate(run)  # a file that is none of the gate's is named as one
    return "refused" if run.refused else "begun"


def calibration(run: Run) -> Calibration | None:
    """A Run's; None where it has none. Raises `InputError` where the file is damaged."""
    path = run.folder / "calibration.json"
    return run.calibration if path.exists() and json_of(path) else None


def net(spec: NetSpec) -> str:
    """A net's name in a few words: of timm, of the Run it comes from, or of the members of an ensemble."""
    if spec.ensemble:
        return " + ".join(net(member) for member in spec.ensemble)
    return spec.timm or (spec.run.name if spec.run else "")


def gate(run: Run) -> list[tuple[str, str, str]]:
    """(what was asked of the teachers, answer, why) at the gate; raises `InputError` where its file is damaged."""
    path = run.folder / "gate.json"
    if not path.exists():
        return []
    try:
        said = json_of(path)
        asked = (
            [one for teacher in said["teachers"] for one in teacher] if {"passed", "override"} <= said.keys() else [{}]
        )
        return [(shown(one["name"]), shown(one["answer"]), shown(one["why"])) for one in asked]
    except (KeyError, TypeError):
        raise InputError(Problem(str(path), "is no verdict of the gate")) from None


def reports(run: Run, root: Path) -> list[Path]:
    """The HTML reports in a Run, and beside it, where those of several Runs are; never a link to elsewhere."""
    places = [run.folder, *(one for one in run.folder.parents if root in (one, *one.parents)), root.parent]
    found = islice((path for place in places for path in sorted(place.glob("report*.html"))), _MOST_REPORTS)
    return [one for one in found if one.is_file() and not one.is_symlink() and one.stat().st_size < _MOST_REPORT_BYTES]


@lru_cache(maxsize=MOST_RUNS)
def digest(path: Path, changed_ns: int, size_bytes: int) -> str:
    """The SHA-256 of a file as it stood then, counted once. Raises `OSError`."""
    return files.sha256_of(path)


def differences(one: Recipe, other: Recipe) -> list[tuple[str, str, str]]:
    """(key, the one's value, the other's) where two recipes differ; an empty text where one has no such key."""
    first, second = (dict(_flat(recipe.model_dump(mode="json"), "")) for recipe in (one, other))
    keys = [key for key in dict.fromkeys((*first, *second)) if first.get(key) != second.get(key)]
    return [(shown(key), shown(first.get(key, "")), shown(second.get(key, ""))) for key in keys[:_MOST_DIFFERENCES]]


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """What is set, key by key."""
    if isinstance(value, dict | list):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value, 1):
            yield from _flat(inner, f"{key}.{part}" if key else str(part))
    elif value is not None:
        yield key, value if isinstance(value, str) else json.dumps(value)


def obstacles(one: Summary, other: Summary) -> list[Obstacle]:
    """Why the figures of two Runs cannot be held against each other.

    task: they answer other questions. photos: they were made from other photos or labels. labels: they were shown
    another number of labels, or others. split: neither was judged on a split of the other's. rows: they were, but not
    on the same photos.
    """
    mine, its = one.run.recipe, other.run.recipe
    range_of = [recipe.task.scale and recipe.task.scale.range for recipe in (mine, its)]
    shown_to = [(r.data.labels_per_class, r.data.labels) for r in (mine, its)]
    pairs = alike(one, other)
    holds: dict[Obstacle, bool] = {
        "task": range_of[0] != range_of[1] or one.record.get("classes") != other.record.get("classes"),
        "photos": one.record.get("data_digest") != other.record.get("data_digest"),
        "labels": shown_to[0] != shown_to[1] or (any(shown_to[0]) and mine.data.subset_seed != its.data.subset_seed),
        "split": not pairs,
        "rows": any(first.sample != second.sample for first, second in pairs),
    }
    return [name for name in OBSTACLES if holds[name]]


def alike(one: Summary, other: Summary) -> list[tuple[Judgement, Judgement]]:
    """The judgements of two Runs on splits of the same name."""
    return [(first, second) for first in one.judged for second in other.judged if first.split == second.split]


def on_device(db: sqlite3.Connection) -> list[tuple[str, str, ModelSpec]]:
    """(release or file, role, spec) of the models that have answered there, the newest first, 50 at the most. Raises
    `InputError` for one that is no model's."""
    found = []
    for name, role, said in db.execute("SELECT name, role, spec FROM models ORDER BY id DESC LIMIT 50"):
        try:
            found.append((str(name), str(role), ModelSpec.from_json(json.loads(said))))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise InputError(Problem(shown(name), "is in the records, but is no model")) from None
    return found
