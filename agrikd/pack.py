"""`bundle pack`: what of a Run a device needs, with photos on which it must answer as the lab does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from agrikd import __version__, bundle, files, image
from agrikd.bundle import File, Release
from agrikd.card import card
from agrikd.data import manifest as manifests
from agrikd.dsse import Key
from agrikd.errors import InputError, ParityError, Problem
from agrikd.export.artefacts import Artefact, artefacts, photos
from agrikd.predict.ort import OrtPredictor
from agrikd.run import Run
from agrikd.types import Calibration, Image, ModelSpec

_LOOKED_AT, _FEWEST, _MOST = 200, 8, 32
"""Photos that probes are chosen from, and how many probes: one of each class where there are so many."""
_LONGEST = 448
"""Of a probe's sides, in pixels: more than a net's input, so that a device's resizing is tried too."""
_SLACK = {"fp32": 0.002, "fp16": 0.02, "int8": 0.1, "int8f16": 0.1}
"""How far a logit may be off on a device, as a share of the range of the probes' logits. Ours: ten times what
ONNX Runtime and torch differ by in each precision; a wrong channel order, resize or class order moves more."""

_VERBS = {"fp32": "onnx", "fp16": "fp16", "int8": "int8", "int8f16": "int8 --fp16-scales"}
"""How each precision is asked for: agrikd export …"""


@dataclass(frozen=True)
class Options:
    """seq: larger than of any release of this name before; None: the seconds since 1970, or $SOURCE_DATE_EPOCH, as
    reproducible builds have it. labels: a YAML file, by language the words for each class. Others as in `Release`."""

    name: str = ""
    version: str = ""
    seq: int | None = None
    compatible: tuple[str, ...] = ("*",)
    labels: Path | None = None
    budget_ms: float | None = None
    expires: str | None = None


def pack(folder: Path, out: Path, keys: Iterable[Key], options: Options) -> Release:
    """Write the bundle of a Run's exported artefacts, signed with each key.

    Raises `InputError` where one is missing, was changed since its export or has another calibration than the Run, or
    where the last day has gone by, `ParityError` where the photos could not show that a device mixes up classes.
    """
    if options.expires is not None:
        _require_to_come(options.expires)
    run = Run.open(folder)
    models = _models(run)
    readers = {one.precision: OrtPredictor(folder / str(one.file)) for one in models}
    spec = readers["fp32"].spec
    probes = _probes(
        readers["fp32"], photos(manifests.read(run.recipe.data.manifest, run.recipe.data.root), _LOOKED_AT)
    )
    answers = {name: np.stack([one.logits for one in reader(probes)]) for name, reader in readers.items()}
    named = [_artefact(one, answers[one.precision], spec) for one in models]
    contents = {one.file: (folder / one.file).read_bytes() for one in named}
    pictures = {f"probe-{number:02}.png": image.encode_png(probe) for number, probe in enumerate(probes)}
    said = {name: logits.tolist() for name, logits in answers.items()}
    contents |= {**pictures, "answers.json": files.canonical(said), "card.md": card(run, models, spec).encode()}
    seq = _now() if options.seq is None else options.seq
    release = Release(
        name=options.name or run.recipe.name.lower(),
        version=options.version or time.strftime("%Y-%m-%d", time.gmtime(_now())),
        seq=seq,
        min_agent=__version__,
        compatible=options.compatible,
        spec=spec,
        resize=image.RESIZE,
        artefacts=tuple(named),
        probes=tuple(pictures),
        answers="answers.json",
        files=tuple(File.of(name, data) for name, data in contents.items()),
        labels=_labels(options.labels, spec.classes) if options.labels else {},
        budget_ms=options.budget_ms,
        expires=options.expires,
        provenance=_provenance(run),
    )
    Release.from_payload(release.payload(), str(out))
    bundle.write(out, release, contents, keys)
    return release


def _require_to_come(expires: str) -> None:
    """Raises `InputError` unless it is a day that has not gone by."""
    try:
        good = date.fromisoformat(expires).isoformat() == expires
    except ValueError:
        good = False
    today = time.strftime("%Y-%m-%d", time.gmtime(_now()))
    if not good or expires < today:
        wrong = f"has gone by: it is {today}" if good else "is no day"
        raise InputError(Problem(f"--expires {expires}", wrong, "name a day to come, as in 2027-05-31"))


