"""Whether a model answers here as it did in the lab: the photos of a release, and what was said of them there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import files, image
from agrikd.bundle import Artefact, Release
from agrikd.types import Image


@dataclass(frozen=True)
class Answer:
    """What a model said of the probes. logits: [N][C]. p50_ms: of a frame. backend: in words."""

    logits: list[list[float]]
    p50_ms: float
    backend: str

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Answer:
        return cls(list(said["logits"]), float(said["p50_ms"]), str(said["backend"]))


def photos(folder: Path, release: Release) -> list[Image]:
    """uint8 [H, W, 3] RGB each."""
    return image.read_all([folder / name for name in release.probes])


def why_not(answer: Answer, folder: Path, release: Release, artefact: Artefact, budget_ms: float) -> str:
    """In words, what is wrong with an answer; empty where nothing is."""
    expected = _expected(folder, release, artefact)
    try:
        said = np.array(answer.logits, np.float64)
    except ValueError:
        return "its answers to the probes are of unequal lengths"
    if said.shape != expected.shape:
        return f"it answers the probes with {_shape(said)} logits, expected {_shape(expected)}"
    if not np.isfinite(said).all():
        return "its answers to the probes are not finite numbers"
    off = float(np.abs(said - expected).max())
    if not off <= artefact.atol:
        return f"its logits differ from the lab's by {off:.3g}, {artefact.atol:.3g} at most"
    allowed = budget_ms if release.budget_ms is None else min(budget_ms, release.budget_ms)
    if answer.p50_ms > allowed:
        return f"it takes {answer.p50_ms:.1f} ms a frame, {allowed:.1f} at most"
    return ""


def _expected(folder: Path, release: Release, artefact: Artefact) -> NDArray[np.float64]:
    said = json.loads(files.read_bytes(folder / release.answers))
    return np.array(said[artefact.precision], np.float64)


def _shape(found: NDArray[np.float64]) -> str:
    return " × ".join(map(str, found.shape))
