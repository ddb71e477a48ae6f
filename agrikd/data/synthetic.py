"""The dataset that needs no download: drawn leaves with their truth, for the demo and the tests.

Synthetic: see `agrikd.data.leaf`. Every row says so in `source`, and the folder carries a README that says it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import files, image
from agrikd.data import manifest
from agrikd.data.leaf import DISEASES, Sample, Spec, draw
from agrikd.data.manifest import NOT_A_PLANT, Manifest, Row
from agrikd.data.scenery import BACKGROUNDS, CAMERAS, SEASONS
from agrikd.errors import InputError, Problem

SOURCE = "synthetic"
MOST = 100_000
"""Pictures of one kind at most: about a GB at 256 pixels."""

_KINDS = (*DISEASES, NOT_A_PLANT)
_STREAMS = ("train", "val", "test", "unlabelled")
_PHOTOS = 3
"""Photos of one plant at most."""
_SPREAD = {"rust": 0.8, "leaf_spot": 0.9, "blight": 2.0, "mildew": 2.2}
"""How much of a leaf a disease takes, relative to the season's median."""

_README = """\
SYNTHETIC PICTURES

Every picture in this folder was drawn by a program (agrikd.data.synthetic, seed {seed}). No real plant, field or
disease stands behind any of them, and a score measured on them says nothing about real plants. They are here so
that agrikd can be tried and tested without a download.

manifest.csv   path, label, split, group (the drawn plant), season, sha256, source
truth.json     path -> class (of unlabelled rows too), severity_pct (of the leaf's area), lesion boxes
               (xyxy in pixels, half-open), season, camera, background
"""


@dataclass(frozen=True)
class SyntheticConfig:
    """How many pictures, of what, under which shifts. Every plant draws its season, camera and background
    evenly from those named; a shift is a second dataset that names others.

    size: side in pixels, 64 to 4096; drawing takes some 90 bytes a pixel (1.5 GB at 4096).
    unlabelled: rows of train without a label, the classes even. non_plant: pictures of no plant in val, and as
    many in test. A larger count keeps the smaller one's pictures, and no count changes another's: a learning
    curve may grow train and keep its test pictures.
    """

    seed: int = 0
    size: int = 256
    classes: tuple[str, ...] = tuple(DISEASES)
    train_per_class: int = 20
    unlabelled: int = 500
    val_per_class: int = 10
    test_per_class: int = 40
    non_plant: int = 40
    seasons: tuple[str, ...] = ("2025",)
    cameras: tuple[str, ...] = ("phone",)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)

    def __post_init__(self) -> None:
        if problems := [Problem(f"synthetic.{key}", wrong, mend) for key, wrong, mend in self._mistakes()]:
            raise InputError(problems)

    def counts(self, stream: str) -> dict[str, int]:
        """How many pictures of each kind a stream (a split, or "unlabelled") holds."""
        if stream == "unlabelled":
            each, more = divmod(self.unlabelled, len(self.classes))
            return {name: each + (number < more) for number, name in enumerate(self.classes)}
        count = {"train": self.train_per_class, "val": self.val_per_class, "test": self.test_per_class}[stream]
        others = 0 if stream == "train" else self.non_plant
        return {**dict.fromkeys(self.classes, count), NOT_A_PLANT: others}

    def _mistakes(self) -> Iterator[tuple[str, str, str]]:
        limits = {"seed": (0, 2**32 - 1), "size": (64, 4096)}
        counts = ("train_per_class", "unlabelled", "val_per_class", "test_per_class", "non_plant")
        for key, (low, high) in (limits | dict.fromkeys(counts, (0, MOST))).items():
            value = getattr(self, key)
            if not isinstance(value, int) or not low <= value <= high:
                yield key, f"is {value!r}", f"a whole number from {low} to {high}"
        if all(getattr(self, key) == 0 for key in counts):
            yield "train_per_class", "is 0, as is every other count", "ask for at least one picture"
        known: dict[str, Collection[str]] = {"classes": DISEASES, "seasons": SEASONS}
        known |= {"cameras": CAMERAS, "backgrounds": BACKGROUNDS}
        for key, names in known.items():
            given = getattr(self, key)
            expected = f"expected some of {', '.join(names)}"
            if not given:
                yield key, "is empty", expected
            if len(set(given)) < len(given):
                yield key, f"names one twice: {', '.join(given)}", "name each once"
            for name in given:
                if name not in names:
                    yield key, f"{name!r} is unknown", expected


