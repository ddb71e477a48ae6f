"""The models that can be asked about one picture, what each says of it, and where the records say that two differ."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from agrikd import files, image
from agrikd.errors import InputError, Problem
from agrikd.intervals import Interval, wilson
from agrikd.predict import open_predictor
from agrikd.predict._base import Predictor
from agrikd.predict.ort import OrtPredictor
from agrikd.records import NOT_A_PLANT, Opinion, Role
from agrikd.types import Image, ModelSpec, Prediction, figure

MOST_BYTES = 20 * 2**20
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""How a JPEG and a PNG begin; of these `image.decode` knows the pixels before it gives memory to them."""
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Model:
    """One that can be asked. name: no other's here. serves: it is the one that the device asks."""

    name: str
    path: Path
    serves: bool = False

    @property
    def explains(self) -> bool:
        """Whether it is a Run, whose net can be looked into."""
        return self.path.is_dir()

    @property
    def changed(self) -> int:
        """When its weights were written, in ns: another model may take the same name."""
        return _weights(self.path).stat().st_mtime_ns


@dataclass(frozen=True)
class Answer:
    """What a model says of a picture. recorded: as whom it said so when the device saw it; None where it was asked
    now."""

    model: str
    spec: ModelSpec
    said: Prediction | Opinion
    recorded: Role | None = None

    @property
    def word(self) -> str:
        """A class, `NOT_A_PLANT`, or a number with its unit."""
        if self.said.unknown:
            return NOT_A_PLANT
        if self.spec.scale and self.said.value is not None:
            return self.spec.scale.said(self.said.value)
        return self.likeliest

    @property
    def likeliest(self) -> str:
        """The class with the largest share, of whatever is in the picture."""
        return self.spec.classes[self.said.top]

    @property
    def share(self) -> float:
        """Of the likeliest class, 0 to 1."""
        return float(self.said.probabilities[self.said.top])

    @property
    def candidates(self) -> tuple[str, ...]:
        """The classes that it may be, likeliest first; none of a number."""
        return () if self.spec.scale else tuple(self.spec.classes[place] for place in self.said.candidates)


class Bar(NamedTuple):
    """share: 0 to 1, how long it is. text: its number."""

    share: float
    text: str


class Kept(NamedTuple):
    """A frame. local: the wall clock's time there, ISO 8601. file, sha256: of its picture, in the records; empty where
    none was kept."""

    frame: int
    local: str
    camera: str
    file: str
    sha256: str


class Pair(NamedTuple):
    """What student and teacher said of the same frames, differently. frames: how many. frame: the newest of them whose
    picture was kept, None without."""

    student: str
    teacher: str
    frames: int
    frame: int | None


class Day(NamedTuple):
    """date: as 2027-05-04. The share of the day's frames on which they said the same, with its 95 % interval."""

    date: str
    share: float
    interval: Interval
    frames: int


class Differences(NamedTuple):
    """pairs: the most frequent first. days: in their order. frames: that both judged."""

    pairs: tuple[Pair, ...]
    days: tuple[Day, ...]
    frames: int

    @property
    def agreed(self) -> int:
        return self.frames - sum(pair.frames for pair in self.pairs)


# Which


def models(folder: Path, runs: Path, serving: str) -> list[Model]:
    """All that are found: the releases of the agent in `folder`, .onnx files in `runs` and beside it, and the finished
    Runs in it, at most two folders deep. The one that serves comes first."""
    found: dict[Path, str] = {}
    for link in ("current", "previous"):
        release = (folder / link).resolve()
        if (release / "choice.json").exists():
            found[release / files.read_json(release / "choice.json")["file"]] = release.name
    for path in (*sorted(runs.glob("*.onnx")), *_runs(runs), *sorted(runs.parent.glob("*.onnx"))):
        inside = runs in path.parents
        name = path.relative_to(runs).as_posix() if inside else path.name
        found.setdefault(path, name if name not in found.values() else f"{path.parent.name}/{name}")
    made = [Model(name, path, _serves(name, path, serving)) for path, name in found.items()]
    return sorted(made, key=lambda one: not one.serves)


