"""Golden values of the methods on logits and of the online ones, worked out with numpy from the published formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from kit import CLASSES, Tiny, batch, distiller
from numpy.typing import NDArray

from agrikd import distill
from agrikd.distill._sum import Sum
from agrikd.distill.dist import dist_losses
from agrikd.distill.dkd import dkd_losses
from agrikd.distill.logit_std import logit_std_loss, standardised
from agrikd.distill.mean_teacher import MeanTeacher, consistency
from agrikd.distill.mse import mse_loss
from agrikd.distill.mutual import mutual_loss
from agrikd.nets._base import Outputs
from agrikd.recipe import MethodSpec
from agrikd.tasks.classification import Classification

STUDENT = np.array([[1.0, 2.0, 0.5, -1.0], [0.3, -0.2, 1.1, 0.0], [2.0, 0.0, -0.5, 1.5]])
TEACHER = np.array([[0.2, 3.0, -1.0, 0.1], [1.0, -1.5, 2.2, 0.4], [0.5, 0.1, -2.0, 3.0]])
TARGET = np.array([1, 0, 3])
S, T, Y = torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(TARGET)
Values = NDArray[np.float64]


def softmax(logits: Values) -> Values:
    e = np.exp(logits)
    return e / e.sum(axis=-1, keepdims=True)


def kl(p: Values, q: Values) -> Values:
    divergence: Values = (p * np.log(p / q)).sum(axis=-1)
    return divergence


def close(found: torch.Tensor, expected: Values | float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=1e-5)


def test_dkd_golden_value() -> None:
    """Zhao et al. 2022, eq. 5 to 7: binary probabilities of the target, and the softmax over the others."""
    t, rows, others = 4.0, np.arange(3), np.array([[0, 2, 3], [1, 2, 3], [0, 1, 2]])
    p, q = (softmax(logits / t)[rows, TARGET] for logits in (TEACHER, STUDENT))
    of_target = kl(np.stack([p, 1 - p], 1), np.stack([q, 1 - q], 1)) * t**2
    left = [softmax(np.take_along_axis(logits, others, 1) / t) for logits in (TEACHER, STUDENT)]
    found = dkd_losses(S, T, Y, t)
    close(found[0], of_target)
    close(found[1], kl(*left) * t**2)


def test_dkd_with_the_teachers_own_weights_is_kd() -> None:
    """Eq. 6 there: KD = TCKD + (1 − p_target) · NCKD."""
    t = 2.0
    of_target, of_others = dkd_losses(S, T, Y, t)
    p, q = softmax(TEACHER / t), softmax(STUDENT / t)
    close(of_target + torch.tensor(1 - p[np.arange(3), TARGET]) * of_others, kl(p, q) * t**2)


def test_dkd_takes_the_teachers_class_where_there_is_no_label() -> None:
    made, rows = distiller("dkd").eval(), batch(4, 4)
    said = made.teachers[0](rows.images).logits
    expected = dkd_losses(made.student(rows.images).logits, said, said.argmax(1), 2.0)
    assert float(made(rows).parts["dkd_others"].detach()) == pytest.approx(float(expected[1].mean().detach()), rel=1e-5)


def test_dist_golden_value() -> None:
    """Huang et al. 2022, eq. 7 to 10, with numpy's own correlation."""
    t = 2.0
    q, p = softmax(STUDENT / t), softmax(TEACHER / t)
    inter = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]) * t**2
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]) * t**2
    found = dist_losses(S, T, t)
    close(found[0], inter)
    close(found[1], intra)


def test_dist_asks_for_the_order_alone() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)
    milder = probabilities / 2 + 1 / 6
    assert float(dist_losses(milder.log(), probabilities.log(), 1.0)[0].abs().max()) < 1e-9


def test_logit_std_golden_value() -> None:
    """Sun et al. 2024, algorithm 1 and the authors' code: unbiased standard deviation, T 2."""
    z = [(v - v.mean(1, keepdims=True)) / v.std(1, ddof=1, keepdims=True) for v in (TEACHER, STUDENT)]
    close(logit_std_loss(S, T, 2.0), kl(*(softmax(v / 2) for v in z)) * 4)
    close(standardised(5 * S + 3), standardised(S).numpy())


def test_mse_golden_value() -> None:
    close(mse_loss(S, T), ((STUDENT - TEACHER) ** 2).mean(axis=1))
    close(mse_loss(S, T)[:1], 1.275)


