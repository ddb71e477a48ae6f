"""Methods over feature maps and embeddings: published formulas worked out again in numpy, and real timm pairs."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agrikd import distill
from agrikd.data.loader import Batch
from agrikd.distill import attention, crd, fitnet, patches, reviewkd, rkd
from agrikd.nets._base import Net, Origin, Outputs
from agrikd.nets.from_timm import TimmNet, create
from agrikd.recipe import NetSpec
from agrikd.tasks.classification import Classification

CLASSES = ("blight", "healthy", "rust")
METHODS = ("fitnet", "attention", "rkd", "crd", "reviewkd", "patches")
Array = NDArray[np.float64]


def stored(*shape: int, seed: float) -> Array:
    """Numbers between −1 and 1 that are the same on every machine."""
    return np.cos(seed * np.arange(1, np.prod(shape) + 1) ** 1.5).reshape(shape)


def tensor(values: Array) -> Tensor:
    return torch.from_numpy(values).float()


def net(name: str, seed: int = 0, **kwargs: Any) -> Net:
    """A timm net with random weights for images of 64 × 64."""
    torch.manual_seed(seed)
    spec = NetSpec(timm=name, input_size=(64, 64), kwargs=kwargs)
    return TimmNet(create(spec, len(CLASSES)), spec, Origin("random", head_trained=False))


def batch(rows: int = 4) -> Batch:
    images = torch.rand((rows, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    labelled = torch.arange(rows) < rows - 1
    return Batch(images, torch.arange(rows) % 3, labelled, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def distiller(name: str, student: Net, *teachers: Net) -> distill.Distiller:
    method = distill.method(name)
    return method(Classification(CLASSES), student, teachers, method.Config())


def pooled(maps: Array, size: int) -> Array:
    """[B, C, h, h] averaged over blocks to [B, C, size, size]."""
    b, c, h, _ = maps.shape
    return maps.reshape(b, c, size, h // size, size, h // size).mean((3, 5))


def huber(a: Array, b: Array) -> float:
    apart = np.abs(a - b)
    return float(np.where(apart < 1, apart**2 / 2, apart - 0.5).mean())


def test_fitnet_golden_value() -> None:
    """Romero et al. 2015, eq. 3, as the mean that RepDistiller's HintLoss (nn.MSELoss) takes; sizes by averaging."""
    student, teacher = stored(2, 3, 4, 4, seed=1.1), stored(2, 3, 2, 2, seed=0.7)
    expected = ((pooled(student, 2) - teacher) ** 2).mean((1, 2, 3))
    assert expected == pytest.approx([0.557895, 0.664080], abs=1e-6)
    assert fitnet.hint_loss(tensor(student), tensor(teacher)).numpy() == pytest.approx(expected, abs=1e-5)


def test_attention_golden_value() -> None:
    """RepDistiller's distiller_zoo/AT.py: mean over positions of (F/‖F‖ of student − of teacher)², F the mean of
    squares over channels; a row at a time, since its mean over rows is the base's here."""
    student, teacher = stored(2, 3, 4, 4, seed=1.1), stored(2, 5, 2, 2, seed=0.7)
    expected = []
    for row in range(2):
        ours, theirs = ((maps[row] ** 2).mean(0).flatten() for maps in (pooled(student, 2), teacher))
        apart = ours / np.sqrt((ours**2).sum()) - theirs / np.sqrt((theirs**2).sum())
        expected.append((apart**2).mean())
    assert expected == pytest.approx([0.224196, 0.079473], abs=1e-6)
    assert attention.attention_loss(tensor(student), tensor(teacher)).numpy() == pytest.approx(expected, abs=1e-5)


def test_rkd_golden_values() -> None:
    """Park et al. 2019, eqs. 4 to 8, pair by pair and triple by triple; means over all of them, and the mean distance
    over pairs apart, as in RepDistiller's distiller_zoo/RKD.py."""
    student, teacher = stored(5, 3, seed=1.1), stored(5, 4, seed=0.7)

    def distances(e: Array) -> Array:
        d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in e] for a in e])
        return d / d[d > 0].mean()

    def angles(e: Array) -> Array:
        found = np.zeros((5, 5, 5))
        for i, j, k in itertools.product(range(5), repeat=3):
            if i not in (j, k):
                a, b = e[j] - e[i], e[k] - e[i]
                found[i, j, k] = a @ b / np.sqrt((a @ a) * (b @ b))
        return found

    expected = huber(distances(student), distances(teacher)), huber(angles(student), angles(teacher))
    assert expected == pytest.approx((0.033382, 0.037842), abs=1e-6)
    ours, theirs = tensor(student), tensor(teacher)
    assert float(rkd.distance_loss(ours, theirs)) == pytest.approx(expected[0], abs=1e-5)
    assert float(rkd.angle_loss(ours, theirs)) == pytest.approx(expected[1], abs=1e-5)


