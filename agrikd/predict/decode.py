"""From logits to statements: calibrated probabilities, the set of candidates, "unsure", "not a plant I know"."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agrikd import metrics
from agrikd.types import ModelSpec, Prediction


def decode(logits: NDArray[np.float32], embeddings: NDArray[np.float32], spec: ModelSpec) -> list[Prediction]:
    """logits [N, C] and embeddings [N, D] to N predictions, by the spec's calibration if it has one."""
    calibration = spec.calibration
    if not len(logits):
        return []
    probabilities = metrics.softmax(logits, calibration.temperature if calibration else 1.0).astype(np.float32)
    energies = metrics.energy(logits)
    made = []
    for row, p in enumerate(probabilities):
        order = np.argsort(-p, kind="stable")
        candidates: tuple[int, ...] = (int(order[0]),)
        unsure, unknown = None, None
        if calibration:
            within = tuple(int(c) for c in order if 1 - p[c] <= calibration.conformal_quantile)
            candidates = within or candidates
            unsure = bool(p[order[0]] < calibration.abstain_below)
            unknown = bool(energies[row] > calibration.unknown_above)
        made.append(Prediction(logits[row], p, embeddings[row], int(order[0]), candidates, unsure, unknown))
    return made
