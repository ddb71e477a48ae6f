"""From manifest rows to batches: which rows a step sees, their decoded pixels from a memory map, their views.

Everything is a pure function of (seed, step): a killed run draws the same batches when it goes on.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agrikd import console, files, image
from agrikd.data.augment import CLEAN, Augment, seed_of
from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.types import Fit, Image

Views = Sequence[tuple[int, int]]
"""(manifest row, view seed) pairs."""


@dataclass(frozen=True)
class Batch:
    """What a step sees.

    images: float32 [B, 3, H, W], RGB in [0, 1], rendered once at the largest input size of the nets; each net
    resizes and normalises at its own door. target: [B, ...] as the task encodes it, meaningless where
    `labelled` (bool [B]) is False. index: int64 [B], the manifest's row. view: int64 [B], the view seed.
    """

    images: Tensor
    target: Tensor
    labelled: Tensor
    index: Tensor
    view: Tensor

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return replace(self, **moved)


class PixelCache:
    """Every photo of a manifest, decoded once to uint8 [side, side, 3] in a memory map on disk.

    `side` leaves a quarter of room above the render size for crops. Photos beyond `limit_mb` are decoded at
    each use; `held` says how many are in the map. The key holds the photos' identity, so a changed photo is
    never read from an old map; while the map is made, each file is checked against the manifest.
    """

    def __init__(self, manifest: Manifest, size: tuple[int, int], fit: Fit, limit_mb: int) -> None:
        self.manifest, self.fit = manifest, fit
        self.slot = (round(size[0] * 1.25), round(size[1] * 1.25))
        slot_bytes = self.slot[0] * self.slot[1] * 3
        self.held = min(len(manifest.rows), limit_mb * 2**20 // slot_bytes)
        identity = [manifest.identity(index) for index in range(self.held)]
        key = files.digest([identity, self.slot, fit, image.opencv().__version__, image.RESIZE])
        self._path = files.cache_folder() / "pixels" / f"{key[:32]}.u8"
        self._pixels: NDArray[np.uint8] | None = None
        self._opening = threading.Lock()

    def __getitem__(self, index: int) -> Image:
        """uint8 [side, side, 3]; do not write into it."""
        if index >= self.held:
            return self._decode(index)
        if self._pixels is None:
            self._pixels = self._open()
        pixels: Image = self._pixels[index]
        return pixels

    def fill(self) -> None:
        """Decode the photos now, unless that was done before; one `InputError` names all that cannot be read."""
        with self._opening:  # the loader's threads come here together
            if self.held and not self._path.exists():
                self._build()

    def _open(self) -> NDArray[np.uint8]:
        self.fill()
        return np.memmap(self._path, np.uint8, "r", shape=(self.held, *self.slot, 3))

    def _build(self) -> None:
        problems: list[Problem] = []
        with files.replacing(self._path) as temporary, temporary.open("wb") as out:
            for index in console.track(range(self.held), "decode photos"):
                try:
                    out.write(self._decode(index).tobytes())
                except InputError as error:
                    problems += error.problems
            if problems:
                raise InputError(problems)

    def _decode(self, index: int) -> Image:
        return image.fit(self.manifest.photo(index), self.slot, self.fit)


class Loader:
    """Renders batches of a manifest at one size. `target` and `labelled` are [N, ...] and [N] over all rows.

    partners: rows with which augmented views are mixed (mixup, Zhang et al. 2018, with λ uniform on [0, 1]); the
    partner and λ are drawn from the photo and the view seed, and a mixture counts as unlabelled. Empty: no mixing.
    """

    def __init__(
        self,
        manifest: Manifest,
        cache: PixelCache,
        augment: Augment,
        target: Tensor,
        labelled: Tensor,
        partners: tuple[int, ...] = (),
    ) -> None:
        self.manifest, self.cache, self.augment = manifest, cache, augment
        self.target, self.labelled, self.partners = target, labelled, partners

    @property
    def definition(self) -> dict[str, Any]:
        """What the pixels of a view depend on beside the photo itself; a part of every cache key."""
        partners = [self.manifest.identity(index) for index in self.partners]
        return {
            **self.augment.definition,
            "slot": list(self.cache.slot),
            "fit": self.cache.fit,
            "partners": files.digest(partners) if partners else None,
        }

    def pixels(self, index: int, view: int) -> Image:
        """uint8 [H, W, 3]: one view of one photo, or of a mixture of two."""
        own = self.augment(self.cache[index], self.manifest.rows[index], view)
        if view == CLEAN or not self.partners:
            return own
        rng = np.random.default_rng((seed_of(self.manifest.rows[index], view), 1))
        partner, share = self.partners[int(rng.integers(len(self.partners)))], float(rng.uniform())
        other = self.augment(self.cache[partner], self.manifest.rows[partner], view)
        mixed: Image = image.opencv().addWeighted(own, share, other, 1 - share, 0)
        return mixed

    def batch(self, views: Views) -> Batch:
        pixels = torch.from_numpy(np.stack([self.pixels(*view) for view in views]))
        index, view = torch.tensor(views, dtype=torch.int64).T.contiguous()
        images = pixels.permute(0, 3, 1, 2).float().div_(255)
        labelled = self.labelled[index] & (view == CLEAN) if self.partners else self.labelled[index]
        return Batch(images, self.target[index], labelled, index, view)

    def clean(self, indices: Sequence[int], size: int = 32) -> Iterator[Batch]:
        """The photos as they are, in order, `size` at a time."""
        for start in range(0, len(indices), size):
            yield self.batch([(index, CLEAN) for index in indices[start : start + size]])

    def ahead(self, draws: Iterator[Views], workers: int) -> Iterator[Batch]:
        """The batches of `draws` in order, rendered by `workers` threads up to two batches ahead each."""
        if not workers:
            yield from map(self.batch, draws)
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting: list[Future[Batch]] = [
                pool.submit(self.batch, views) for views in itertools.islice(draws, 2 * workers)
            ]
            while waiting:
                ready = waiting.pop(0).result()
                waiting += [pool.submit(self.batch, views) for views in itertools.islice(draws, 1)]
                yield ready


@dataclass(frozen=True)
class Sampler:
    """Which views step `s` sees: labelled rows first, then the unlabelled share; each pool in shuffled rounds.

    views: a view seed is drawn from range(views); None draws from 2³¹ so that each view is new.
    """

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...]
    batch: int
    unlabelled_share: float
    views: int | None
    seed: int

    def __post_init__(self) -> None:
        if not self.labelled:
            raise InputError(Problem("data", "no row of train has a label", "label some rows of the manifest"))
        if self.unlabelled_share and not self.unlabelled:
            mend = "add rows with an empty target, or set data.unlabelled_share=0"
            raise InputError(Problem("data.unlabelled_share", "no row of train lacks a label", mend))

    def draw(self, step: int) -> Views:
        n_unlabelled = unlabelled_rows(self.batch, self.unlabelled_share)
        rows = _round_robin(self.labelled, self.batch - n_unlabelled, step, (self.seed, 1))
        rows += _round_robin(self.unlabelled, n_unlabelled, step, (self.seed, 2))
        rng = np.random.default_rng((self.seed, 3, step))
        views = rng.integers(0, self.views or 2**31, len(rows))
        return [(row, int(view)) for row, view in zip(rows, views, strict=True)]


def unlabelled_rows(batch: int, share: float) -> int:
    """How many of a batch's rows have no label; at least one has."""
    return min(round(batch * share), batch - 1)


def _round_robin(pool: tuple[int, ...], n: int, step: int, key: tuple[int, int]) -> list[int]:
    """Places step·n … step·n + n of an endless run of shuffled rounds through the pool."""
    places = range(step * n, step * n + n)
    return [pool[_order(len(pool), place // len(pool), key)[place % len(pool)]] for place in places]


@lru_cache(maxsize=64)
def _order(n: int, round_: int, key: tuple[int, int]) -> tuple[int, ...]:
    return tuple(np.random.default_rng((*key, round_)).permutation(n).tolist())
