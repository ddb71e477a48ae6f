"""A teacher that is paid once: its answers to every view of every photo, in a store on disk.

Where each photo has a fixed number of views and the teacher is frozen, its answer to a view never changes. Where
a linear classifier leads from pooled features to the logits, the features are kept and the classifier is run
live, so heads trained on other labels share one store; of any other net the logits are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agrikd import console, files, image
from agrikd.data.augment import CLEAN, seed_of
from agrikd.data.loader import Batch, Loader
from agrikd.errors import AgriKDError, InputError, Problem
from agrikd.nets._base import Net, Outputs
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.store import open_store

Kind = Literal["features", "logits"]
_AT_ONCE = 64
"""Views in a batch: what bounds the memory of a photo with many views."""
_BETWEEN_WRITES = 256
"""Views that a killed process loses at most, where a photo has fewer; each write waits for the disk twice."""
_LEAST_CHECKED, _SHARE_CHECKED = 8, 0.01


class FeatureStore:
    """float16 [views + 1, D] a photo: what `net` says of view seeds 0 … views − 1 and, last, of the clean view.

    kind "features": pooled features of the backbone; with `stages`, the mean and the maximum of each channel of so
    many of the last feature maps stand beside them: they know more of texture, and no classifier of the net's.
    kind "logits": the logits, of any net. what: how a person is told of them.

    The key holds the net's weights (for features the backbone's), its door, the views' definition and the versions
    of the libraries: whatever changes all values changes the key. Within a store a photo is known by its identity,
    not by its place in the manifest, so a new season's manifest asks only for what is new. A photo is computed when
    it is first asked for; what is found is held against its crc32 once by each object of this class.
    """

    def __init__(
        self, net: Net, loader: Loader, views: int, stages: int = 0, kind: Kind = "features", what: str = ""
    ) -> None:
        self.net, self.loader, self.views, self.stages, self.kind = net, loader, views, stages, kind
        self.what = what or ("photo features" if stages else f"teacher {kind}")
        if kind == "features" and not stages and not keeps_embedding(net):
            said = "its classifier does more than map the pooled features to logits, so these cannot be stored"
            raise InputError(Problem(f"net {_named(net)}", said, "choose another timm model"))
        width = self._values(_tried(net, stages)).shape[1]
        key = {**_key(net, loader, kind), "views": views, "stages": stages, "values a view": width}
        self.disk = open_store(files.cache_folder() / "features", key, (views + 1, width), self.what)
        self._slots = np.full(len(loader.manifest.rows), -1)

    def require(self, rows: Sequence[int]) -> int:
        """Compute the rows that are not in the store yet, or are damaged there; returns how many photos those were."""
        asked: dict[bytes, list[int]] = {}
        for row in rows:
            if self._slots[row] < 0:
                asked.setdefault(self._name(row), []).append(row)
        if not asked:
            return 0
        self.disk.refresh()
        missing = {places[0]: name for name, places in asked.items() if not self.disk.holds(name)}
        if missing:
            self._say_damaged([name for name in missing.values() if self.disk.find(name) is not None])
            self._fill(missing)
            self.disk.refresh()
        for name, places in asked.items():
            self._slots[places] = self.disk.find(name)
        return len(missing)

    def _fill(self, names: Mapping[int, bytes]) -> None:
        """Compute rows, and write them a few at a time."""
        self.disk.require_room(len(names))
        together = max(1, _BETWEEN_WRITES // (self.views + 1))
        ready: dict[bytes, NDArray[np.float16]] = {}
        for row, values in self._live([*names]):
            ready[names[row]] = self._as_float16(row, values)
            if len(ready) == together:
                self.disk.append(ready)
                ready = {}
        self.disk.append(ready)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """float32 [B, D] for rows that were required and view seeds [B] (−1 is the clean view)."""
        if int(view.max()) >= self.views:
            raise ValueError(f"view seed {int(view.max())}: the store has {self.views} views")
        slots = self._slots[index.numpy()]
        if (slots < 0).any():
            raise ValueError("the store was asked for a row that was not required")
        return torch.from_numpy(self.disk.values[slots, view.numpy()].astype(np.float32))

    def check(self, seed: int = 0, sample: int | None = None) -> float:
        """Compute `sample` of the required rows anew (by default 1 %, at least 8): the largest difference found.

        A stored value may differ by 1/1024 of itself and 1/1024 of its view's largest value: twice what float16
        rounds off, and what another order of summing may change. Raises `AgriKDError` with the rows that differ by
        more.
        """
        there = np.flatnonzero(self._slots >= 0)
        wanted = max(_LEAST_CHECKED, round(len(there) * _SHARE_CHECKED)) if sample is None else sample
        rows = np.random.default_rng(seed).choice(there, min(wanted, len(there)), replace=False)
        largest, differing = 0.0, []
        for row, live in self._live(sorted(rows.tolist())):
            size = np.abs(live)
            apart = np.abs(live - self.disk.values[self._slots[row]].astype(np.float32))
            largest = max(largest, float(apart.max()))
            if not (apart <= (size + size.max(axis=1, keepdims=True)) / 1024).all():
                differing.append(self.loader.manifest.rows[row].path)
        if differing:
            named = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
            said = f"of {len(rows)} rows computed anew {len(differing)} differ, by up to {largest:.3g}: {named}"
            raise AgriKDError(f"{self.disk.path}: {said}\n    → delete the folder {self.disk.path.parent}")
        console.say(f"{self.what}: {len(rows)} of {len(there)} rows computed anew, the same but for {largest:.2g}")
        return largest

    def _live(self, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each row with its values [views + 1, D], computed now."""
        seeds = [*range(self.views), CLEAN]
        parts = [seeds[start : start + _AT_ONCE] for start in range(0, len(seeds), _AT_ONCE)]
        draws = ([(row, seed) for seed in part] for row in rows for part in parts)
        batches = self.loader.ahead(draws, 1)
        self.net.eval()
        for row in console.track(rows, self.what):
            with torch.inference_mode():
                answers = [self.net.on(next(batches).to(self.net.mean.device), self.stages) for _ in parts]
                values = torch.cat([self._values(answer) for answer in answers])
            yield row, values.float().cpu().numpy()

    def _values(self, outputs: Outputs) -> Tensor:
        if self.kind == "logits":
            return outputs.logits
        pooled = [pool for maps in outputs.features for pool in (maps.mean((2, 3)), maps.amax((2, 3)))]
        return torch.cat([outputs.embedding, *pooled], dim=1)

    def _as_float16(self, row: int, values: NDArray[np.float32]) -> NDArray[np.float16]:
        if not (np.abs(values) <= np.finfo(np.float16).max).all():
            said = f"the net's answer holds numbers beyond ±{np.finfo(np.float16).max:.0f}, or none (NaN)"
            mend = "look at the photo and the teacher's weights, or set data.views to null to run the teacher live"
            raise InputError(Problem(str(self.loader.manifest.file(row)), said, mend))
        return values.astype(np.float16)

    def _name(self, row: int) -> bytes:
        """32 bytes for all that the photo's views depend on: what is in the photo, and what their seeds come from."""
        manifest = self.loader.manifest
        return bytes.fromhex(files.digest([manifest.identity(row), seed_of(manifest.rows[row], 0)]))

    def _say_damaged(self, damaged: Sequence[bytes]) -> None:
        for path, count in ((self.disk.path, len(damaged)), (self.disk.rows_path, len(self.disk.unreadable))):
            if count:
                console.say(f"{self.what}: {count} damaged {'row' if count == 1 else 'rows'} in {path}; computed again")


