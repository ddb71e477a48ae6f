"""What crosses a border between stages: frozen dataclasses over numpy, readable without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB, as displayed (EXIF turn applied)."""

Fit = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True)
class Calibration:
    """What turns logits into statements that hold as often as they claim; fitted on held-out rows.

    temperature: divides the logits before the softmax (Guo et al. 2017, arXiv:1706.04599).
    abstain_below: below this top probability the answer is "unsure"; chosen so that the error among the
        answered held-out rows is at most `target_risk`. Above 1 where no threshold reaches it.
    conformal_quantile: a class belongs to the prediction set when 1 − p ≤ this; the set holds the truth with
        probability ≥ `coverage` (split conformal, LAC: Sadinle et al. 2019, arXiv:1609.00451).
    unknown_above: an energy score −logsumexp(logits) above this is "not a plant I know" (Liu et al. 2020,
        arXiv:2010.03759); `known_kept` of the held-out plants stay below it.
    rows: how many held-out rows; evidence: "val" or "out-of-fold".
    """

    temperature: float
    abstain_below: float
    target_risk: float
    conformal_quantile: float
    coverage: float
    unknown_above: float
    known_kept: float
    rows: int
    evidence: str


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed beside the weights to turn a photo into an answer.

    input_size: (height, width) in pixels. fit: how a photo of another shape is brought to it.
    calibration: None means the probabilities are a plain softmax.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    fit: Fit = "stretch"
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelSpec:
        calibration = value.get("calibration")
        return cls(
            name=value["name"],
            task=value["task"],
            classes=tuple(value["classes"]),
            input_size=(int(value["input_size"][0]), int(value["input_size"][1])),
            fit=value["fit"],
            calibration=Calibration(**calibration) if calibration else None,
        )


@dataclass(frozen=True)
class Prediction:
    """One model's answer to one image.

    logits: float32 [C]. probabilities: float32 [C], sum 1. embedding: float32 [D].
    top: index of the most probable class. candidates: the conformal set, most probable first (all of
    `top` alone without a calibration). unsure: the top probability is below the threshold.
    unknown: the image looks like none of the plants the model was taught; None without a calibration.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    top: int
    candidates: tuple[int, ...]
    unsure: bool | None
    unknown: bool | None

    def to_json(self, photo: str, classes: tuple[str, ...]) -> dict[str, Any]:
        """The answer in words, with all classes' probabilities."""
        remarks = ("not a plant I know", self.unknown), ("unsure", self.unsure)
        return {
            "photo": photo,
            "says": classes[self.top],
            "probability": float(self.probabilities[self.top]),
            "candidates": [classes[c] for c in self.candidates],
            "remark": ", ".join(words for words, holds in remarks if holds),
            "probabilities": {name: float(p) for name, p in zip(classes, self.probabilities, strict=True)},
        }
