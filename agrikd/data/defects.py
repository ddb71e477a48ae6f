"""A dataset spoilt on request, with the truth beside it: what a check must find, planted where we know it.

Works on any manifest, drawn leaves or real photos. No photo carries two defects, so that each can be counted.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from agrikd import files, image
from agrikd.data import manifest as manifests
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row
from agrikd.data.synthetic import SyntheticConfig, write_dataset
from agrikd.errors import InputError, MissingExtraError, Problem
from agrikd.types import Image

NEAR = ("jpeg 50", "half", "crop", "brightness")
"""Near duplicates: encoded again at quality 50, of half the size, a tenth of width and of height cut away at a random
place, a fifth darker or brighter."""

_TURNED_LEFT, _ORIENTATION = 6, 0x0112
_QUALITY = 95
_README = """\
SPOILT ON PURPOSE

Defects were planted in this copy of {rows} photos (agrikd.data.defects, seed {seed}). It is here to try and test what
looks for defects; learn nothing from it. Where a row's source is "synthetic", the picture was drawn by a program, and
no real plant stands behind it.

manifest.csv   path, label, split, group, season, sha256 of the file as it lies here (none of an empty one), source
defects.json   files: path -> what is wrong with the file
               exact: pairs of byte-identical photos; near: pairs of one photo changed, and how
               labels: path -> the right class, where the manifest holds a wrong one
               groups: those that stand in both train and test
"""


@dataclass(frozen=True)
class DefectConfig:
    """How many defects to plant.

    broken: files of each kind of `BROKEN`. exact, near: copies within a split, the latter of each kind of `NEAR`;
    exact_across, near_across: copies in test of photos that train. label_errors: the share, 0 to 1, of the labelled
    photos of train that get another class. groups: those to stand in both train and test, a photo in each.
    """

    seed: int = 0
    broken: int = 2
    exact: int = 3
    exact_across: int = 3
    near: int = 2
    near_across: int = 2
    label_errors: float = 0.05
    groups: int = 2

    def __post_init__(self) -> None:
        problems = [
            Problem(f"defects.{key}", f"is {value!r}", "a whole number, 0 or more")
            for key, value in vars(self).items()
            if key != "label_errors" and (not isinstance(value, int) or value < 0)
        ]
        if not 0 <= self.label_errors <= 1:
            problems.append(Problem("defects.label_errors", f"is {self.label_errors!r}", "a share from 0 to 1"))
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class _Chosen:
    """The rows to spoil. broken: the kind. copies: (row, how, whether into test). labels: the wrong class.
    groups: the row of train and the row of test that get one group."""

    broken: dict[int, str]
    copies: list[tuple[int, str, bool]]
    labels: dict[int, str]
    groups: list[tuple[int, int]]


def plant(source: Manifest, folder: Path, config: DefectConfig) -> Manifest:
    """Copy the photos of `source` into `folder` and spoil them; write manifest.csv, defects.json and README.txt too.

    `folder` must be absent or empty, and is filled whole or not at all. The manifest contradicts itself where copies
    or groups were planted: `manifests.load` reads it. The same source and config give the same files. Raises
    `InputError` where the source has too few photos for the counts, or one that cannot be read.
    """
    folder = folder.resolve()
    files.require_free(folder)
    manifests.require_files(source, str(source.root))
    rng = np.random.default_rng(config.seed)
    chosen = _choose(source, config, rng)
    with files.replacing_folder(folder) as temporary:
        rows, truth = _write(source, temporary, chosen, rng)
        manifests.save(Manifest(tuple(rows), temporary), temporary / "manifest.csv")
        files.write_json(temporary / "defects.json", truth)
        files.write_text(temporary / "README.txt", _README.format(rows=len(source.rows), seed=config.seed))
        if folder.exists():
            folder.rmdir()  # it was empty; if it is not so any more, what came first stays
    written = Manifest(tuple(rows), folder)
    if manifests.load(folder / "manifest.csv").digest != written.digest:
        raise InputError(Problem(str(folder), "was filled by another program meanwhile", "choose another folder"))
    return written


def write_spoilt(
    folder: Path, leaves: SyntheticConfig, config: DefectConfig, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Draw leaves (see `write_dataset`) and `plant` defects in them; only the spoilt ones are left."""
    folder = folder.resolve()
    files.require_free(folder)
    with files.storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            return plant(write_dataset(Path(temporary) / "leaves", leaves, progress), folder, config)