def replay(
    net: nn.Module, loader: Loader, views: int, rows: Sequence[int], check_seed: int | None = None
) -> CachedTeacher:
    """`net` replayed on `rows`, each of which is computed now unless it was before; with a seed, a few are checked."""
    assert isinstance(net, Net)
    teacher = CachedTeacher(net, loader, views)
    teacher.store.require(rows)
    if check_seed is not None:
        teacher.store.check(check_seed)
    return teacher


class CachedTeacher(Net):
    """`net` replayed from a store. Answers only to batches of rows that `store.require` was asked for.

    Where the logits are kept, `embedding` is empty: [B, 0].
    """

    def __init__(self, net: Net, loader: Loader, views: int) -> None:
        super().__init__(net.input_size, _channels(net.mean), _channels(net.std), net.origin)
        self.classifier = net.classifier if isinstance(net, TimmNet) and keeps_embedding(net) else None
        self.store = FeatureStore(net, loader, views, kind="features" if self.classifier else "logits")

    def on(self, batch: Batch, stages: int = 0) -> Outputs:
        if stages:
            raise ValueError("a cached teacher keeps no feature maps; set data.views to null to run it live")
        stored = self.store(batch.index.cpu(), batch.view.cpu()).to(batch.images.device)
        if self.classifier is None:
            return Outputs(stored, stored[:, :0])
        return Outputs(self.classifier(stored), stored)


