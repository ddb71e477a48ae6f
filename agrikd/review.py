"""What people should look at next, and what they said as next season's photos: from the records to a manifest.

The queue takes turns: two of four are frames on which the models disagree or the student is unsure, one is no plant
that it knows, one was drawn at random. A frame of the random share comes in its own turn alone, in an order that has
nothing to do with what was said of it, so that those which are labelled are a random part of it. Of pictures equal
to the byte one is asked about.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any, Literal

from agrikd import files, kept, records, sheets
from agrikd.data import manifest as manifests
from agrikd.data import splits
from agrikd.data.manifest import Manifest, Row
from agrikd.data.start import name_of, write_recipe
from agrikd.errors import InputError, Problem
from agrikd.kept import Kept
from agrikd.records import NOT_A_PLANT, PICKED, UNSURE, Label

Kind = Literal["disagreement", "doubt", "not a plant", "random"]
KINDS: tuple[Kind, ...] = ("disagreement", "doubt", "not a plant", "random")
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
_SHOWN = 20
_AT_FIRST, _AT_ONCE, _LOOK_AT = 200, 5000, 20_000
"""Pictures that are read together at first, and then; and at most: the newest, or of random ones as many of them."""


def queue(
    db: sqlite3.Connection, kinds: Collection[str] = KINDS, most: int = 100, skipped: Collection[int] = ()
) -> list[Kept]:
    """What nobody has judged: of what was drawn at random any, of the other kinds the newest first. skipped: frames
    that are left out, and their equals."""
    offered = {row["sha256"] for row in _pictures(db) if row["frame"] in skipped} if skipped else set()

    def wanted(one: Kept) -> bool:
        if kind_of(one) not in kinds or one.sha256 in offered:
            return False
        offered.add(one.sha256)
        return True

    drawn = list(islice(filter(wanted, _drawn(db)), most)) if "random" in kinds else []
    waiting: dict[Kind | None, list[Kept]] = {kind: [] for kind in KINDS}
    for one in filter(wanted, _chosen(db)):
        if len(same := waiting[kind_of(one)]) < most:
            same.append(one)
    doubtful = iter(sorted(waiting["disagreement"] + waiting["doubt"], key=lambda one: -one.frame))
    turns = doubtful, iter(waiting["not a plant"]), doubtful, iter(drawn)
    return list(islice(_in_turns(turns), most))


def waits(db: sqlite3.Connection, one: Kept) -> bool:
    """Whether still nobody has judged it, or its equal."""
    return one.sha256 not in _judged(db, one.drawn)


def _drawn(db: sqlite3.Connection) -> Iterator[Kept]:
    """Of all that were drawn at random and not judged, in an order that is neither theirs nor anybody's."""
    judged = _judged(db, True)
    frames = [row["frame"] for row in _pictures(db, "WHERE audit IS NOT NULL") if row["sha256"] not in judged]
    frames.sort(key=lambda frame: hashlib.sha256(str(frame).encode()).digest())
    bounds = 0, _AT_FIRST, *range(_AT_ONCE, _LOOK_AT + 1, _AT_ONCE)
    for start, end in pairwise(bounds):
        some = frames[start:end]
        found = {one.frame: one for one in kept.of_frames(db, some)}
        yield from (found[frame] for frame in some if frame in found)


def _chosen(db: sqlite3.Connection) -> Iterator[Kept]:
    """Of the newest that were kept for another reason, those that nobody has judged."""
    judged = _judged(db, False)
    yield from (one for one in islice(kept.chosen(db), _LOOK_AT) if one.sha256 not in judged)


def _judged(db: sqlite3.Connection, drawn: bool) -> set[str]:
    """Digests. For a frame that was drawn at random counts only what was said of such frames, and not of one that
    somebody picked because of what he saw: it stays a random part of what was seen."""
    judged = records.verdicts(db, without=PICKED if drawn else ())
    rows = _pictures(db, "WHERE frame IN (SELECT frame FROM labels)")
    return {row["sha256"] for row in rows if row["frame"] in judged and (row["drawn"] or not drawn)}


