"""Can the class be told without looking at the plant? By the border of the photo, or by its colours alone.

A model that is no better than these may have learned the table, the camera or the hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agrikd.data.looks import SIDE
from agrikd.errors import MissingExtraError
from agrikd.types import Image

_BORDER = SIDE // 10
_LEVELS = 4
_INVERSE_PENALTY, _STEPS = 0.1, 400
_STRONG = {"border": 0.5, "colours": 0.75}
"""Skill, (accuracy − chance) / (1 − chance), from which a short cut is worth a warning. Colour is a part of what
many diseases look like, so more of it is needed."""

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Shortcut:
    """How well a linear model does on held-out photos that sees only `sees` ("border" or "colours").

    accuracy: balanced over the classes, 0 to 1, so that chance is 1 / classes.
    """

    sees: str
    accuracy: float
    chance: float
    rows: int

    @property
    def skill(self) -> float:
        """0 at chance, 1 where every photo is told."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def strong(self) -> bool:
        return self.skill >= _STRONG[self.sees]


def look(small: Image, target: NDArray[np.int64], fold: NDArray[np.int64]) -> list[Shortcut]:
    """Out-of-fold accuracy of both, from small pictures uint8 [N, S, S, 3], classes [N] and folds [N]."""
    chance = 1 / len(np.unique(target))
    found = []
    for sees, features in (("border", border(small)), ("colours", colours(small))):
        said = out_of_fold(features, target, fold, _INVERSE_PENALTY).argmax(1)
        recalls = [float((said[target == one] == one).mean()) for one in np.unique(target)]
        found.append(Shortcut(sees, float(np.mean(recalls)), chance, len(target)))
    return found


def border(small: Image) -> Features:
    """[N, D]: colours of the outer tenth on each of the four sides."""
    sides = (small[:, :_BORDER], small[:, -_BORDER:], small[:, :, :_BORDER], small[:, :, -_BORDER:])
    return np.concatenate([colours(side) for side in sides], axis=1)


def colours(small: Image) -> Features:
    """[N, 64]: share of pixels in each of 4 × 4 × 4 colours, as its square root (Hellinger)."""
    counts = np.stack([np.bincount(_cells(one), minlength=_LEVELS**3) for one in small])
    shares: Features = np.sqrt(counts / (small.shape[1] * small.shape[2]))
    return shares


def _cells(picture: Image) -> NDArray[np.int64]:
    """The colour of each pixel as a number from 0 to 63; of one picture, as all of them take a gigabyte."""
    red, green, blue = (picture.reshape(-1, 3) // (256 // _LEVELS)).astype(np.int64).T
    cells: NDArray[np.int64] = (red * _LEVELS + green) * _LEVELS + blue
    return cells


def out_of_fold(
    features: NDArray[np.floating], target: NDArray[np.int64], fold: NDArray[np.int64], inverse_penalty: float
) -> Features:
    """[N, C] class probabilities of each row by a logistic regression that learned from the other folds."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtraError("scikit-learn", "check") from None
    said = np.zeros((len(target), int(target.max()) + 1))
    for number in np.unique(fold):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=_STEPS))
        model.fit(features[fold != number], target[fold != number])
        said[fold == number] = model.predict_proba(features[fold == number])
    return said