def _channels(values: Tensor) -> tuple[float, ...]:
    return tuple(values.flatten().tolist())


@torch.inference_mode()
def _tried(net: Net, stages: int = 0) -> Outputs:
    """What the net says of two pictures of noise."""
    noise = torch.rand((2, 3, *net.input_size), generator=torch.Generator().manual_seed(0))
    outputs: Outputs = net.eval()(noise.to(net.mean.device), stages)
    return outputs


@torch.inference_mode()
def keeps_embedding(net: nn.Module) -> bool:
    """Whether a linear classifier alone leads from the pooled features to the logits, so that the features are kept."""
    if not isinstance(net, TimmNet) or not isinstance(net.classifier, nn.Linear):
        return False
    tried = _tried(net)
    return torch.allclose(net.classifier(tried.embedding), tried.logits, atol=1e-4)


def _named(net: Net) -> str:
    return str(net.spec.timm) if isinstance(net, TimmNet) else type(net).__name__


def _key(net: Net, loader: Loader, kind: Kind) -> dict[str, Any]:
    """What all values depend on, part by part; a part is named to a person where it has changed."""
    view = dict(loader.definition)
    return {
        "kind": kind,
        "net": _named(net),
        "net's settings": _settings(net),
        "weights": _weights(net, kind),
        "input size": net.input_size,
        "mean": _channels(net.mean),
        "std": _channels(net.std),
        "albumentations version": view.pop("albumentations"),
        **{f"view's {part}": value for part, value in view.items()},
        "opencv version": image.opencv().__version__,
        "resize": image.RESIZE,
        "timm version": timm.__version__,
        "torch version": str(torch.__version__),
    }


def _settings(net: Net) -> dict[str, Any]:
    """What makes the net's function beside its weights."""
    if isinstance(net, TimmNet):
        return net.spec.kwargs
    own = {name: repr(value) for name, value in vars(net).items() if isinstance(value, int | float | str | tuple)}
    inner = [module for module in net.modules() if isinstance(module, Net) and module is not net]
    doors = [[_named(one), one.input_size, _settings(one)] for one in inner]
    left_out = {"training", "input_size"}
    return {
        "own": {name: value for name, value in own.items() if name not in left_out},
        "layers": files.sha256(repr(net).encode()),
        "nets": doors,
    }


def _weights(net: Net, kind: Kind) -> str:
    """sha256 of all parameters and statistics; of a net whose features are kept, without its classifier's."""
    head: set[int] = set()
    if kind == "features" and isinstance(net, TimmNet):
        head = {id(value) for value in net.classifier.parameters()}
    found = hashlib.sha256()
    for name, value in sorted([*net.named_parameters(), *net.named_buffers()], key=lambda named: named[0]):
        if id(value) not in head and name not in ("mean", "std"):
            stored = value.detach().cpu().contiguous()
            found.update(f"{name} {stored.dtype} {list(stored.shape)}\n".encode())
            found.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