def _choose(source: Manifest, config: DefectConfig, rng: np.random.Generator) -> _Chosen:
    """Draw the rows; photos of which the source has copies are left alone, since they would count twice."""
    rows, seen = source.rows, Counter(row.sha256 for row in source.rows)
    drawn = [int(i) for i in rng.permutation(len(rows)) if not rows[i].sha256 or seen[rows[i].sha256] == 1]
    plants = [i for i in drawn if rows[i].target not in (None, NOT_A_PLANT)]
    train = [i for i in plants if rows[i].split == "train"]
    test = [i for i in plants if rows[i].split == "test"]
    across, within = (
        ["exact"] * exact + [how for how in NEAR for _ in range(near)]
        for exact, near in ((config.exact_across, config.near_across), (config.exact, config.near))
    )
    broken = [kind for kind in BROKEN for _ in range(config.broken)]
    wrong = round(config.label_errors * len(source.indices("train", labelled=True)))
    needed = {
        "labelled photos of train": (len(train), len(across) + wrong + config.groups),
        "labelled photos of test": (len(test), config.groups),
        "photos": (len(drawn), len(across) + wrong + 2 * config.groups + len(within) + len(broken)),
        "classes": (len(source.classes), 2 if wrong else 0),
    }
    if short := {what: counts for what, counts in needed.items() if counts[0] < counts[1]}:
        raise InputError(
            Problem(str(source.root), f"has {has} {what}, too few: {need} are needed", "ask for fewer defects")
            for what, (has, need) in short.items()
        )
    learners = iter(train)
    groups = list(zip(islice(learners, config.groups), test, strict=False))
    copies = [(i, how, True) for i, how in zip(islice(learners, len(across)), across, strict=True)]
    labels = {i: _another(source.classes, rows[i].target, rng) for i in islice(learners, wrong)}
    used = {i for pair in groups for i in pair} | {i for i, _, _ in copies} | labels.keys()
    rest = (i for i in drawn if i not in used)
    copies += [(i, how, False) for i, how in zip(islice(rest, len(within)), within, strict=True)]
    return _Chosen(dict(zip(rest, broken, strict=False)), copies, labels, groups)


def _another(classes: tuple[str, ...], right: str | None, rng: np.random.Generator) -> str:
    others = [name for name in classes if name != right]
    return others[rng.integers(len(others))]


def _write(
    source: Manifest, folder: Path, chosen: _Chosen, rng: np.random.Generator
) -> tuple[list[Row], dict[str, Any]]:
    """Write the photos and their copies; returns the rows, sha256 as written, and the truth."""
    taken = {row.path for row in source.rows}
    truth: dict[str, Any] = {"files": {}, "exact": [], "near": [], "labels": {}, "groups": []}
    rows = []
    for i, row in enumerate(source.rows):
        if kind := chosen.broken.get(i):
            suffix, spoil = BROKEN[kind]
            path = PurePosixPath(row.path)
            name = row.path if path.suffix.casefold() == suffix else _free(path.with_suffix(suffix), taken)
            rows.append(_put(folder, replace(row, path=name), spoil(source.photo(i), rng)))
            truth["files"][name] = kind
        else:
            rows.append(_put(folder, row, files.read_bytes(source.file(i))))
    for i, how, into_test in chosen.copies:
        exact = how == "exact"
        data = files.read_bytes(source.file(i)) if exact else _change(source.photo(i), how, rng)
        suffix = PurePosixPath(rows[i].path).suffix if exact else ".jpg"
        copy = replace(rows[i], path=_free(PurePosixPath(f"more/{rng.integers(10**6):06d}{suffix}"), taken))
        rows.append(_put(folder, replace(copy, split="test", group="") if into_test else copy, data))
        truth["exact" if exact else "near"].append([rows[i].path, copy.path, *([] if exact else [how])])
    _spoil_cells(rows, chosen, truth)
    return rows, truth


