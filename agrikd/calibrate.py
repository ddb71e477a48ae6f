"""From held-out predictions to a calibration: temperature, "unsure", the candidate set, "not a plant I know"."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agrikd import metrics
from agrikd.errors import InputError, Problem
from agrikd.types import Calibration

_FEWEST_ROWS = 20
"""Below this a 90 % quantile is one photo's whim."""


def calibrate(
    logits: NDArray[np.float32],
    truth: NDArray[np.int64],
    evidence: str,
    *,
    target_risk: float = 0.1,
    coverage: float = 0.9,
    known_kept: float = 0.95,
) -> Calibration:
    """Fit a `Calibration` to held-out logits [N, C] and labels [N].

    target_risk, coverage, known_kept: in (0, 1), see `Calibration`. evidence: "val" or "out-of-fold".
    Raises `InputError` for fewer than 20 rows or a share outside (0, 1).
    """
    shares = {"target_risk": target_risk, "coverage": coverage, "known_kept": known_kept}
    problems = [
        Problem(name, f"is {value}, expected a share between 0 and 1")
        for name, value in shares.items()
        if not 0 < value < 1
    ]
    if len(truth) < _FEWEST_ROWS:
        mend = f"expected at least {_FEWEST_ROWS}; label more photos"
        problems.append(Problem("calibrate", f"there are {len(truth)} held-out rows", mend))
    if problems:
        raise InputError(problems)
    temperature = metrics.fit_temperature(logits, truth)
    probabilities = metrics.softmax(logits, temperature)
    return Calibration(
        temperature=temperature,
        abstain_below=metrics.risk_threshold(probabilities, truth, target_risk),
        target_risk=target_risk,
        conformal_quantile=metrics.conformal_quantile(probabilities, truth, coverage),
        coverage=coverage,
        unknown_above=float(np.quantile(metrics.energy(logits), known_kept)),
        known_kept=known_kept,
        rows=len(truth),
        evidence=evidence,
    )
