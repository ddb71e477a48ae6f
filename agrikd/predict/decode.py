"""From logits to statements: calibrated probabilities, the set of candidates or a number with its interval, "unsure",
"not a plant I know"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agrikd import known, metrics
from agrikd.types import Calibration, Image, ModelSpec, Prediction, Scale


def decode(
    logits: NDArray[np.float32], embeddings: NDArray[np.float32], images: Sequence[Image], spec: ModelSpec
) -> list[Prediction]:
    """logits [N, C] and embeddings [N, D] to N predictions, by the spec's calibration if it has one.

    images: the N pictures uint8 [H, W, 3] as they were given, read only where the calibration knows what plants look
    like.
    """
    calibration = spec.calibration
    if not len(logits):
        return []
    probabilities = metrics.softmax(logits, calibration.temperature if calibration else 1.0).astype(np.float32)
    strange = _unknown(images, calibration, len(logits))
    numbers = _numbers(probabilities, spec.scale, calibration) if spec.scale else [(None, None)] * len(logits)
    made = []
    for row, (p, unknown) in enumerate(zip(probabilities, strange, strict=True)):
        order = np.argsort(-p, kind="stable")
        candidates: tuple[int, ...] = (int(order[0]),)
        unsure = None
        if calibration and not spec.scale:
            within = tuple(int(c) for c in order if 1 - float(p[c]) <= calibration.conformal_quantile)
            candidates = within or candidates
            unsure = float(p[order[0]]) < calibration.abstain_below  # in float32 `NEVER` would be 1
        top = int(order[0])
        made.append(Prediction(logits[row], p, embeddings[row], top, candidates, unsure, unknown, *numbers[row]))
    return made


def _unknown(images: Sequence[Image], calibration: Calibration | None, count: int) -> Sequence[bool | None]:
    """Of each of `count` pictures; None where the calibration does not say."""
    if calibration is None or calibration.known is None or calibration.unknown_above is None:
        return [None] * count
    found: list[bool] = (known.strangeness(calibration.known, images) > calibration.unknown_above).tolist()
    return found


def _numbers(
    probabilities: NDArray[np.float32], scale: Scale, calibration: Calibration | None
) -> list[tuple[float | None, tuple[float, float] | None]]:
    """Each row's number and its interval, which ends where the scale does."""
    values = scale.values(probabilities)
    if calibration is None:
        return [(float(value), None) for value in values]
    reach = calibration.conformal_quantile * scale.spreads(probabilities)
    low, high = np.clip(values - reach, scale.low, scale.high), np.clip(values + reach, scale.low, scale.high)
    return [(float(v), (float(a), float(b))) for v, a, b in zip(values, low, high, strict=True)]
