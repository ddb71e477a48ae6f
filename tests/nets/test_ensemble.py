"""An ensemble's probabilities, worked out by hand, and its members each at their own door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kit import CLASSES, Tiny, batch

from agrikd.errors import InputError
from agrikd.nets._base import Outputs
from agrikd.nets.ensemble import Ensemble, combined, open_teacher
from agrikd.nets.sources import open_net
from agrikd.recipe import DataSpec, NetSpec, Recipe
from agrikd.run import Run

P = torch.tensor([[[0.8, 0.1, 0.1], [0.4, 0.3, 0.3]], [[0.2, 0.7, 0.1], [0.0, 0.0, 1.0]]], dtype=torch.float64)
NONE = torch.zeros(0, dtype=torch.int64)
NET = NetSpec(timm="mobilenetv3_small_050", input_size=64)


def test_probabilities_are_averaged() -> None:
    np.testing.assert_allclose(combined(P, "mean", NONE), [[0.5, 0.4, 0.1], [0.2, 0.15, 0.65]])


def test_a_member_in_doubt_counts_less() -> None:
    p = P.numpy()
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    weight = 1 + (p * logs).sum(axis=2) / np.log(3)
    expected = (weight[..., None] * p).sum(axis=0) / weight.sum(axis=0)[:, None]
    np.testing.assert_allclose(combined(P, "confidence", NONE), expected, atol=1e-9)
    assert combined(P, "confidence", NONE)[1, 2] > 0.95


def test_members_that_know_nothing_are_averaged() -> None:
    p = torch.full((2, 1, 4), 0.25)
    np.testing.assert_allclose(combined(p, "confidence", NONE), np.full((1, 4), 0.25), atol=1e-6)


def test_each_class_speaks_through_its_best_member() -> None:
    best = torch.tensor([0, 1, 1])
    np.testing.assert_allclose(combined(P, "best", best), [[0.5, 0.4375, 0.0625], [0.4 / 1.4, 0, 1 / 1.4]])


def test_members_that_are_each_sure_of_a_class_another_speaks_for_say_nothing() -> None:
    """Their probabilities for their own classes underflow, and 0 / 0 is no number."""
    net = Ensemble([Tiny(1), Tiny(2)], "best", torch.tensor([0, 1, 1]))
    sure = [torch.eye(3)[[place]] * 200 for place in (2, 0)]
    said = net._combined([Outputs(logits, torch.zeros(1, 8)) for logits in sure])
    np.testing.assert_allclose(said.logits.softmax(1), [[1 / 3] * 3])


@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_softmax_gives_the_combined_probabilities_back(combine: str) -> None:
    members, rows = [Tiny(1), Tiny(2)], batch()
    net = Ensemble(members, combine).eval()
    each = torch.stack([member(rows.images).logits.softmax(1) for member in members])
    said = net(rows.images)
    torch.testing.assert_close(said.logits.softmax(1), combined(each, combine, NONE))
    torch.testing.assert_close(net.on(rows).logits, said.logits)
    assert said.embedding.shape == (6, 16)
    assert net.origin.classes == CLASSES


def test_members_of_other_sizes_and_normalisations_meet() -> None:
    specs = (NET, NET.model_copy(update={"input_size": (96, 96), "mean": (0.1,) * 3, "std": (0.9,) * 3}))
    net = open_teacher(NetSpec(ensemble=specs), CLASSES).eval()
    images = torch.rand((2, 3, 96, 96), generator=torch.Generator().manual_seed(0))
    assert net.input_size == (96, 96)
    each = torch.stack([member(images).logits.softmax(1) for member in net.members])
    torch.testing.assert_close(net(images).logits.softmax(1), each.mean(0))


def taught(folder: Path, truth: list[int], said: list[int]) -> NetSpec:
    """A Run whose held-out predictions are `said`."""
    torch.manual_seed(len(folder.name))
    from agrikd.nets.sources import save_net

    recipe = Recipe(name="x", data=DataSpec(manifest=folder / "none.csv"), student=NET)
    run = Run.start(folder, recipe, {"classes": list(CLASSES)}, resume=False)
    run.write_held_out(np.array(truth), np.eye(3, dtype=np.float32)[said])
    save_net(open_net(NET, CLASSES), recipe, run)
    return NetSpec(run=folder)


def test_the_best_member_of_a_class_is_known_from_held_out_predictions(tmp_path: Path) -> None:
    truth = [0, 0, 1, 1, 2, 2]
    first, second = (
        taught(tmp_path / "a", truth, [0, 0, 2, 2, 2, 2]),
        taught(tmp_path / "bb", truth, [1, 1, 1, 1, 2, 2]),
    )
    net = open_teacher(NetSpec(ensemble=(first, second), combine="best"), CLASSES)
    assert net.best.tolist() == [0, 1, 1]


def test_best_needs_held_out_predictions() -> None:
    with pytest.raises(InputError, match="no held-out predictions"):
        open_teacher(NetSpec(ensemble=(NET, NET), combine="best"), CLASSES)


def test_an_ensemble_is_no_student_and_has_no_feature_maps() -> None:
    with pytest.raises(InputError, match="cannot be trained or exported as one net"):
        open_net(NetSpec(ensemble=(NET, NET)), CLASSES)
    with pytest.raises(InputError, match="has no feature maps"):
        Ensemble([Tiny(1), Tiny(2)], "mean")(batch().images, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ensemble": [{"timm": "x"}]}, "at least two members"),
        ({"timm": "x", "ensemble": [{"timm": "x"}, {"timm": "y"}]}, "exactly one of"),
        ({"ensemble": [{"timm": "x"}, {"ensemble": [{"timm": "x"}, {"timm": "y"}]}]}, "none of them an ensemble"),
        ({"ensemble": [{"timm": "x"}, {"timm": "y"}], "mean": [0.5, 0.5, 0.5]}, "each member"),
    ],
)
def test_what_is_no_ensemble_is_said(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NetSpec.model_validate(values)
