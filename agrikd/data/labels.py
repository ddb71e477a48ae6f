"""Labels that are probably wrong: photos whose class a model that never saw them denies.

Ranked by cleanlab's self-confidence, the probability that the model gives to the label itself (Kuan & Mueller 2022,
"Model-agnostic label quality scoring to detect real-world label errors"): at a recall of 0.8 on field photos of weeds
its precision is 0.58, that of the normalised margin 0.49. A bound on it, and not the pruning of confident learning,
says who is suspected: pruning found 0.70 of the wrong labels of eight leaf classes, a bound nearly all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agrikd.errors import MissingExtraError


@dataclass(frozen=True)
class Suspect:
    """Row `index`, whose label the model gives `own` probability, while it gives `other` to class `said`."""

    index: int
    said: int
    own: float
    other: float


def suspects(said: NDArray[np.float64], target: NDArray[np.int64], least_own: float) -> list[Suspect]:
    """The rows whose label gets less than `least_own` and is not the likeliest, the surest first.

    said: [N, C] probabilities, each row's by a model that never saw it. target: classes [N].
    """
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise MissingExtraError("cleanlab", "check") from None
    quality = get_label_quality_scores(target, said, method="self_confidence")
    own, top = said[np.arange(len(target)), target], said.argmax(1)
    denied = (quality < least_own) & (top != target)
    rows = [i for i in np.argsort(quality, kind="stable") if denied[i]]
    return [Suspect(int(i), int(top[i]), float(own[i]), float(said[i, top[i]])) for i in rows]
