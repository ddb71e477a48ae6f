"""What a net comes from: the weights it starts with, and the photos that it has learned from, by itself or through its
teachers. They may not judge it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from agrikd import files
from agrikd.data import manifest as manifests
from agrikd.data.manifest import Manifest
from agrikd.data.splits import subset
from agrikd.errors import InputError
from agrikd.recipe import NetSpec, Recipe
from agrikd.run import Run


def own_manifest(run: Run) -> Manifest:
    """The Run's rows as training saw them, if nobody has changed them since; the photos may be absent. Raises
    `InputError` where it is not on this machine."""
    data = run.recipe.data
    return labelled_as(run.recipe, manifests.load(data.manifest, data.root))


def is_as_it_was(run: Run, manifest: Manifest) -> bool:
    """Whether the Run learned from this manifest."""
    try:
        return bool(run.record().get("data_digest") == labelled_as(run.recipe, manifest).digest)
    except InputError:  # some class has fewer labels now than the recipe takes
        return False


def labelled_as(recipe: Recipe, manifest: Manifest) -> Manifest:
    """With the labels beyond the recipe's `labels_per_class`, or `labels`, hidden."""
    data, by_class = recipe.data, recipe.task.scale is None
    return subset(manifest, data.labels_per_class or data.labels, data.subset_seed, by_class=by_class)


def marks(manifest: Manifest, rows: Iterable[int]) -> frozenset[str]:
    """16 hex digits of each photo, the same wherever its manifest lies if that knows its sha256."""
    return frozenset(files.sha256(manifest.identity(row).encode())[:16] for row in rows)


def learned_from(recipe: Recipe, manifest: Manifest) -> frozenset[str] | None:
    """The marks of what training a recipe shows its student, and of what the Runs that it starts from have seen; None
    where one of these does not say."""
    rows = manifest.indices("train", labelled=None if recipe.data.unlabelled_share else True)
    before = [Run.open(net.run).learned() for net in _nets(recipe) if net.run]
    known = [one for one in before if one is not None]
    return marks(manifest, rows).union(*known) if len(known) == len(before) else None


def weights_of(recipe: Recipe) -> list[str | None]:
    """The sha256 of the file that each net starts from, the student's first; None where it is no file of the user's."""
    files_of = (net.run / "weights.safetensors" if net.run else _file(net.weights) for net in _nets(recipe))
    return [files.sha256_of(path) if path else None for path in files_of]


def seen(run: Run, manifest: Manifest, rows: Iterable[int]) -> int | None:
    """How many of these photos the Run has learned from; None where it does not say: an early version made it."""
    known = run.learned()
    return None if known is None else len(known & marks(manifest, rows))


def is_of(run: Run, manifest: Manifest) -> bool:
    """Whether the Run learned from all that has a label in train: figures on its rows are figures on such photos."""
    known = run.learned()
    if known is None:
        return bool(run.record().get("data_digest") == manifest.digest)
    return marks(manifest, manifest.indices("train", labelled=True)) <= known


def _nets(recipe: Recipe) -> Iterator[NetSpec]:
    """The student, then each teacher, an ensemble's members one by one."""
    for net in (recipe.student, *recipe.teachers):
        yield from net.ensemble or (net,)


def _file(weights: str) -> Path | None:
    return None if weights in ("none", "hub", "package") else Path(weights)