def _pictures(db: sqlite3.Connection, where: str = "") -> Iterator[sqlite3.Row]:
    query = "SELECT frame, sha256, audit IS NOT NULL AS drawn FROM pictures JOIN frames ON frames.id = frame"
    yield from db.execute(f"{query} {where}")


def _in_turns(turns: Sequence[Iterator[Kept]]) -> Iterator[Kept]:
    """Until none of them has more."""
    empty = 0
    for turn in cycle(turns):
        one = next(turn, None)
        empty = 0 if one else empty + 1
        if one:
            yield one
        elif empty == len(turns):
            return


def kind_of(one: Kept) -> Kind | None:
    """Why somebody should look at it; None where nothing speaks for it."""
    if one.student is None or one.student.number:  # a number is no matter of yes or no
        return None
    if one.drawn:
        return "random"
    if one.teacher is not None and one.teacher.said != one.student.said:
        return "disagreement"
    return "not a plant" if one.student.said == NOT_A_PLANT else "doubt" if one.student.unsure else None


# What was said


@dataclass(frozen=True)
class Exported:
    """gone: frames whose pictures are no longer there, or no longer what was labelled. assumptions: in words."""

    manifest: Path
    rows: tuple[Row, ...]
    gone: tuple[int, ...]
    assumptions: tuple[str, ...]

    @property
    def recipe(self) -> Path:
        return self.manifest.with_name("recipe.yaml")

    @property
    def counts(self) -> list[tuple[str, ...]]:
        """Of each label, how many photos each split has."""
        found = Counter((row.target or "", row.split) for row in self.rows)
        names = sorted({name for name, _ in found})
        return [(name, *(str(found[name, split]) for split in manifests.SPLITS)) for name in names]

    def to_json(self) -> dict[str, Any]:
        made = {"manifest": str(self.manifest), "recipe": str(self.recipe), "photos": len(self.rows)}
        return made | {"gone": list(self.gone), "assumptions": list(self.assumptions)}


COLUMNS = (
    *("frame", "local", "camera", "field", "plot", "session", "label", "label_by", "label_t", "source", "note"),
    *("student", "student_p", "student_model", "teacher", "teacher_p", "teacher_model", "kind", "file", "sha256"),
)


