"""From held-out predictions to a calibration: temperature, "unsure", the candidate set or a number's interval, "not a
plant I know"."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agrikd import metrics
from agrikd.errors import InputError, Problem
from agrikd.known import Fit
from agrikd.types import Calibration, Scale

_FEWEST_ROWS = 20
"""Below this a 90 % quantile is one photo's whim."""


class HeldOut(NamedTuple):
    """logits [N, C] of rows that the net never learned from, and their labels [N]: classes, or numbers. evidence: "val"
    or "out-of-fold". known: what the training photos look like; None where they are too few to say."""

    logits: NDArray[np.float32]
    truth: NDArray[Any]
    evidence: str
    known: Fit | None = None


def calibrate(
    held_out: HeldOut,
    scale: Scale | None = None,
    *,
    target_risk: float = 0.1,
    coverage: float = 0.9,
    known_kept: float = 0.95,
) -> Calibration:
    """Fit a `Calibration` to held-out rows; `scale`: of their labels, where these are numbers.

    target_risk, coverage, known_kept: in (0, 1), see `Calibration`.
    Raises `InputError` for fewer than 20 rows or a share outside (0, 1).
    """
    logits, truth, evidence, known = held_out
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
    temperature = metrics.fit_temperature(logits, truth) if scale is None else 1.0
    probabilities = metrics.softmax(logits, temperature)
    if scale is None:
        abstain_below = metrics.risk_threshold(probabilities, truth, target_risk)
        quantile = metrics.conformal_quantile(probabilities, truth, coverage)
    else:
        off = np.abs(truth - scale.values(probabilities)) / scale.spreads(probabilities)
        whole = (scale.high - scale.low) / (scale.width(logits.shape[1]) / 2)  # with the least spread, all of the scale
        abstain_below, quantile = 0.0, min(metrics.quantile_of(off, coverage), whole)
    return Calibration(
        temperature=temperature,
        abstain_below=abstain_below,
        target_risk=target_risk,
        conformal_quantile=quantile,
        coverage=coverage,
        unknown_above=min(metrics.quantile_of(known.held_out, known_kept), known.held_out.max()) if known else None,
        known_kept=known_kept,
        rows=len(truth),
        evidence=evidence,
        known=known.known if known else None,
    )