def _models(run: Run) -> list[Artefact]:
    """What was exported and kept, FP32 among it, unchanged since, with the calibration that the Run has now."""
    folder, found = run.folder, [one for one in artefacts(run.folder) if one.file]
    problems = [
        Problem(str(folder / str(one.file)), wrong, f"export it again: agrikd export {_VERBS[one.precision]} {folder}")
        for one in found
        if (wrong := _outdated(folder / str(one.file), one.sha256, run.calibration))
    ]
    if "fp32" not in {one.precision for one in found}:
        problems.append(Problem(str(folder), "has no export", f"agrikd export onnx {folder}"))
    if problems:
        raise InputError(problems)
    return found


def _outdated(path: Path, sha256: str, calibration: Calibration | None) -> str:
    """Each file answers by its own calibration on a device, whatever the release says."""
    if not path.exists():
        return "is not in the Run folder"
    if files.sha256(path.read_bytes()) != sha256:
        return "was changed since it was exported"
    return "" if OrtPredictor(path).spec.calibration == calibration else "was exported with another calibration"


def _probes(predictor: OrtPredictor, found: Sequence[Image]) -> list[Image]:
    """The surest photo of each class that is named at all, then the surest of the others, as a device will see them."""
    if not found:
        raise InputError(Problem("the Run's manifest", "has no photos", "a bundle needs some as probes"))
    small = [_shrunk(one) for one in found]
    p = np.stack([one.probabilities for one in predictor(small)])
    order = np.argsort(-p.max(axis=1), kind="stable")
    first = [next(int(row) for row in order if p[row].argmax() == name) for name in np.unique(p.argmax(axis=1))]
    rest = [int(row) for row in order if row not in first]
    return [small[row] for row in (*first[:_MOST], *rest)][: max(_FEWEST, min(len(first), _MOST))]


def _shrunk(photo: Image) -> Image:
    scale = min(1.0, _LONGEST / max(photo.shape[:2]))
    return image.resize(photo, (max(1, round(photo.shape[0] * scale)), max(1, round(photo.shape[1] * scale))))


def _artefact(one: Artefact, logits: NDArray[np.float32], spec: ModelSpec) -> bundle.Artefact:
    """With a tolerance under which no two classes could change places unnoticed; a number's bins are too close."""
    atol = float(f"{_SLACK[one.precision] * np.ptp(logits):.3g}")
    apart = np.abs(logits[:, :, None] - logits[:, None, :]).max(axis=0)
    np.fill_diagonal(apart, np.inf)
    if spec.scale is None and not apart.min() > 2 * atol:
        mixed = " and ".join(spec.classes[c] for c in np.unravel_index(int(apart.argmin()), apart.shape))
        raise ParityError(
            f"{one.file}: on all probes {mixed} get the same logits to within {2 * atol:.2g}: a device that mixes them "
            "up would not be noticed\n    → train it until it tells them apart"
        )
    return bundle.Artefact(one.precision, str(one.file), one.releases, atol)


def _labels(path: Path, classes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{language: {class: words}} from YAML, every class in every language."""
    try:
        said: Any = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise InputError(Problem(str(path), f"is not YAML ({error})", "as in: es: {rust: roya}")) from None
    if not isinstance(said, dict) or not all(isinstance(words, dict) for words in said.values()):
        raise InputError(Problem(str(path), "does not say the classes by language", "as in: es: {rust: roya}"))
    problems = [
        Problem(f"{path}: {language}", wrong, f"its classes are {', '.join(classes)}")
        for language, words in said.items()
        for wrong in (
            *(f"lacks {name}" for name in classes if not str(words.get(name) or "").strip()),
            *(f"names {name}, which is no class" for name in words if name not in classes),
        )
    ]
    if problems:
        raise InputError(problems)
    return {str(language): tuple(str(words[name]) for name in classes) for language, words in said.items()}


def _provenance(run: Run) -> dict[str, Any]:
    record = run.record()
    kept: dict[str, Any] = {
        name: record[name] for name in ("data_digest", "recipe_digest", "seed", "versions") if name in record
    }
    teachers = [str(one.timm or one.run) for one in run.recipe.teachers]
    return {**kept, "student": run.recipe.student.timm, "teachers": teachers, "method": run.recipe.method.name}


def _now() -> int:
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if said and not said.isdecimal():
        raise InputError(Problem("$SOURCE_DATE_EPOCH", f"is {said!r}", "seconds since 1970, or leave it unset"))
    return int(said or time.time())