def table(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """What people said, a row a frame, with what the models had said; in the order of the frames."""
    return [_line(one, one.label) for one in kept.labelled(db) if one.label]


def size_bytes(db: sqlite3.Connection) -> int:
    """Of all pictures that have a label."""
    (found,) = db.execute("SELECT TOTAL(size_bytes) FROM pictures WHERE frame IN (SELECT frame FROM labels)").fetchone()
    return int(found)


def _line(one: Kept, label: Label) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for role, answer in (("student", one.student), ("teacher", one.teacher)):
        said[role] = answer.said if answer else ""
        said[f"{role}_p"] = f"{answer.probability:.5f}" if answer and answer.probability is not None else ""
        said[f"{role}_model"] = answer.model if answer else ""
    place = {"camera": one.camera, "field": one.field, "plot": one.plot}
    who = {"label": label.label, "label_by": label.who, "label_t": f"{label.t:.3f}", "source": label.source}
    session = " ".join(text for text in (one.camera, one.field, one.local[:10]) if text)
    own = {"frame": one.frame, "local": one.local, "session": session, "kind": kind_of(one) or ""}
    held = {"file": one.file, "sha256": one.sha256}
    return {**own, **held, **place, **who, "note": label.note, **said}


def export(
    db: sqlite3.Connection,
    folder: Path,
    out: Path,
    shares: Mapping[str, float] | None = None,
    called: Path | None = None,
) -> Exported:
    """A new folder of labelled photos with a manifest and a recipe: what a camera saw on one day stays in one split.

    folder: of the records. shares: of the splits, by default 70, 10 and 20 %; where the sessions are too few for
    that, all rows train, and the answer says so. called: what the recipe's commands call `out`. Frames that nobody is
    sure of are left out, and pictures that are no longer what was labelled; of equal pictures one is taken, and none
    where their labels differ.
    Raises `InputError` where nothing is labelled or `out` holds something; then nothing is written.
    """
    files.require_free(out)
    said = table(db)
    found, gone = _by_content(folder, [line for line in said if line["label"] != UNSURE])
    agreed, left_out = _agreed(found)
    if gone:
        shown = f"{', '.join(map(str, gone[:_SHOWN]))}{' …' * (len(gone) > _SHOWN)}"
        left_out.append(f"left out {len(gone)} pictures that are gone, or not what was labelled: frames {shown}")
    if all(line["label"] == NOT_A_PLANT for line in agreed.values()):
        mend = "; ".join(left_out) or "label some on the page Review"
        raise InputError(Problem(str(folder), "holds no labelled photo of a plant", mend))
    series = records.meta(db, "series")[:8]
    rows = tuple(_row(series, digest, line) for digest, line in agreed.items())
    with files.replacing_folder(out) as made:
        split, assumptions = _split(Manifest(rows, made), shares or SHARES)
        for row in split.rows:
            files.write_bytes(made / row.path, (folder / agreed[row.sha256]["file"]).read_bytes())
        manifests.write(split, made / "manifest.csv")
        files.write_text(made / "labels.csv", sheets.as_csv(COLUMNS, said))
        assumed = write_recipe(
            made / "recipe.yaml", split, name_of(called or out), called=(called or out) / "recipe.yaml"
        )
    if len(split.classes) == 1:
        assumed = [f"all are {split.classes[0]!r}: label photos of another class before you train", *assumed]
    return Exported(out / "manifest.csv", split.rows, tuple(gone), (*left_out, *assumptions, *assumed))


def _by_content(folder: Path, said: Iterable[dict[str, Any]]) -> tuple[dict[str, list[dict[str, Any]]], list[int]]:
    """The lines of each picture by its digest, and the frames whose pictures are gone, or are others by now."""
    found: dict[str, list[dict[str, Any]]] = {}
    gone = []
    for line in said:
        path = folder / line["file"]
        if path.is_file() and files.sha256_of(path) == line["sha256"]:
            found.setdefault(line["sha256"], []).append(line)
        else:
            gone.append(line["frame"])
    return found, gone


def _agreed(found: Mapping[str, list[dict[str, Any]]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The first line of each picture on whose label all agree; what is left out, in words."""
    agreed = {digest: lines[0] for digest, lines in found.items() if len({line["label"] for line in lines}) == 1}
    copies = sum(len(found[digest]) - 1 for digest in agreed)
    left_out = [f"left out {copies} copies of other pictures, equal to the byte"] if copies else []
    for lines in (lines for digest, lines in found.items() if digest not in agreed):
        each = ", ".join(f"frame {line['frame']} is {line['label']}" for line in lines)
        left_out.append(f"left out one picture with several labels ({each}): judge it again on the page Review")
    return agreed, left_out


def _row(series: str, digest: str, line: Mapping[str, Any]) -> Row:
    own = {"group": f"{series} {line['session']}", "season": line["local"][:4], "sha256": digest}
    source = f"field, {line['label_by'] or 'nobody named'}"
    return Row(f"photos/{series}-{line['frame']:09d}.jpg", line["label"], "train", **own, source=source)


def _split(manifest: Manifest, shares: Mapping[str, float]) -> tuple[Manifest, tuple[str, ...]]:
    """The plants are dealt, and then what is no plant, which may not teach, joins what judges: else one such picture
    would take all of its day out of training."""
    plants = tuple(row for row in manifest.rows if row.target != NOT_A_PLANT)
    try:
        dealt = splits.stratified(Manifest(plants, manifest.root), shares, 0).rows
        said = []
    except InputError as error:
        why = "; ".join(one.said for one in error.problems)
        dealt, said = plants, [f"too few days of capture for a split ({why}): all photos train"]
    split_of = {row.group: row.split for row in dealt}
    split_of |= {row.group: "train" if said else "test" for row in manifest.rows if row.group not in split_of}
    strange = (replace(row, split=split_of[row.group]) for row in manifest.rows if row.target == NOT_A_PLANT)
    judging = [row for row in strange if row.split != "train"]
    if left := len(manifest.rows) - len(plants) - len(judging):
        said.append(f"left out {left} pictures of no plant, which may only judge: the rest of their day trains")
    rows = sorted((*dealt, *judging), key=lambda row: row.path)
    return Manifest(tuple(rows), manifest.root), tuple(said)
