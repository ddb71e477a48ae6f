"""Hints at why a net said what it said: the photos of its data set that look most alike to it, and where it looked.

Neither proves anything: a net may be right for a wrong reason, and wrong with a good-looking hint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agrikd import image
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import InputError, Problem
from agrikd.learned import is_as_it_was
from agrikd.panel import shrunk
from agrikd.run import Run
from agrikd.types import Image

if TYPE_CHECKING:
    from torch import Tensor

    from agrikd.nets.cached import FeatureStore
    from agrikd.predict.torch import TorchPredictor

_THUMBNAIL = 160
_AT_ONCE = 32
_SHOWN = 448
"""Pixels of the longer side of a heat map."""
_one_at_a_time = threading.Lock()
"""Held for a few photos: two who look at once take turns, and neither takes all cores from the other."""


class Neighbour(NamedTuple):
    """A photo of the data set and how alike it is: the cosine of the angle between the pooled features, −1 to 1."""

    row: Row
    similarity: float
    thumbnail: Image


class Neighbours(NamedTuple):
    """The most alike first. photos: how many there were to choose from. absent: how many are not on this machine.
    changed: the manifest is not the one that the Run learned from."""

    nearest: tuple[Neighbour, ...]
    photos: int
    absent: int
    changed: bool


class Heat(NamedTuple):
    """seen: uint8 [H, W, 3], the pixels that the net saw. cells: float32 [h, w] from 0 to 1, where 1 spoke most for the
    class; all 0 where nothing did."""

    seen: Image
    cells: NDArray[np.float32]


def neighbours(
    predictor: TorchPredictor,
    folder: Path,
    picture: Image,
    count: int = 6,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Neighbours:
    """Of all photos of the Run in `folder`, those whose pooled features are nearest to the picture's.

    The photos' features are computed once and kept in the cache folder, by the weights and by each photo's own hash;
    `tell` hears how many of how many are there. Raises `InputError` where the photos are not on this machine or the
    net has no pooled features.
    """
    run = Run.open(folder)
    whole = manifests.load(run.recipe.data.manifest, run.recipe.data.root)
    there = tuple(row for index, row in enumerate(whole.rows) if whole.file(index).is_file())
    if not there:
        mend = f"put them where the Run's recipe says, under {whole.root}"
        raise InputError(Problem(str(run.recipe.data.manifest), "none of its photos is on this machine", mend))
    manifest = Manifest(there, whole.root)
    with _one_at_a_time:
        store = _store(predictor, manifest)
    for start in range(0, len(there), _AT_ONCE):
        tell(start, len(there))
        with _one_at_a_time:
            store.require(range(start, min(start + _AT_ONCE, len(there))))
    wanted = predictor([picture])[0].embedding
    alike = np.concatenate([_cosines(values, wanted) for values in _features(store, len(there))])
    nearest = (
        Neighbour(there[row], float(alike[row]), shrunk(manifest.photo(row), _THUMBNAIL))
        for row in _largest(alike, count)
    )
    return Neighbours(tuple(nearest), len(there), len(whole.rows) - len(there), not is_as_it_was(run, whole))


def _store(predictor: TorchPredictor, manifest: Manifest) -> FeatureStore:
    """Of the photos as they are, at the net's own door."""
    import torch

    from agrikd.data.augment import Augment
    from agrikd.data.loader import Loader, PixelCache
    from agrikd.nets.cached import FeatureStore

    size, nothing = predictor.spec.input_size, torch.zeros(len(manifest.rows))
    pixels = PixelCache(manifest, size, predictor.spec.fit, 0)
    return FeatureStore(predictor.net, Loader(manifest, pixels, Augment("none", size), nothing, nothing), 0)


def _features(store: FeatureStore, count: int) -> Iterator[NDArray[np.float32]]:
    """float32 [n, D] of the rows in their order, some thousand at once."""
    import torch

    from agrikd.data.augment import CLEAN

    for start in range(0, count, 4096):
        rows = torch.arange(start, min(start + 4096, count))
        yield store(rows, torch.full((len(rows),), CLEAN)).numpy()


def _cosines(rows: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N] of rows [N, D] with a vector [D]; 0 where one of the two is 0."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted)
    return np.asarray(rows @ wanted / np.where(lengths > 0, lengths, 1), np.float32)