def _runs(runs: Path) -> list[Path]:
    recipes = (*runs.glob("*/recipe.yaml"), *runs.glob("*/*/recipe.yaml"))
    return sorted(path.parent for path in recipes if (path.parent / _WEIGHTS).exists())


def _serves(name: str, path: Path, serving: str) -> bool:
    """An agent calls a model that is no release by its file and the beginning of its hash."""
    stem, _, digest = serving.rpartition("-")
    if name == serving or stem != path.stem:
        return name == serving
    weights = _weights(path)
    return digest == _sha256(weights, weights.stat().st_mtime_ns)[:8]


def _weights(path: Path) -> Path:
    return path / _WEIGHTS if path.is_dir() else path


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: int) -> str:
    return files.sha256_of(path)


def serving(db: sqlite3.Connection) -> str:
    """The model that judged the newest frame; empty where none did."""
    row = db.execute("SELECT model FROM predictions WHERE role = 'student' ORDER BY id DESC LIMIT 1").fetchone()
    return str(row[0]) if row else ""


def opened(path: Path) -> Predictor:
    """A model that is ready to be asked. Raises `MissingExtraError` for a Run without torch.

    An exported file is opened with ONNX Runtime wherever it is: to build an engine for a look would take the
    accelerator from the model that serves.
    """
    return open_predictor(path) if path.is_dir() else OrtPredictor(path)


# What they say


def photo(data: bytes, where: str) -> Image:
    """An uploaded JPEG or PNG, turned as EXIF says; `where` names it in the errors, which are `InputError`s."""
    if len(data) > MOST_BYTES:
        raise InputError(Problem(where, f"has {len(data) / 1e6:.0f} MB", f"at most {MOST_BYTES // 2**20} MB are taken"))
    if data and not data.startswith(_PICTURES):
        raise InputError(Problem(where, "is no JPEG or PNG picture", "save it as one of these"))
    return image.decode(data, where)


def shrunk(picture: Image, side: int) -> Image:
    """With no side longer than so many pixels."""
    share = min(side / max(picture.shape[:2]), 1)
    return image.resize(picture, (max(round(share * picture.shape[0]), 1), max(round(share * picture.shape[1]), 1)))


def recorded(db: sqlite3.Connection, frame: int) -> list[Answer]:
    """What was said of a frame when it was seen, the student first."""
    rows = db.execute(
        "SELECT predictions.*, spec FROM predictions JOIN models ON name = model WHERE frame = ?"
        " ORDER BY predictions.role, predictions.id",
        (frame,),
    )
    found = []
    for row in rows:
        said = {name: row[name] for name in ("model", "role", "t", "latency_ms", "top", "value")}
        said |= {name: json.loads(row[name]) for name in ("probabilities", "candidates")}
        said |= {name: None if row[name] is None else bool(row[name]) for name in ("unsure", "unknown")}
        said["interval"] = json.loads(row["interval"]) if row["interval"] else None
        spec = ModelSpec.from_json(json.loads(row["spec"]))
        found.append(Answer(row["model"], spec, Opinion.from_json(said), row["role"]))
    return found