def _spoil_cells(rows: list[Row], chosen: _Chosen, truth: dict[str, Any]) -> None:
    """Labels and groups: what is wrong in the manifest alone."""
    for i, wrong in chosen.labels.items():
        truth["labels"][rows[i].path] = rows[i].target
        rows[i] = replace(rows[i], target=wrong)
    known = {row.group for row in rows}
    free = (name for number in count() if (name := f"plot_{number:03d}") not in known)
    for pair, name in zip(chosen.groups, free, strict=False):
        truth["groups"].append(name)
        for i in pair:
            rows[i] = replace(rows[i], group=name)


def _free(path: PurePosixPath, taken: set[str]) -> str:
    """The path, with a number where it is taken; it is taken then."""
    found, number = path, 0
    while str(found) in taken:
        number += 1
        found = path.with_stem(f"{path.stem}_{number}")
    taken.add(str(found))
    return str(found)


def _put(folder: Path, row: Row, data: bytes) -> Row:
    path = folder / row.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return replace(row, sha256=files.sha256(data) if data else "")  # all empty files would be copies of one another


def _change(pixels: Image, how: str, rng: np.random.Generator) -> bytes:
    """A near duplicate's JPEG."""
    height, width = pixels.shape[:2]
    if how == "jpeg 50":
        return image.encode_jpeg(pixels, 50)
    if how == "half":
        pixels = image.resize(pixels, (max(height // 2, 1), max(width // 2, 1)))
    elif how == "crop":
        kept = max(round(0.9 * height), 1), max(round(0.9 * width), 1)
        top, left = rng.integers(height - kept[0] + 1), rng.integers(width - kept[1] + 1)
        pixels = pixels[top : top + kept[0], left : left + kept[1]]
    else:
        pixels = np.clip(np.rint(pixels * rng.choice([0.8, 1.2])), 0, 255).astype(np.uint8)
    return image.encode_jpeg(pixels, _QUALITY)


def _truncated(pixels: Image, rng: np.random.Generator) -> bytes:
    data = image.encode_jpeg(pixels)
    return data[: len(data) * 6 // 10]


def _png(pixels: Any) -> bytes:
    """PNG bytes of uint8 or uint16 [H, W, 3] RGB; OpenCV writes the 16 bits that Pillow cannot."""
    done, data = image.opencv().imencode(".png", pixels[..., ::-1])
    assert done, "OpenCV could not encode a PNG"
    return bytes(data)


def _pillow() -> ModuleType:
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise MissingExtraError("Pillow", "check") from None
    return Pillow


def _saved(pixels: Image, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """What Pillow alone can write."""
    out = io.BytesIO()
    _pillow().fromarray(pixels).convert(mode).save(out, kind, quality=90, **options)
    return out.getvalue()


def _animated(pixels: Image, rng: np.random.Generator) -> bytes:
    second = _pillow().fromarray(np.ascontiguousarray(pixels[:, ::-1]))
    return _saved(pixels, "WEBP", save_all=True, append_images=[second], duration=100)


def _turned(pixels: Image, rng: np.random.Generator) -> bytes:
    """Stored a quarter turn to the left; EXIF says to turn it back, so that it shows upright."""
    exif = _pillow().Exif()
    exif[_ORIENTATION] = _TURNED_LEFT
    return _saved(np.ascontiguousarray(np.rot90(pixels)), "JPEG", exif=exif)


BROKEN: dict[str, tuple[str, Callable[[Image, np.random.Generator], bytes]]] = {
    "empty": (".jpg", lambda pixels, rng: b""),
    "truncated": (".jpg", _truncated),
    "unreadable": (".jpg", lambda pixels, rng: rng.bytes(4096)),
    "tiny": (".jpg", lambda pixels, rng: image.encode_jpeg(image.resize(pixels, (8, 8)))),
    "cmyk": (".jpg", lambda pixels, rng: _saved(pixels, "JPEG", "CMYK")),
    "16-bit": (".png", lambda pixels, rng: _png(pixels.astype(np.uint16) * 257)),
    "animated": (".webp", _animated),
    "misnamed": (".jpg", lambda pixels, rng: _png(pixels)),
    "turned": (".jpg", _turned),
}
"""What may be wrong with a file: its suffix, and how to make it of a photo's pixels."""
