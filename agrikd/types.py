"""What crosses a border between stages: frozen dataclasses over numpy, readable without torch."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB, as displayed (EXIF turn applied)."""

Fit = Literal["stretch", "crop", "pad"]


def figure(value: float) -> str:
    """Three figures, never as a power of ten: 0.00152, 15.2, 4,520."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 12)}f}".replace("-", "−").replace(",", "\u00a0")


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high`, in `unit`, as distributions over K equal bins: what regression's classes stand for.

    beyond: how many of the bins lie below `low`, and as many above `high`, so that a label at an end has room for its
    whole distribution; without them the mean of what is cut off there would not be the label.
    """

    low: float
    high: float
    unit: str = ""
    beyond: int = 0

    @property
    def range(self) -> tuple[float, float, str]:
        """What two models must share for their numbers to be compared; bins may differ."""
        return self.low, self.high, self.unit

    def said(self, value: float) -> str:
        """A number with its unit: 1.52 %."""
        return f"{figure(value)}\u00a0{self.unit}".rstrip()

    def width(self, bins: int) -> float:
        """Of a bin, in the unit."""
        return (self.high - self.low) / (bins - 2 * self.beyond)

    def centres(self, bins: int) -> NDArray[np.float64]:
        """The middle of each bin, [K]."""
        return np.asarray(self.low + self.width(bins) * (np.arange(bins) + 0.5 - self.beyond), np.float64)

    def values(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """The mean of each distribution [N, K], [N]; no lower than `low` and no higher than `high`."""
        shares, bins = _shares(probabilities), probabilities.shape[1]
        from_low = shares @ (self.centres(bins) - self.low)
        return np.asarray(self.low + np.clip(from_low, 0, self.high - self.low))

    def spreads(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """The standard deviation of each distribution [N, K], half a bin at the least, [N]."""
        shares, bins = _shares(probabilities), probabilities.shape[1]
        places = np.arange(bins) - (shares @ np.arange(bins))[:, None]
        return np.asarray(self.width(bins) * np.sqrt(np.maximum((shares * places**2).sum(axis=1), 0.25)))

    def bins_of(self, values: NDArray[Any], bins: int) -> NDArray[np.int64]:
        """The bin that holds each value, [N]; `high` itself belongs to the last bin below it."""
        place = ((np.asarray(values, np.float64) - self.low) / self.width(bins)).astype(np.int64)
        return np.clip(place, 0, bins - 2 * self.beyond - 1) + self.beyond


def _shares(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """In float64, each row divided by its sum: float32 rows miss 1 by what shifts a mean far from 0."""
    exact = np.asarray(probabilities, np.float64)
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))


class Known(NamedTuple):
    """What photos of the plants a model knows look like: a Gaussian over D statistics of a picture (`agrikd.known`).

    mean: [D]. factor: the lower Cholesky factor L of the inverse covariance LLᵀ, row by row up to the diagonal. Both
    are float32, little-endian, as base64: short, and the same bits wherever they are read; a factor that is rounded is
    still one of a covariance. photos: how many it was fitted to.
    """

    mean: str
    factor: str
    photos: int

    def __str__(self) -> str:
        return f"learned from {self.photos} photos"

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean [D] and L [D, D]; raises `ValueError` where the texts hold no such thing."""
        mean, packed = (
            np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
            for text in (self.mean, self.factor)
        )
        whole = len(mean) and len(packed) == len(mean) * (len(mean) + 1) // 2
        if not (whole and np.isfinite(mean).all() and np.isfinite(packed).all()):
            raise ValueError("the mean and the factor of `known` do not fit, or hold what is no number")
        factor = np.zeros((len(mean), len(mean)))
        factor[np.tril_indices(len(mean))] = packed
        return mean, factor


@dataclass(frozen=True)
class Calibration:
    """What turns logits into statements that hold as often as they claim; fitted on held-out rows.

    temperature: divides the logits before the softmax (Guo et al. 2017, arXiv:1706.04599). 1 for a number: a flatter
        distribution over bins has another mean, so its answer would change too.
    abstain_below: below this top probability the answer is "unsure"; chosen so that the error among the
        answered held-out rows is at most `target_risk`. Above 1 where no threshold reaches it; 0 for a number, which
        has its interval instead.
    conformal_quantile: a class belongs to the prediction set when 1 − p ≤ this; the set holds the truth with
        probability ≥ `coverage` (split conformal, LAC: Sadinle et al. 2019, arXiv:1609.00451). For a number: its
        interval is this many `Scale.spreads` to both sides (Lei et al. 2018, arXiv:1604.04173, sec. 5.2).
    known, unknown_above: a picture whose `agrikd.known.strangeness` is above this is "not a plant I know"; `known_kept`
        of the training photos' views stay below it. Without `known` nothing is said of it: None where the training
        photos were fewer than 20, and in files from before it, whose limit was one of −logsumexp(logits), which
        noticed one picture in twenty (models/LOG.md).
    rows: how many held-out rows; evidence: "val" or "out-of-fold".
    """

    temperature: float
    abstain_below: float
    target_risk: float
    conformal_quantile: float
    coverage: float
    unknown_above: float | None
    known_kept: float
    rows: int
    evidence: str
    known: Known | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Calibration:
        """Raises `TypeError` or `ValueError` where it is none."""
        known = Known(*value["known"]) if value.get("known") else None
        if known:
            known.arrays()
        return cls(**{**value, "known": known})


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed beside the weights to turn a photo into an answer.

    classes: what the logits speak of, bins where the answer is a number on `scale`. input_size: (height, width) in
    pixels. fit: how a photo of another shape is brought to it. calibration: None means the probabilities are a plain
    softmax.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    fit: Fit = "stretch"
    calibration: Calibration | None = None
    scale: Scale | None = None

    def to_json(self) -> dict[str, Any]:
        """What was not known before `Calibration.known` is written as it was then: a signed release keeps its bytes."""
        said = asdict(self)
        if self.calibration and self.calibration.known is None:
            del said["calibration"]["known"]
        return said

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelSpec:
        calibration, scale = value.get("calibration"), value.get("scale")
        return cls(
            name=value["name"],
            task=value["task"],
            classes=tuple(value["classes"]),
            input_size=(int(value["input_size"][0]), int(value["input_size"][1])),
            fit=value["fit"],
            calibration=Calibration.from_json(calibration) if calibration else None,
            scale=Scale(**scale) if scale else None,
        )


@dataclass(frozen=True)
class Prediction:
    """One model's answer to one image.

    logits: float32 [C]. probabilities: float32 [C], sum 1. embedding: float32 [D].
    top: index of the most probable class. candidates: the conformal set, most probable first (all of
    `top` alone without a calibration). unsure: the top probability is below the threshold.
    unknown: the image looks like none of the photos the model was taught with; None where nothing says so.
    value: the number, where that is what was asked; interval: (low, high) that holds it as often as the calibration
    says, None without one.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    top: int
    candidates: tuple[int, ...]
    unsure: bool | None
    unknown: bool | None
    value: float | None = None
    interval: tuple[float, float] | None = None

    def to_json(self, photo: str, spec: ModelSpec) -> dict[str, Any]:
        """The answer in words, with all classes' probabilities."""
        classes = spec.classes
        remarks = ("not a plant I know", self.unknown), ("unsure", self.unsure)
        said = {
            "remark": ", ".join(words for words, holds in remarks if holds),
            "probabilities": {name: float(p) for name, p in zip(classes, self.probabilities, strict=True)},
        }
        if spec.scale:
            return {"photo": photo, "value": self.value, "unit": spec.scale.unit, "interval": self.interval, **said}
        return {
            "photo": photo,
            "says": classes[self.top],
            "probability": float(self.probabilities[self.top]),
            "candidates": [classes[c] for c in self.candidates],
            **said,
        }