@dataclass(frozen=True)
class Shot:
    """A picture to take: where it goes, whether its label is told, and what to draw."""

    path: str
    split: str
    group: str
    labelled: bool
    spec: Spec


def plan(config: SyntheticConfig) -> tuple[Shot, ...]:
    """Every picture of the dataset, in the manifest's order; nothing is drawn yet. The classes take turns."""
    shots = []
    for stream in _STREAMS:
        labelled = stream != "unlabelled"
        split = stream if labelled else "train"
        plants = (_plants(config, stream, *kind) for kind in config.counts(stream).items())
        turns = (plant for turn in zip_longest(*plants) for plant in turn if plant)
        number = 0
        for order, plant in enumerate(turns):
            for spec in plant:
                name = spec.target if labelled else stream
                path = f"images/{split}/{name}_{number:05d}.jpg"
                shots.append(Shot(path, split, f"{stream}_{order:05d}", labelled, spec))
                number += 1
    return tuple(shots)


def write_dataset(
    folder: Path, config: SyntheticConfig, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Draw the dataset into `folder`, whole or not at all: images/, manifest.csv, truth.json, README.txt.

    `folder` must be absent or empty. `progress` is told (done, total) after each picture; what it raises ends
    the writing and leaves nothing. The same config gives the same manifest digest where `leaf.draw` gives the
    same pixels and OpenCV the same JPEG encoder.
    """
    folder = folder.resolve()
    files.require_free(folder)
    shots = plan(config)
    with files.replacing_folder(folder) as temporary:
        rows, truth = [], {}
        for done, shot in enumerate(shots, 1):
            sample = draw(shot.spec)
            rows.append(_save(temporary, shot, sample))
            truth[shot.path] = _truth(sample)
            if progress:
                progress(done, len(shots))
        manifest.write(Manifest(tuple(rows), temporary), temporary / "manifest.csv")
        files.write_json(temporary / "truth.json", truth)
        files.write_text(temporary / "README.txt", _README.format(seed=config.seed))
        if folder.exists():
            folder.rmdir()  # it was empty; if it is not so any more, what came first stays
    written = Manifest(tuple(rows), folder)
    if manifest.read(folder / "manifest.csv").digest != written.digest:
        raise InputError(Problem(str(folder), "was filled by another program meanwhile", "choose another folder"))
    return written


def _plants(config: SyntheticConfig, stream: str, target: str, count: int) -> Iterator[list[Spec]]:
    """Plants of a kind, one to three photos each (one of no plant), until there are `count` photos."""
    plant = (_STREAMS.index(stream) * len(_KINDS) + _KINDS.index(target)) * MOST
    while count > 0:
        # Three words and a one: no other stream of numbers starts like this (see leaf.draw).
        rng = np.random.default_rng([config.seed, plant, 0, 1])
        photos = min(1 if target == NOT_A_PLANT else int(rng.integers(1, _PHOTOS + 1)), count)
        season, camera, ground = (
            names[rng.integers(len(names))] for names in (config.seasons, config.cameras, config.backgrounds)
        )
        median = SEASONS[season].severity_pct * _SPREAD.get(target, 0.0)
        severity = [float(np.clip(median * np.exp(rng.normal(0, 0.8)), 0, 60)) for _ in range(photos)]
        yield [
            Spec(config.seed, plant, photo, target, severity[photo], season, camera, ground, config.size)
            for photo in range(photos)
        ]
        plant, count = plant + 1, count - photos


def _save(folder: Path, shot: Shot, sample: Sample) -> Row:
    data = image.encode_jpeg(sample.image)
    path = folder / shot.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Row(
        path=shot.path,
        target=sample.target if shot.labelled else None,
        split=shot.split,
        group=shot.group,
        season=sample.season,
        sha256=files.sha256(data),
        source=SOURCE,
    )


def _truth(sample: Sample) -> dict[str, Any]:
    return {
        "class": sample.target,
        "severity_pct": round(sample.severity_pct, 3),
        "boxes": sample.boxes,
        "season": sample.season,
        "camera": sample.camera,
        "background": sample.background,
    }