def test_rows_that_coincide_leave_rkd_a_finite_gradient() -> None:
    ours = torch.ones(4, 3, requires_grad=True)
    theirs = tensor(stored(4, 5, seed=0.7))
    (rkd.distance_loss(ours, theirs) + rkd.angle_loss(ours, theirs)).backward()
    assert ours.grad is not None and torch.isfinite(ours.grad).all()


@pytest.mark.parametrize("photos", [50, 50_000])
def test_crd_golden_value(photos: int) -> None:
    """RepDistiller's crd/memory.py and crd/criterion.py with the batch as memory: Z = mean · M, noise 1 / M for a
    dataset of M photos, which cancels; anchors of both nets, summed; without its eps of 1e-7."""
    rows, temperature = 5, 0.5
    student, teacher = (stored(rows, 3, seed=seed) for seed in (1.1, 0.7))
    student, teacher = (e / np.sqrt((e**2).sum(1, keepdims=True)) for e in (student, teacher))
    e = np.exp(student @ teacher.T / temperature)
    out, noise, expected = e / (e.mean() * photos), (rows - 1) / photos, np.zeros(rows)
    for anchors in (out, out.T):
        for i in range(rows):
            expected[i] -= np.log(anchors[i, i] / (anchors[i, i] + noise))
            expected[i] -= sum(np.log(noise / (anchors[i, j] + noise)) for j in range(rows) if j != i)
    assert expected.mean() == pytest.approx(6.207521, abs=1e-6)
    found = crd.crd_loss(tensor(student), tensor(teacher), temperature)
    assert found.numpy() == pytest.approx(expected, rel=1e-5)


def test_crd_is_least_where_pairs_meet() -> None:
    rows = torch.eye(4)
    losses = [float(crd.crd_loss(rows, rows[list(order)], 0.5).mean()) for order in itertools.permutations(range(4))]
    assert losses[0] == min(losses) and sorted(losses)[1] > losses[0]
    assert float(crd.crd_loss(rows[:1], rows[:1], 0.5)) == 0


def test_hcl_golden_value() -> None:
    """mdistiller's distillers/ReviewKD.py, hcl_loss: full size, then 4, 2 and 1 at 1/2, 1/4 and 1/8, over 1.875."""
    student, teacher = stored(2, 3, 8, 8, seed=1.1), stored(2, 3, 8, 8, seed=0.7)
    levels = [(1.0, 8), (0.5, 4), (0.25, 2), (0.125, 1)]
    expected = sum(w * ((pooled(student, s) - pooled(teacher, s)) ** 2).mean((1, 2, 3)) for w, s in levels) / 1.875
    assert expected == pytest.approx([0.705740, 0.551426], abs=1e-6)
    assert reviewkd.hcl_loss(tensor(student), tensor(teacher)).numpy() == pytest.approx(expected, abs=1e-5)
    small = [torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)]  # 4 × 4 is its own full size: 2 and 1 are left
    assert float(reviewkd.hcl_loss(*small)) == pytest.approx(1.0)


