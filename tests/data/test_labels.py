"""Wrong labels among features that tell the classes apart, and among features that tell nothing."""

from __future__ import annotations

import numpy as np
import pytest

from agrikd.data import labels
from agrikd.data.shortcuts import out_of_fold


def test_what_the_others_deny_is_suspected_the_surest_first() -> None:
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    right = np.arange(300) % 3
    features = 6 * np.eye(3)[right] + rng.normal(size=(300, 3))
    said, wrong = right.copy(), rng.choice(300, 15, replace=False)
    said[wrong] = (right[wrong] + 1) % 3
    probabilities = out_of_fold(np.repeat(features, 200, axis=1), said, np.arange(300) // 30, 0.003)
    found = labels.suspects(probabilities, said, 0.15)
    assert {one.index for one in found} <= set(wrong.tolist()) and len(found) >= 12
    assert all(one.said == right[one.index] and one.own < 0.15 < one.other for one in found)
    assert [one.own for one in found] == sorted(one.own for one in found)


def test_nobody_is_suspected_of_the_class_that_the_model_says() -> None:
    """With thirty classes and a model that knows little, all probabilities are small."""
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    target = np.arange(600) % 30
    features = 0.3 * rng.normal(size=(30, 40))[target] + rng.normal(size=(600, 40))
    found = labels.suspects(out_of_fold(features, target, np.arange(600) // 60, 0.003), target, 0.15)
    assert found and all(one.said != target[one.index] and one.other > one.own for one in found)
