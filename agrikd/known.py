""" "Not a plant I know": how far a picture is from the photos a model was taught with, whatever the model says of it.

One Gaussian over 50 statistics of colour and texture of the picture at 112 × 112 pixels, as NIQE has one of natural
scenes (Mittal, Soundararajan & Bovik 2013), and the squared Mahalanobis distance from it (for the unknown: Lee et al.
2018, arXiv:1807.03888, there of a net's features). The student's own features would cost no statistics, but of pictures
of no plant its logits notice one in twenty, and its embedding every second one (models/LOG.md).

It knows photos of the kind it was fitted to, not botany.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agrikd import image
from agrikd.types import Image, Known

Floats = NDArray[np.float64]

FEWEST = 20
"""Photos to learn from: of fewer, a limit that 95 % pass is one photo's whim."""
_SIZE, _NUMBERS = (112, 112), 50
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Of red, green and blue (ITU-R BT.601)."""
_LEVELS, _FEW_LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98), (0.1, 0.5, 0.9)
_SCALES = 4
_FLAT, _FAINT = 0.02, 0.002
"""Added to deviations and energies, of a range of 1: below these, differences are a sensor's noise."""
_FOLDS = 10


class Fit(NamedTuple):
    """What was fitted, and of every row the strangeness, [N], by a fit that did not see its photo."""

    known: Known
    held_out: Floats


def statistics(picture: Image) -> NDArray[np.float32]:
    """50 numbers of a picture uint8 [H, W, 3] of any size, stretched to 112 × 112, channels in [0, 1].

    21: quantiles of Y, B − Y and R − Y. 3: of max − min of the channels. 3: log deviations of the planes. 3: their
    correlations. 20: on each of four scales of a Haar pyramid, the log energy of Y along the axes and across them, how
    evenly the former is spread (mean magnitude over root mean square), and the log energies of the other two planes.
    """
    channels = np.ascontiguousarray(image.resize(picture, _SIZE).reshape(-1, 3).T).astype(np.float32) / np.float32(255)
    luma = _LUMA @ channels
    planes = np.stack([luma, channels[2] - luma, channels[0] - luma])
    around = planes - planes.mean(axis=1, keepdims=True)
    products = around @ around.T / np.float32(planes.shape[1])
    deviations = np.sqrt(np.diag(products)) + np.float32(_FLAT)
    correlations = (products / np.outer(deviations, deviations))[(0, 0, 1), (1, 2, 2)]
    spread = np.quantile(channels.max(axis=0) - channels.min(axis=0), _FEW_LEVELS)
    quantiles = np.quantile(planes, _LEVELS, axis=1).T.ravel()
    found = (quantiles, spread, np.log(deviations), correlations, *_textures(planes.reshape(3, *_SIZE)))
    return np.concatenate(found).astype(np.float32)


def _textures(planes: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Five numbers a scale, finest first, of planes [3, H, W]."""
    half = np.float32(0.5)
    for _ in range(_SCALES):
        a, b, c, d = (planes[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
        left, right = a + c, b + d
        across, down, both = (half * one for one in (left - right, a + b - c - d, a[0] - b[0] - c[0] + d[0]))
        energies = np.sqrt(np.square(across).mean((1, 2)) + np.square(down).mean((1, 2))) + np.float32(_FAINT)
        magnitude = np.abs(across[0]).mean() + np.abs(down[0]).mean() + np.float32(_FAINT)
        crossed = np.sqrt(np.square(both).mean()) + np.float32(_FAINT)
        yield np.log(np.array([energies[0], crossed, magnitude / energies[0], *energies[1:]], np.float32))
        planes = half * half * (left + right)


def strangeness(known: Known, pictures: Sequence[Image]) -> Floats:
    """(f − μ)ᵀ Σ⁻¹ (f − μ) of the `statistics` f of each picture, [N]."""
    mean, factor = _arrays(known)
    found = np.array([statistics(one) for one in pictures], np.float64).reshape(-1, _NUMBERS)
    return _distances(found, mean, factor)


def fit(features: NDArray[np.float32], photo: NDArray[np.int64], seed: int) -> Fit:
    """Learn from the `statistics` [N, 50] of photos and their views; photo: of which each is one, [N], from 0.

    The scores that a limit is chosen by come from ten folds by photo: no photo is judged by what was learned from its
    own views. That is how cross-conformal prediction (Vovk 2015) pools its scores; as it is the Gaussian of all photos
    that judges later, and views are not photos, the share that a limit keeps is an aim and no guarantee.
    """
    rows, photos = features.astype(np.float64), int(photo.max()) + 1
    fold = (np.random.default_rng(seed).permutation(photos) % min(_FOLDS, photos))[photo]
    held_out = np.empty(len(rows))
    for number in range(fold.max() + 1):
        out = fold == number
        held_out[out] = _distances(rows[out], *_gaussian(rows[~out]))
    mean, factor = _gaussian(rows)
    return Fit(Known(_text(mean), _text(factor[np.tril_indices(len(mean))]), photos), held_out)


def ledoit_wolf(rows: Floats) -> Floats:
    """The covariance [D, D] of centred rows [N, D], drawn towards its mean variance times the identity.

    S + (b²/d²)(mI − S), with m = ⟨S, I⟩, d² = ‖S − mI‖² and b² = min(d², Σ ‖x xᵀ − S‖² / N²), where ⟨A, B⟩ = tr(ABᵀ)/D:
    of such mixtures the one nearest to the truth, estimated (Ledoit & Wolf 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices").
    """
    count, width = rows.shape
    plain = rows.T @ rows / count
    target = np.trace(plain) / width * np.eye(width)
    off = np.sum((plain - target) ** 2)
    chance = (np.sum(np.sum(rows**2, axis=1) ** 2) / count - np.sum(plain**2)) / count
    share = min(chance / off, 1.0) if off else 1.0
    return np.asarray(plain + share * (target - plain))


def _gaussian(rows: Floats) -> tuple[Floats, Floats]:
    """The mean [D] and the lower factor [D, D] of the inverse covariance of rows [N, D]."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    inverse = np.linalg.inv(ledoit_wolf((rows - mean) / deviation))
    return mean, np.linalg.cholesky(inverse) / deviation[:, None]


def _distances(rows: Floats, mean: Floats, factor: Floats) -> Floats:
    return np.asarray(np.square((rows - mean) @ factor).sum(axis=1))


_arrays = lru_cache(maxsize=8)(Known.arrays)


def _text(values: Floats) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