def parties(answers: Sequence[Answer]) -> dict[str, list[int]]:
    """Which say the same, by what they say, as places in `answers`; numbers take no part."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        if not answer.spec.scale:
            found[answer.word].append(place)
    return dict(found)


def bars(answers: Sequence[Answer]) -> dict[str, list[Bar | None]]:
    """A bar of each answer for every class, what any holds likely first; None where a model does not know the class.

    Numbers of one range share a row instead, on which a bar ends at the number.
    """
    found: dict[str, list[Bar | None]] = {}
    for place, answer in enumerate(answers):
        for name, bar in _own_bars(answer):
            found.setdefault(name, [None] * len(answers))[place] = bar
    return dict(sorted(found.items(), key=lambda row: -max(bar.share for bar in row[1] if bar)))


def _own_bars(answer: Answer) -> Iterator[tuple[str, Bar]]:
    scale, value = answer.spec.scale, answer.said.value
    if scale is None:
        for name, share in zip(answer.spec.classes, answer.said.probabilities, strict=True):
            yield name, Bar(float(share), f"{100 * share:.0f}\u00a0%")
    elif value is not None:
        row = f"{figure(scale.low)} – {scale.said(scale.high)}"
        yield row, Bar((value - scale.low) / (scale.high - scale.low), scale.said(value))


# In the records


def kept(db: sqlite3.Connection, count: int) -> list[Kept]:
    """The newest frames whose pictures were kept, the newest first."""
    rows = db.execute(
        "SELECT frames.id, local, camera, file, sha256 FROM pictures JOIN frames ON frames.id = frame"
        " ORDER BY frame DESC LIMIT ?",
        (count,),
    )
    return [Kept(*row) for row in rows]


def frame(db: sqlite3.Connection, number: int) -> Kept | None:
    """A frame by its number; None where the records know it no more."""
    row = db.execute(
        "SELECT frames.id, local, camera, COALESCE(file, ''), COALESCE(sha256, '') FROM frames"
        " LEFT JOIN pictures ON frame = frames.id WHERE frames.id = ?",
        (number,),
    ).fetchone()
    return Kept(*row) if row else None


def students(db: sqlite3.Connection) -> list[str]:
    """The models that served, the newest first."""
    return [str(row[0]) for row in db.execute("SELECT name FROM models WHERE role = 'student' ORDER BY id DESC")]


def differences(db: sqlite3.Connection, student: str, since: float, drawn: bool) -> Differences:
    """Where a student and its teachers part on frames since a time (UTC, seconds since 1970).

    drawn: only frames that were drawn at random. The teacher is asked above all in doubt, so of all frames the share
    of agreement is too low, and only of these it is that of the field. Models of numbers are left out.
    """
    classes = {name: _classes(spec) for name, spec in db.execute("SELECT name, spec FROM models")}
    pairs: Counter[tuple[str, str]] = Counter()
    newest: dict[tuple[str, str], int] = {}
    both, same = Counter[str](), Counter[str]()
    for day, top, unknown, teacher, its_top, its_unknown, count, example in _counted(db, student, since, drawn):
        own, its = classes.get(student), classes.get(teacher)
        if not own or not its:
            continue
        said = NOT_A_PLANT if unknown else own[top], NOT_A_PLANT if its_unknown else its[its_top]
        both[day] += count
        if said[0] == said[1]:
            same[day] += count
            continue
        pairs[said] += count
        if example is not None:
            newest[said] = max(example, newest.get(said, example))
    days = (Day(day, same[day] / both[day], wilson(same[day], both[day]), both[day]) for day in sorted(both))
    parted = (Pair(*said, count, newest.get(said)) for said, count in pairs.most_common())
    return Differences(tuple(parted), tuple(days), both.total())


def _counted(db: sqlite3.Connection, student: str, since: float, drawn: bool) -> sqlite3.Cursor:
    """Rows of (day, student's top and unknown, teacher, its top and unknown, how many frames, the newest kept)."""
    # CROSS JOIN keeps SQLite from beginning with the student's answers, of which there are the most.
    answers = "predictions AS other CROSS JOIN frames ON frames.id = other.frame"
    if drawn:
        answers = "frames CROSS JOIN predictions AS other ON other.frame = frames.id"
    return db.execute(
        "SELECT substr(local, 1, 10), own.top, own.unknown, other.model, other.top, other.unknown, COUNT(*),"
        f" MAX(pictures.frame) FROM {answers}"
        " CROSS JOIN predictions AS own ON own.frame = frames.id AND own.model = ?"
        " LEFT JOIN pictures ON pictures.frame = frames.id"
        " WHERE other.role = 'teacher' AND frames.t >= ?"
        f"{' AND frames.audit IS NOT NULL' if drawn else ''} GROUP BY 1, 2, 3, 4, 5, 6",
        (student, since),
    )


def _classes(spec: str) -> tuple[str, ...]:
    """None of a number's."""
    found = ModelSpec.from_json(json.loads(spec))
    return () if found.scale else found.classes