def test_mutual_golden_value() -> None:
    """Zhang et al. 2018, eq. 8: the mean over the peers of KL(p_peer ‖ p_own)."""
    outputs = [Outputs(torch.tensor(v), torch.tensor(v)) for v in (STUDENT, TEACHER, TEACHER[::-1].copy())]
    p = [softmax(v) for v in (STUDENT, TEACHER, TEACHER[::-1])]
    close(
        mutual_loss(Classification(("a", "b", "c", "d")), outputs[0], outputs[1:]),
        (kl(p[1], p[0]) + kl(p[2], p[0])) / 2,
    )


def test_mutual_peers_learn_from_each_other() -> None:
    made = distill.method("mutual")(
        Classification(CLASSES), Tiny(1), [Tiny(2), Tiny(3)], distill.method("mutual").Config()
    )
    step = made(batch())
    step.loss.backward()
    assert set(step.parts) == {"task", "mutual", "peers"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for peer in made.teachers for p in peer.head.parameters())


def test_the_teacher_trained_together_learns_from_labels_alone() -> None:
    method = distill.method("together")
    grads = []
    for weight in (0.0, 5.0):
        made = method(Classification(CLASSES), Tiny(1), [Tiny(2)], method.Config(weight_together=weight)).eval()
        made(batch()).loss.backward()
        grads.append([p.grad.clone() for p in made.teachers.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_byot_leaves_the_deepest_answer_as_it_is() -> None:
    """The net's own logits and embedding are targets: without the labels' part no gradient reaches the head."""
    method = distill.method("byot")
    made = method(Classification(CLASSES), Tiny(1), [], method.Config(weight_task=0)).eval()
    made(batch()).loss.backward()
    assert len(made.branches) == 2
    assert all(p.grad is None or not p.grad.any() for p in made.student.head.parameters())
    assert all(p.grad is not None and p.grad.any() for p in made.student.stages[0].parameters())


def test_consistency_golden_value() -> None:
    """Tarvainen & Valpola 2017: the squared distance of the softmax outputs."""
    close(consistency(S, T), ((softmax(STUDENT) - softmax(TEACHER)) ** 2).sum(axis=1))


def test_the_mean_teacher_follows_the_student() -> None:
    made = distiller("mean_teacher")
    assert isinstance(made, MeanTeacher)
    before = copy.deepcopy(made.average.head.weight)
    with torch.no_grad():
        made.student.head.weight.add_(1)
    made.after_step()  # step 1 keeps 1 − 1 / 2
    close(made.average.head.weight, (before + 0.5).numpy())
    made.after_step()
    close(made.average.head.weight, (before + 0.5 + 0.5 / 3).numpy())
    assert made._ramp() == pytest.approx(math.exp(-5 * (1 - 2 / 200) ** 2))
    assert not any(module.training for module in made.train().average.modules())


METHODS = [name for name in distill.names() if not distill.method(name).tasks]
SUMMABLE = [name for name in METHODS if distill.method(name).forward is distill.Distiller.forward]


@pytest.mark.parametrize("name", [name for name in SUMMABLE if name not in ("kd", "none")])
def test_methods_are_summed_with_their_own_weights(name: str) -> None:
    def made(spec: MethodSpec) -> distill.Distiller:
        torch.manual_seed(3)
        return distill.open_method(spec, Classification(CLASSES), Tiny(1), [Tiny(2)]).eval()

    alone = [made(MethodSpec(name=one))(batch()) for one in ("kd", name)]
    both = made(MethodSpec.model_validate({"name": "kd", "weight_kd": 3, "also": [{"name": name}]}))
    step = both(batch())
    assert isinstance(both, Sum)
    assert set(step.parts) == set(alone[0].parts) | set(alone[1].parts)
    learned = {part: float(value.detach()) for part, value in step.parts.items()}
    assert learned["kd"] == pytest.approx(float(alone[0].parts["kd"].detach()), rel=1e-5)
    assert float(step.loss.detach()) == pytest.approx(sum(both.weight(part) * value for part, value in learned.items()))
    assert both.weight("kd") == 3


def test_what_can_be_summed_is_counted() -> None:
    assert len(SUMMABLE) >= 9
    assert set(METHODS) - set(SUMMABLE) == {"mutual", "together"}


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ([{"name": "kd"}], "method kd stands twice"),
        ([{"name": "mutual"}], "method mutual has a step of its own"),
        ([{"name": "dkdd"}], "there is no method 'dkdd'"),
        ([{"name": "mse", "weight": 1}], "unknown key"),
        ([{"name": "mse", "weight_task": 1}], "is the first method's affair"),
        ([{"name": "mse", "also": [{"name": "dist"}]}], "stands inside another 'also'"),
    ],
)
def test_what_cannot_be_summed_is_said(also: list[dict[str, object]], said: str) -> None:
    problems = distill.problems({"name": "kd", "also": also}, "recipe.yaml")
    assert len(problems) == 1
    assert said in str(problems[0])
    assert "method.also" in problems[0].where
