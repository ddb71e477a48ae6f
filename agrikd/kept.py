"""The pictures that an agent has kept, with what models and people said of each."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agrikd import records
from agrikd.records import NOT_A_PLANT, Label
from agrikd.types import ModelSpec

_PICTURES = (
    "SELECT frames.id AS frame, local, camera, field, plot, file, sha256, why, audit IS NOT NULL AS drawn"
    " FROM pictures JOIN frames ON frames.id = pictures.frame"
)


class Answer(NamedTuple):
    """What a model said. said: a class, `NOT_A_PLANT`, or a number with its unit; the last two have no probability."""

    model: str
    said: str
    probability: float | None
    unsure: bool
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def number(self) -> bool:
        return self.probability is None and self.said != NOT_A_PLANT


@dataclass(frozen=True)
class Kept:
    """A picture. local: the wall clock's time there. file: as `Field.picture` takes it, with its SHA-256. why: it was
    kept. drawn: at random, for the accuracy in the field. Of several answers, and words of people, the last."""

    frame: int
    local: str
    camera: str
    field: str
    plot: str
    file: str
    sha256: str
    why: str
    drawn: bool
    student: Answer | None
    teacher: Answer | None
    label: Label | None


def chosen(db: sqlite3.Connection) -> Iterator[Kept]:
    """Those that were not drawn at random; the newest first."""
    yield from _kept(db, f"{_PICTURES} WHERE audit IS NULL ORDER BY pictures.frame DESC")


def labelled(db: sqlite3.Connection) -> Iterator[Kept]:
    """Those of which people have said something, in their order."""
    found = _kept(db, f"{_PICTURES} WHERE pictures.frame IN (SELECT frame FROM labels) ORDER BY pictures.frame")
    yield from (one for one in found if one.label)


def of_frame(db: sqlite3.Connection, frame: int) -> Kept | None:
    return next(_kept(db, f"{_PICTURES} WHERE pictures.frame = ?", frame), None)


def of_frames(db: sqlite3.Connection, frames: Sequence[int]) -> Iterator[Kept]:
    """Those of them that are kept, in no order."""
    query = f"{_PICTURES} WHERE pictures.frame IN (SELECT value FROM json_each(?))"
    yield from _kept(db, query, json.dumps(list(frames)))


def of_camera(
    db: sqlite3.Connection, camera: str, span: tuple[int, int], offset: int = 0, most: int = -1
) -> Iterator[Kept]:
    """From frame to frame, both included, in their order; at most so many (−1: all)."""
    within = "WHERE pictures.frame BETWEEN ? AND ? AND camera = ? ORDER BY pictures.frame LIMIT ? OFFSET ?"
    yield from _kept(db, f"{_PICTURES} {within}", *span, camera, most, offset)


def specs(db: sqlite3.Connection) -> dict[str, ModelSpec]:
    """Of the models that ever answered, by their names."""
    return {name: ModelSpec.from_json(json.loads(said)) for name, said in db.execute("SELECT name, spec FROM models")}


def _kept(db: sqlite3.Connection, query: str, *values: Any) -> Iterator[Kept]:
    known, labels = specs(db), records.verdicts(db)
    for row in db.execute(query, values):
        said = _answers(db, row["frame"], known)
        own = {**row, "drawn": bool(row["drawn"]), "label": labels.get(row["frame"])}
        yield Kept(**own, student=said.get("student"), teacher=said.get("teacher"))


def _answers(db: sqlite3.Connection, frame: int, known: Mapping[str, ModelSpec]) -> dict[str, Answer]:
    """By role."""
    rows = db.execute(
        "SELECT role, model, top, probability, value, unsure, unknown, probabilities FROM predictions"
        " WHERE frame = ? ORDER BY id",
        (frame,),
    )
    return {row["role"]: _answer(row, known[row["model"]]) for row in rows}


def _answer(row: sqlite3.Row, spec: ModelSpec) -> Answer:
    said, probability = spec.classes[row["top"]], row["probability"]
    if row["unknown"]:
        said, probability = NOT_A_PLANT, None
    elif spec.scale and row["value"] is not None:
        said, probability = spec.scale.said(row["value"]), None
    shares = tuple(json.loads(row["probabilities"]))
    return Answer(row["model"], said, probability, bool(row["unsure"]), spec.classes, shares)