def test_fusion_golden_value() -> None:
    """mdistiller's distillers/ReviewKD.py, ABF, in evaluation with a fresh batch norm (a division by √(1 + 1e-5))."""
    torch.manual_seed(0)
    fusion = reviewkd.Fusion(3, 2, 4, deepest=False).eval()
    maps, deeper = stored(1, 3, 4, 4, seed=1.1), stored(1, 2, 2, 2, seed=0.7)
    weights = {name: p.detach().double().numpy() for name, p in fusion.named_parameters()}
    entered = np.einsum("oi,bihw->bohw", weights["enter.0.weight"][:, :, 0, 0], maps) / np.sqrt(1 + 1e-5)
    nearest = deeper.repeat(2, axis=2).repeat(2, axis=3)
    both = np.concatenate([entered, nearest], axis=1)
    shares = np.einsum("oi,bihw->bohw", weights["attention.weight"][:, :, 0, 0], both)
    shares = 1 / (1 + np.exp(-(shares + weights["attention.bias"][:, None, None])))
    fused = (shares[:, :1] * entered + shares[:, 1:] * nearest).repeat(2, axis=2).repeat(2, axis=3)
    padded = np.pad(fused, ((0, 0), (0, 0), (1, 1), (1, 1)))
    review = np.zeros((1, 4, 8, 8))
    for y, x in itertools.product(range(8), repeat=2):
        window = padded[:, :, y : y + 3, x : x + 3]
        review[:, :, y, x] = np.einsum("oiyx,biyx->bo", weights["leave.0.weight"], window) / np.sqrt(1 + 1e-5)
    found = fusion(tensor(maps), tensor(deeper), (8, 8))
    for ours, expected in zip(found, (review, fused), strict=True):
        assert ours.detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_patches_golden_values() -> None:
    """The formulas of the module's docstring, position by position: KL of softmax(LN(x)_i · LN(x)_j / √D), and the
    mean squared difference; a stored value keeps them."""
    student, teacher = stored(1, 6, 4, 4, seed=1.1), stored(1, 6, 2, 2, seed=0.7)

    def normed(maps: Array) -> Array:
        each = maps[0].reshape(6, -1).T
        each = each - each.mean(1, keepdims=True)
        return each / np.sqrt((each**2).mean(1, keepdims=True) + 1e-5)

    def attended(maps: Array) -> Array:
        scores = np.exp([[a @ b / np.sqrt(6) for b in normed(maps)] for a in normed(maps)])
        return scores / scores.sum(1, keepdims=True)

    p, q = attended(teacher), attended(pooled(student, 2))
    expected = (p * np.log(p / q)).sum(1).mean(), ((pooled(student, 2) - teacher) ** 2).mean()
    assert expected == pytest.approx((0.182566, 0.610987), abs=1e-6)
    ours, theirs = tensor(student), tensor(teacher)
    assert float(patches.attention_loss(ours, theirs)) == pytest.approx(expected[0], abs=1e-5)
    assert float(patches.feature_loss(ours, theirs)) == pytest.approx(expected[1], abs=1e-5)
    assert patches.standardised(theirs)[0].flatten(1).T.numpy() == pytest.approx(normed(teacher), abs=1e-5)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fitnet": fitnet.hint_loss,
    "attention": attention.attention_loss,
    "rkd distance": lambda s, t: rkd.distance_loss(s.flatten(1), t.flatten(1)),
    "rkd angle": lambda s, t: rkd.angle_loss(s.flatten(1), t.flatten(1)),
    "crd": lambda s, t: crd.crd_loss(*(nn.functional.normalize(x.flatten(1)) for x in (s, t)), 0.07),
    "hcl": reviewkd.hcl_loss,
    "patches attention": patches.attention_loss,
    "patches features": patches.feature_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_around_a_loss_does_not_change_it(name: str) -> None:
    student, teacher = (tensor(stored(3, 6, 8, 8, seed=seed)) for seed in (1.1, 0.7))
    expected = LOSSES[name](student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](student, teacher)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def _identity(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.out_channels == 2:  # the shares of a fusion: all to the finer map
        nn.init.zeros_(module.weight)
        module.bias.data = torch.tensor([50.0, -50.0])
    elif isinstance(module, nn.Conv2d):
        nn.init.dirac_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@pytest.mark.parametrize("name", ["fitnet", "reviewkd", "patches"])
def test_hints_are_zero_at_equality_with_an_identity_projector(name: str) -> None:
    teacher = net("mobilenetv3_small_050")
    made = distiller(name, copy.deepcopy(teacher), teacher).eval()
    before = made(batch()).parts
    for part, module in made.named_children():
        if part not in ("student", "teachers"):
            module.apply(_identity)
    outputs = teacher.eval()(batch().images, 3)
    maps = tuple(patches.standardised(x) for x in outputs.features) if name == "patches" else outputs.features
    same = Outputs(outputs.logits, outputs.embedding, maps)
    losses = made.distillation_losses(same, [outputs], batch())
    assert losses and all(float(loss.detach().abs().max()) < 1e-8 for loss in losses.values())
    assert all(float(before[part].detach()) > 1e-6 for part in losses)


TEACHERS = {"convolutions": ("resnet18", {}), "transformer": ("vit_tiny_patch16_224", {"img_size": 64})}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", METHODS)
def test_methods_run_with_real_nets(name: str, teacher: str) -> None:
    model, kwargs = TEACHERS[teacher]
    made = distiller(name, net("mobilenetv3_small_050"), net(model, 1, **kwargs))
    step = made(batch())
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert all(float(part.detach()) > 0 for part in step.parts.values())
    assert [key for key, p in made.named_parameters() if p.requires_grad and p.grad is None] == []
    first = next(made.student.parameters()).grad
    assert first is not None and torch.isfinite(first).all() and first.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_several_teachers_are_averaged(name: str) -> None:
    student = net("mobilenetv3_small_050")
    teachers = [net("resnet10t", 1), net("vit_tiny_patch16_224", 2, img_size=64, depth=4)]
    both = distiller(name, student, *teachers).eval()
    found, apart = both(batch()).parts, []
    for number, teacher in enumerate(teachers):
        alone = distiller(name, student, teacher).eval()
        mine = re.compile(rf"^((?!student)\w+)\.{number}\.")
        state = {mine.sub(r"\1.0.", key): v for key, v in both.state_dict().items() if mine.match(key)}
        alone.load_state_dict({**state, **{f"student.{k}": v for k, v in student.state_dict().items()}})
        apart.append(alone(batch()).parts)
    for part in found.keys() - {"task"}:
        mean = np.mean([float(parts[part].detach()) for parts in apart])
        assert float(found[part].detach()) == pytest.approx(mean, rel=1e-5)


def test_relations_need_no_feature_maps_of_the_teacher() -> None:
    """So a teacher's stored embeddings serve."""
    assert [distill.method(name).teacher_stages for name in METHODS] == [1, 3, 0, 0, 3, 1]
