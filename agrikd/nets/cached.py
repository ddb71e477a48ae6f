"""A teacher that is paid once: its pooled features for every view of every photo, in a memory map.

Where each photo has a fixed number of views and the backbone is frozen, the backbone's answer to a view never
changes. Its classifier is run live on the stored features, so heads trained on other labels share one store.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agrikd import console, files
from agrikd.data.augment import CLEAN
from agrikd.data.loader import Batch, Loader
from agrikd.errors import InputError, Problem
from agrikd.nets._base import Net, Outputs
from agrikd.nets.from_timm import TimmNet


class FeatureStore:
    """float16 [N, views + 1, D]: pooled features of `net`'s backbone for view seeds 0 … views − 1 and, last, the
    clean view, of the N rows of `loader`'s manifest.

    With `stages`, the mean and the maximum of each channel of so many of the last feature maps stand beside them:
    they know more of texture, and no classifier of the net's.

    The key holds the backbone's weights and door, the view definition, the photos' identity and the library
    versions: whatever changes a value changes the key. A row is computed when it is first asked for; a second
    map marks the rows that are whole, so a killed writer leaves nothing half-true and two writers write the same.
    Values are written to the file, not through the map: a full disk is then an error, not the end of the process.
    """

    def __init__(self, net: TimmNet, loader: Loader, views: int, stages: int = 0) -> None:
        self.net, self.loader, self.views, self.stages = net, loader, views, stages
        net.eval()
        with torch.inference_mode():
            tried = net(torch.rand((2, 3, *net.input_size), generator=torch.Generator().manual_seed(0)), stages)
            if not stages:
                _require_linear(net, tried)
            dimensions = int(_values(tried).shape[1])
        shape = (len(loader.manifest.rows), views + 1, dimensions)
        folder = files.cache_folder() / "features" / _key(net, loader, [views, stages])[:32]
        if not folder.exists():
            with files.replacing_folder(folder) as temporary:
                _sparse(temporary / "values.f16", 2 * math.prod(shape))
                (temporary / "whole.u1").write_bytes(bytes(shape[0]))
        self._path = folder / "values.f16"
        self._values = np.memmap(self._path, np.float16, "r", shape=shape)
        self._whole = np.memmap(folder / "whole.u1", np.uint8, "r+", shape=shape[:1])

    def require(self, rows: Sequence[int]) -> None:
        """Compute the rows that are not in the store yet."""
        missing = [row for row in rows if not self._whole[row]]
        if not missing:
            return
        seeds = [*range(self.views), CLEAN]
        draws = ([(row, seed) for seed in seeds] for row in missing)
        batches = self.loader.ahead(iter(draws), 1)
        with torch.inference_mode(), files.storage_errors(self._path), self._path.open("r+b") as out:
            for row, batch in zip(missing, console.track(batches, "features", len(missing)), strict=True):
                values = _values(self.net.on(batch, self.stages)).numpy().astype(np.float16)
                out.seek(row * values.nbytes)
                out.write(values.tobytes())
                out.flush()
                os.fsync(out.fileno())
                self._whole[row] = 1
        self._whole.flush()

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """float32 [B, D] for rows that were required and view seeds [B] (−1 is the clean view)."""
        if int(view.max()) >= self.views:
            raise ValueError(f"view seed {int(view.max())}: the store has {self.views} views")
        if not self._whole[index.numpy()].all():
            raise ValueError("the store was asked for a row that was not required")
        return torch.from_numpy(self._values[index.numpy(), view.numpy()].astype(np.float32))


class CachedTeacher(Net):
    """`net` with its backbone replaced by a store. Answers only to batches of the store's rows and views."""

    def __init__(self, net: TimmNet, store: FeatureStore) -> None:
        super().__init__(net.input_size, _channels(net.mean), _channels(net.std), net.origin)
        self.store, self.classifier = store, net.classifier

    def on(self, batch: Batch, stages: int = 0) -> Outputs:
        if stages:
            raise ValueError("a cached teacher keeps no feature maps; set data.views to null to run it live")
        embedding = self.store(batch.index.cpu(), batch.view.cpu()).to(batch.images.device)
        return Outputs(self.classifier(embedding), embedding)


def _channels(values: Tensor) -> tuple[float, ...]:
    return tuple(values.flatten().tolist())


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as out:
        out.truncate(size)


def _values(outputs: Outputs) -> Tensor:
    pooled = [pool for maps in outputs.features for pool in (maps.mean((2, 3)), maps.amax((2, 3)))]
    return torch.cat([outputs.embedding, *pooled], dim=1)


def _require_linear(net: TimmNet, outputs: Outputs) -> None:
    """A teacher can be replayed only if its classifier alone leads from what is stored to the logits."""
    linear = isinstance(net.classifier, nn.Linear)
    if not linear or not torch.allclose(net.classifier(outputs.embedding), outputs.logits, atol=1e-4):
        said = "its classifier does more than map the pooled features to logits, so these cannot be stored"
        raise InputError(Problem(f"net {net.spec.timm}", said, "choose another timm model"))


def _key(net: TimmNet, loader: Loader, kept: list[int]) -> str:
    manifest = loader.manifest
    own = id(net.classifier)
    head = {id(p) for module in net.modules() if id(module) == own for p in module.parameters()}
    weights = b"".join(
        value.numpy().tobytes()
        for name, value in sorted(net.state_dict(keep_vars=True).items())
        if id(value) not in head
        for value in [value.detach().cpu()]
    )
    photos = [manifest.identity(index) for index in range(len(manifest.rows))]
    door = [net.input_size, _channels(net.mean), _channels(net.std)]
    view = [loader.augment.definition, loader.cache.slot, loader.cache.fit, *kept]
    return files.digest([files.sha256(weights), photos, door, view, torch.__version__])
