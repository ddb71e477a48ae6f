"""Which photos without a label a teacher speaks of: not those it is unsure about, nor those like none it has seen.

The filter is a choice, off by default: a soft target says itself how sure the teacher is, and a filter narrows the
pool to what the teacher finds easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agrikd import metrics
from agrikd.data.loader import Loader
from agrikd.errors import InputError, Problem
from agrikd.nets._base import Net
from agrikd.nets.ensemble import Ensemble
from agrikd.recipe import PoolSpec


@dataclass(frozen=True)
class Pool:
    """rows: manifest rows that stay. unsure, unknown: how many were left out for either reason (or both)."""

    rows: tuple[int, ...]
    unsure: int
    unknown: int


def chosen(
    teachers: Sequence[nn.Module], loader: Loader, labelled: Sequence[int], pool: Sequence[int], spec: PoolSpec
) -> Pool:
    """The rows of `pool` that pass the filter on their clean view, by the mean of the teachers.

    confidence: the top probability is at least that. known: the energy −logsumexp(logits) (Liu et al. 2020) is no
    higher than that quantile of the labelled rows' energies. Raises `InputError` where nothing is left.
    """
    answers = [_said(cast(Net, net), loader, pool) for net in teachers]
    top = np.mean([metrics.softmax(logits) for logits in answers], axis=0).max(axis=1)
    unsure = top < spec.confidence
    unknown = np.zeros(len(pool), bool)
    if spec.known is not None:
        _require_energy(teachers)
        energy = np.mean([metrics.energy(logits) for logits in answers], axis=0)
        seen = np.mean([metrics.energy(_said(cast(Net, net), loader, labelled)) for net in teachers], axis=0)
        unknown = energy > np.quantile(seen, spec.known)
    kept = tuple(row for row, out in zip(pool, unsure | unknown, strict=True) if not out)
    if not kept:
        wrong = f"leaves none of {len(pool)} photos ({unsure.sum()} unsure, {unknown.sum()} unknown)"
        raise InputError(Problem("data.pool", wrong, "lower pool.confidence, or raise pool.known"))
    return Pool(kept, int(unsure.sum()), int(unknown.sum()))


def _require_energy(teachers: Sequence[nn.Module]) -> None:
    if any(isinstance(net, Ensemble) for net in teachers):
        mend = "name the members as teachers of their own, or leave pool.known out"
        raise InputError(Problem("data.pool.known", "an ensemble's probabilities have no energy", mend))


@torch.inference_mode()
def _said(net: Net, loader: Loader, rows: Sequence[int]) -> NDArray[np.float32]:
    return np.concatenate([net.on(batch).logits.float().numpy() for batch in loader.clean(rows)])
