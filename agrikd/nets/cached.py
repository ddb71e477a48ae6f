"""A teacher that is paid once: its pooled features for every view of every photo, in a memory map.

Where each photo has a fixed number of views and the backbone is frozen, the backbone's answer to a view never
changes. Its classifier is run live on the stored features, so heads trained on other labels share one store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agrikd import console, files
from agrikd.data.augment import CLEAN
from agrikd.data.loader import Batch, Loader, cache_folder
from agrikd.nets._base import Net, Outputs
from agrikd.nets.from_timm import TimmNet


class FeatureStore:
    """float16 [N, views + 1, D]: pooled features of `net`'s backbone for view seeds 0 … views − 1 and, last, the
    clean view, of the rows of `loader`'s manifest.

    The file's key holds the backbone's weights and door, the view definition, the photos' sha256 and the
    library versions: whatever changes a value changes the key. Only rows that are asked for are computed.
    """

    def __init__(self, net: TimmNet, loader: Loader, rows: Sequence[int], views: int) -> None:
        self.rows, self.views = tuple(rows), views
        self._place = {row: place for place, row in enumerate(self.rows)}
        self._path = cache_folder() / "features" / f"{_key(net, loader, self.rows, views)[:32]}.npy"
        if not self._path.exists():
            _compute(net, loader, self.rows, views, self._path)
        self._values: NDArray[np.float16] = np.load(self._path, mmap_mode="r")

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """float32 [B, D] for manifest rows and view seeds [B] (−1 is the clean view)."""
        rows = [self._place[int(row)] for row in index]
        if int(view.max()) >= self.views:
            raise ValueError(f"view seed {int(view.max())}: the store has {self.views} views")
        return torch.from_numpy(self._values[rows, view.numpy()].astype(np.float32))


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


def _compute(net: TimmNet, loader: Loader, rows: Sequence[int], views: int, path: Path) -> None:
    net.eval()
    _check_linear(net)
    seeds = [*range(views), CLEAN]
    with files.replacing(path) as temporary, torch.inference_mode():
        values: NDArray[Any] | None = None
        draws = ([(row, seed) for seed in seeds] for row in rows)
        for place, batch in enumerate(console.track(loader.ahead(iter(draws), 1), "teacher's features", len(rows))):
            embedding = net.on(batch).embedding.numpy()
            if values is None:
                shape = (len(rows), len(seeds), embedding.shape[1])
                values = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            values[place] = embedding
        if values is not None:
            values.flush()  # type: ignore[attr-defined]


def _check_linear(net: TimmNet) -> None:
    """The store is right only if the classifier alone leads from the embedding to the logits."""
    generator = torch.Generator().manual_seed(0)
    outputs = net(torch.rand((2, 3, *net.input_size), generator=generator))
    if not torch.allclose(net.classifier(outputs.embedding), outputs.logits, atol=1e-4):
        raise ValueError(f"{net.origin.source}: its classifier does more than map the embedding to logits")


def _key(net: TimmNet, loader: Loader, rows: Sequence[int], views: int) -> str:
    manifest = loader.manifest
    own = id(net.classifier)
    head = {id(p) for module in net.modules() if id(module) == own for p in module.parameters()}
    weights = b"".join(
        value.numpy().tobytes()
        for name, value in sorted(net.state_dict(keep_vars=True).items())
        if id(value) not in head
        for value in [value.detach().cpu()]
    )
    photos = [manifest.rows[row].sha256 or str(manifest.file(row)) for row in rows]
    door = [net.input_size, _channels(net.mean), _channels(net.std)]
    view = [loader.augment.definition, loader.cache.slot, loader.cache.fit, views]
    return files.digest([files.sha256(weights), photos, door, view, torch.__version__])
