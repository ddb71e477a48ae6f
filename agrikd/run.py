"""A Run: a folder that holds all a recipe has made, readable by every later stage.

recipe.yaml       the resolved recipe           weights.safetensors  the averaged (EMA) weights, timm's keys
run.json          versions, seeds, digests      checkpoint.pt        where training stands; gone when done
metrics.jsonl     a line every so many steps    embeddings.npz       training embeddings and thumbnails
gate.json         what was said of the teacher  calibration.json     temperature, thresholds
report.json/html  the judgement                 held_out.npz         held-out predictions
learned.txt       marks of the photos that it has seen in training, or its teachers have
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from agrikd import files
from agrikd.errors import InputError, Problem
from agrikd.recipe import Recipe, parse, read_yaml
from agrikd.types import Calibration

_RECORDED = ("agrikd", "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy")


@dataclass(frozen=True)
class Run:
    """A Run folder and its recipe."""

    folder: Path
    recipe: Recipe

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def done(self) -> bool:
        return self.weights.exists()

    @property
    def refused(self) -> bool:
        """The gate refused the teacher, and nothing was trained."""
        path = self.folder / "gate.json"
        if self.done or self.checkpoint.exists() or not path.exists():
            return False
        found = files.read_json(path)
        return not found["passed"] and not found["override"]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A finished Run; raises `InputError` where the folder is none, or was never finished."""
        run = cls._read(folder)
        if not run.done:
            mend = "run the command that began it again (agrikd distill: with --resume)"
            raise InputError(Problem(str(folder), "is a Run whose training has not finished", mend))
        return run

    @classmethod
    def start(cls, folder: Path, recipe: Recipe, record: dict[str, Any], *, resume: bool) -> Run:
        """A new Run folder, or one to go on with. A Run that the gate refused has nothing to lose and is begun anew.

        Raises `InputError` where the folder holds a Run and `resume` is False, or a Run of another recipe, data or
        teacher.
        """
        if (folder / "recipe.yaml").exists() and not (run := cls._read(folder)).refused:
            if not resume:
                mend = "choose another --out" if run.done else "choose another --out, or go on with --resume"
                raise InputError(Problem(str(folder), f"holds a {'finished ' * run.done}Run already", mend))
            if run.recipe.digest != recipe.digest:
                mend = f"use its own recipe, {folder / 'recipe.yaml'}, or another --out"
                raise InputError(Problem(str(folder), "holds a Run of another recipe", mend))
            if run.record().get("data_digest") != record.get("data_digest"):
                mend = "put the manifest back as it was, or choose another --out"
                raise InputError(Problem(str(folder), "holds a Run of other photos or labels", mend))
            if run.record().get("weights", record.get("weights")) != record.get("weights"):
                mend = "put the weights back as they were, or choose another --out"
                raise InputError(Problem(str(folder), "holds a Run that began with other weights or teachers", mend))
            return run
        run = cls(folder, recipe)
        (folder / "gate.json").unlink(missing_ok=True)
        files.write_json(folder / "run.json", {**record, "recipe_digest": recipe.digest, **environment()})
        files.write_text(folder / "recipe.yaml", recipe.to_yaml())
        return run

    @staticmethod
    @contextmanager
    def held(folder: Path) -> Iterator[None]:
        """One process at a time trains into a Run folder; raises `InputError` while another does. Folders that were
        made for it and stay empty go."""
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        with files.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            mend = "let it finish, or choose another --out"
            raise InputError(Problem(str(folder), "another process trains into it", mend)) from None
        except OSError:
            pass  # a network's disk may know no locks of folders
        try:
            yield
        finally:
            for one in made:
                with suppress(OSError):
                    one.rmdir()
            os.close(handle)

    @classmethod
    def _read(cls, folder: Path) -> Run:
        mend = "expected a folder made by agrikd teach or agrikd distill"
        for name in ("recipe.yaml", "run.json"):
            if not (folder / name).exists():
                raise InputError(Problem(str(folder), f"is no Run: it has no {name}", mend))
        path = folder / "recipe.yaml"
        return cls(folder, parse(read_yaml(path), str(path)))

    def record(self) -> dict[str, Any]:
        """What run.json says."""
        return dict(files.read_json(self.folder / "run.json"))

    def amend(self, **entries: Any) -> None:
        """Add entries to run.json."""
        files.write_json(self.folder / "run.json", {**self.record(), **entries})

    def log(self, entry: dict[str, float]) -> None:
        """Append a line to metrics.jsonl."""
        with files.storage_errors(self.metrics), self.metrics.open("a") as out:
            out.write(json.dumps(entry) + "\n")

    def history(self) -> list[dict[str, float]]:
        """The whole lines of metrics.jsonl; a line cut by a kill is left out."""
        if not self.metrics.exists():
            return []
        entries = []
        for number, line in enumerate(files.read_text(self.metrics).split("\n")[:-1], 1):
            try:
                entries.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise InputError(Problem(f"{self.metrics}:{number}", "is broken", "delete the line")) from None
        return entries

    def rewind(self, step: int) -> None:
        """Drop the metrics logged after `step`, which a resumed run will log again."""
        kept = [entry for entry in self.history() if entry["step"] <= step]
        files.write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in kept))

    @property
    def calibration(self) -> Calibration | None:
        path = self.folder / "calibration.json"
        if not path.exists():
            return None
        try:
            return Calibration.from_json(files.read_json(path))
        except (AttributeError, TypeError, ValueError):
            mend = f"make it again with: agrikd calibrate {self.folder}"
            raise InputError(Problem(str(path), "is no calibration", mend)) from None

    def write_calibration(self, calibration: Calibration) -> None:
        files.write_json(self.folder / "calibration.json", asdict(calibration))

    def learned(self) -> frozenset[str] | None:
        """See `agrikd.learned`; None where the Run does not say."""
        path = self.folder / "learned.txt"
        return frozenset(files.read_text(path).split()) if path.exists() else None

    def write_learned(self, marks: frozenset[str]) -> None:
        files.write_text(self.folder / "learned.txt", "".join(f"{mark}\n" for mark in sorted(marks)))

    def held_out(self) -> tuple[NDArray[Any], NDArray[np.float32]] | None:
        """(truth [N], logits [N, C]) on rows the net has never learned from, where they are stored."""
        stored = self._held_out()
        return (stored["truth"], stored["logits"]) if stored else None

    def folds(self) -> int | None:
        """Of how many folds the stored held-out predictions are; None where that is not recorded: `teach` does not."""
        stored = self._held_out()
        return int(stored["folds"]) if stored and stored["folds"] else None

    def _held_out(self) -> dict[str, NDArray[Any]] | None:
        path = self.folder / "held_out.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                folds = stored["folds"] if "folds" in stored else np.array(0)
                return {"truth": stored["truth"], "logits": stored["logits"], "folds": folds}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            mend = "copy it again, or make the Run again"
            raise InputError(Problem(str(path), f"is damaged ({error})", mend)) from None

    def write_held_out(self, truth: NDArray[Any], logits: NDArray[np.float32], folds: int = 0) -> None:
        with files.replacing(self.folder / "held_out.npz") as temporary, temporary.open("wb") as out:
            np.savez(out, allow_pickle=False, truth=truth, logits=logits.astype(np.float32), folds=folds)


def environment() -> dict[str, Any]:
    """The versions and the machine a Run was made with."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": dict(_versions(_RECORDED)),
    }


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