def _largest(values: NDArray[np.float32], count: int) -> Sequence[int]:
    found: list[int] = np.argsort(-values, kind="stable")[:count].tolist()
    return found


def heat(predictor: TorchPredictor, picture: Image, wanted: int) -> Heat:
    """Where in the picture the net found what speaks for class `wanted`: `grad_cam`, divided by its largest value.

    Raises `InputError` for a net whose features lie on no grid.
    """
    import torch

    net: Any = predictor.net
    seen = image.fit(picture, predictor.spec.input_size, predictor.spec.fit)
    pixels = torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)[None].float() / 255
    cells = grad_cam(net.model, (pixels - net.mean) / net.std, wanted).numpy()
    return Heat(seen, (cells / max(float(cells.max()), np.finfo(np.float32).tiny)).astype(np.float32))


def grad_cam(model: Any, images: Tensor, wanted: int) -> Tensor:
    """Grad-CAM of one normalised image [1, 3, H, W], float [h, w], at least 0.

    L = ReLU(Σ_k α_k A^k), with α_k the mean over the cells of ∂y/∂A^k, y the logit of class `wanted` and A the last
    feature maps (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2). model: one of timm's, or what has its
    `forward_features` and `forward_head`, in evaluation mode. Of a transformer A is what the patches bring into the
    last block: behind it a class token may be all that the classifier reads, and no patch has a slope.
    """
    import torch

    images = images.detach().requires_grad_()
    with torch.enable_grad():
        maps, logits, shaped = (_of_tokens if hasattr(model, "num_prefix_tokens") else _of_maps)(model, images)
        (slopes,) = torch.autograd.grad(logits[0, wanted], maps)
    kept, slopes = shaped(maps.detach()), shaped(slopes)
    weights = slopes.mean(dim=(1, 2))
    return torch.einsum("k,khw->hw", weights, kept).relu()


_Maps = tuple["Tensor", "Tensor", Callable[["Tensor"], "Tensor"]]
"""What the slope is taken of, the logits, and how the former is brought to [K, h, w]."""


def _of_maps(model: Any, images: Tensor) -> _Maps:
    last = model.forward_features(images)
    if getattr(last, "ndim", 0) != 4:
        raise _no_grid()
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return last, model.forward_head(last), lambda maps: maps[0].permute(2, 0, 1) if channels_last else maps[0]


def _of_tokens(model: Any, images: Tensor) -> _Maps:
    """With a hook, as timm gives no other way to what lies within; it heeds only what this thread computes."""
    grid = getattr(model.patch_embed, "grid_size", None)
    here, found = threading.get_ident(), []

    def keep(_module: Any, _given: Any, tokens: Tensor) -> None:
        if threading.get_ident() == here:
            found.append(tokens)

    hook = model.blocks[-1].norm1.register_forward_hook(keep)
    try:
        logits = model.forward_head(model.forward_features(images))
    finally:
        hook.remove()
    cells = grid[0] * grid[1] if grid else 0
    if not cells or found[0].ndim != 3 or found[0].shape[1] not in (cells, cells + model.num_prefix_tokens):
        raise _no_grid()
    return found[0], logits, lambda tokens: tokens[0, -cells:].T.unflatten(1, grid)


def _no_grid() -> InputError:
    mend = "ask another model where it looked"
    return InputError(Problem("heat map", "the features of this net do not lie on a grid over the picture", mend))


def drawn(found: Heat) -> Image:
    """The heat over the pixels that the net saw, uint8 [H, W, 3], the longer side 448.

    A line runs where half of the largest value is, so that it is seen without its colours, too.
    """
    cv2 = image.opencv()
    share = _SHOWN / max(found.seen.shape[:2])
    height, width = (round(side * share) for side in found.seen.shape[:2])
    below = cv2.resize(found.seen, (width, height), interpolation=cv2.INTER_LINEAR)
    cells = cv2.resize(found.cells, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((255 * cells).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight = 0.65 * cells[..., None]
    mixed = np.ascontiguousarray((below * (1 - weight) + colours * weight).astype(np.uint8))
    edges, _ = cv2.findContours((cells >= 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.drawContours(mixed, edges, -1, colour, thickness)
    return mixed
