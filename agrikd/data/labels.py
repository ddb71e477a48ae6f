"""Labels that are probably wrong: photos whose class a model that never saw them confidently denies.

Confident learning (Northcutt, Jiang & Chuang 2021, arXiv:1911.00068) by cleanlab, on out-of-fold probabilities.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agrikd.data.shortcuts import out_of_fold
from agrikd.errors import MissingExtraError

LEAST_MARGIN = 0.3
"""A label is suspected where the other class is ahead of it by this much: nearer calls are for the plant to decide."""
_INVERSE_PENALTY = 0.01


@dataclass(frozen=True)
class Suspect:
    """Row `index`, whose label the model gives `own` probability, while it gives `other` to class `said`."""

    index: int
    said: int
    own: float
    other: float


def suspects(
    features: NDArray[np.floating], target: NDArray[np.int64], fold: NDArray[np.int64]
) -> tuple[list[Suspect], float]:
    """The suspected rows, the surest first, and the out-of-fold accuracy of the model that suspects them.

    features [N, D], classes [N] and folds [N]. The lower the accuracy, the more of the suspects are innocent.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        raise MissingExtraError("cleanlab", "check") from None
    said = out_of_fold(features, target, fold, _INVERSE_PENALTY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        issues = find_label_issues(target, said, filter_by="both", return_indices_ranked_by="normalized_margin")
    rows = np.arange(len(target))
    own, top = said[rows, target], said.argmax(1)
    found = [Suspect(int(i), int(top[i]), float(own[i]), float(said[i, top[i]])) for i in issues]
    return [one for one in found if one.other - one.own >= LEAST_MARGIN], float((top == target).mean())
