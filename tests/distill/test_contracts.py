"""What every method must keep, run over each method and task and counted; golden values from the published formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit import CLASSES, TASKS, Tiny, batch, distiller

from agrikd import distill, tasks
from agrikd.data.loader import Batch
from agrikd.distill._base import PARTS, TWO_CLASSES
from agrikd.distill.kd import kd_loss
from agrikd.tasks.classification import Classification, softened_kl

METHODS = distill.names()
PAIRS = tuple((name, task) for name in METHODS for task in distill.method(name).tasks or TASKS)
WITH_TEACHER = tuple((name, task) for name, task in PAIRS if distill.method(name).needs_teacher)
ZERO, BATCH_OF_ONE, ORDER = "zero at equality", "a batch of one", "the order of rows"
EXCEPTIONS = {(name, contract) for name in METHODS for contract in distill.method(name).exceptions}


def may(name: str, contract: str) -> None:
    if reason := distill.method(name).exceptions.get(contract):
        pytest.skip(f"{name}: {reason}")


def test_the_methods_are_counted() -> None:
    assert set(METHODS) >= {"none", "kd"}
    assert len(METHODS) == 20 and len(PAIRS) == 20 + 17
    assert set(TASKS) == set(tasks.names())
    assert {contract for _, contract in EXCEPTIONS} <= {ZERO, BATCH_OF_ONE, ORDER, PARTS, TWO_CLASSES}
    assert all(reason for name in METHODS for reason in distill.method(name).exceptions.values())


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_the_student_gets_a_gradient(name: str, task: str) -> None:
    made = distiller(name, task=task)
    made(batch(task=task)).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in made.student.parameters())


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_all_that_is_learned_gets_a_gradient(name: str, task: str) -> None:
    made = distiller(name, task=task)
    made(batch(task=task)).loss.backward()
    assert [key for key, p in made.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("name", "task"), WITH_TEACHER)
def test_a_frozen_teacher_stays_as_it_is(name: str, task: str) -> None:
    made = distiller(name, task=task)
    if made.teachers_learn:
        assert any(p.requires_grad for p in made.teachers.parameters())
        return
    before = {key: value.clone() for key, value in made.teachers.state_dict().items()}
    for mode in (True, False, True):
        made.train(mode)
        assert not any(module.training for module in made.teachers.modules())
    made(batch(task=task)).loss.backward()
    assert all(p.grad is None for p in made.teachers.parameters())
    assert all(torch.equal(before[key], value) for key, value in made.teachers.state_dict().items())


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_the_loss_does_not_depend_on_the_order_of_rows(name: str, task: str) -> None:
    may(name, ORDER)
    made = distiller(name, task=task).eval()
    rows = batch(task=task)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    shuffled = Batch(*(value[order] for value in vars(rows).values()))
    assert float(made(rows).loss.detach()) == pytest.approx(float(made(shuffled).loss.detach()), abs=1e-5)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_the_loss_is_the_mean_over_equal_parts_of_a_batch(name: str, task: str) -> None:
    made = distiller(name, task=task).eval()
    rows = batch(8, 4, task)
    parts = [made(Batch(*(value[rank::2] for value in vars(rows).values()))).loss for rank in range(2)]
    apart = abs(float((sum(parts) / 2 - made(rows).loss).detach()))
    assert (apart > 1e-3) == (PARTS in made.exceptions)
    assert apart < 2e-6 or PARTS in made.exceptions


@pytest.mark.parametrize("name", [name for name, task in PAIRS if task == "classification"])
def test_each_loss_of_two_classes_teaches_the_student(name: str) -> None:
    method, two = distill.method(name), CLASSES[:2]
    teachers = [Tiny(2, two)] if method.needs_teacher else []
    made, rows = method(Classification(two), Tiny(1, two), teachers, method.Config()).eval(), batch()
    step = made(replace(rows, target=rows.target % 2))
    students = [*made.student.parameters()]
    silent = {
        part
        for part, value in step.parts.items()
        for found in [torch.autograd.grad(value, students, retain_graph=True, allow_unused=True)]
        if sum(float(each.abs().sum()) for each in found if each is not None) < 1e-2
    }
    own = silent - {"peers", "teacher"}  # by these the teachers learn
    assert bool(own) == (TWO_CLASSES in method.exceptions), own
    assert (own == step.parts.keys() - {"task"}) == (method.fewest_classes > 2 or name == "none")


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_batch_of_one_gives_a_finite_loss(name: str, task: str) -> None:
    may(name, BATCH_OF_ONE)
    made = distiller(name, task=task).eval()
    step = made(batch(1, 0, task))
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert all(torch.isfinite(p.grad).all() for p in made.student.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_batch_without_labels_gives_a_finite_loss(name: str, task: str) -> None:
    made = distiller(name, task=task).eval()
    step = made(batch(4, 4, task))
    assert torch.isfinite(step.loss)
    assert float(step.parts["task"].detach()) == 0


@pytest.mark.parametrize(("name", "task"), WITH_TEACHER)
def test_methods_are_zero_where_both_agree(name: str, task: str) -> None:
    may(name, ZERO)
    made = distiller(name, Tiny(2, TASKS[task].classes), task).eval()
    parts = made(batch(task=task)).parts
    assert len(parts) > 1
    assert all(abs(float(value.detach())) < 1e-6 for part, value in parts.items() if part != "task")


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_each_part_has_a_named_weight(name: str, task: str) -> None:
    made = distiller(name, task=task).eval()
    step = made(batch(task=task))
    total = sum(getattr(made.config, f"weight_{part}") * float(value.detach()) for part, value in step.parts.items())
    assert float(step.loss.detach()) == pytest.approx(total, rel=1e-6)


def test_unlabelled_rows_do_not_enter_the_task_loss() -> None:
    made, rows = distiller("none").eval(), batch()
    other = Batch(**{**vars(rows), "target": torch.where(rows.labelled, rows.target, (rows.target + 1) % 3)})
    assert torch.equal(made(rows).loss, made(other).loss)
    expected = -torch.log_softmax(made(rows).outputs.logits, 1)[torch.arange(4), rows.target[:4]].mean()
    assert float(made(rows).parts["task"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_unlabelled_rows_are_weighed() -> None:
    method, rows = distill.method("kd"), batch()
    parts = {}
    for weight in (0.0, 1.0, 3.0):
        made = method(Classification(CLASSES), Tiny(1), [Tiny(2)], method.Config(weight_unlabelled=weight)).eval()
        parts[weight] = float(made(rows).parts["kd"].detach())
        each = kd_loss(made.student(rows.images).logits, made.teachers[0](rows.images).logits, 2.0).detach()
        weights = torch.tensor([1.0] * 4 + [weight] * 2)
        assert parts[weight] == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-5)
    assert len(set(parts.values())) == 3


def test_several_teachers_are_averaged() -> None:
    method, rows = distill.method("kd"), batch()
    student, teachers = Tiny(1), [Tiny(2), Tiny(3)]
    apart = [
        float(method(Classification(CLASSES), student, [t], method.Config()).eval()(rows).parts["kd"]) for t in teachers
    ]
    both = method(Classification(CLASSES), student, teachers, method.Config()).eval()
    assert float(both(rows).parts["kd"]) == pytest.approx(float(np.mean(apart)), rel=1e-5)


def test_kd_golden_value() -> None:
    """Hinton et al. 2015: T² Σ p log(p / q), worked out here with Python's own arithmetic."""
    student, teacher, t = [1.0, 2.0, 0.5], [0.2, 3.0, -1.0], 4.0
    p = [math.exp(v / t) for v in teacher]
    q = [math.exp(v / t) for v in student]
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    expected = t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert expected == pytest.approx(0.583786, abs=1e-6)
    assert float(kd_loss(torch.tensor([student]), torch.tensor([teacher]), t)) == pytest.approx(expected, rel=1e-5)


def test_kl_points_from_the_teacher_to_the_student() -> None:
    sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert float(softened_kl(unsure, sure, 1.0)) == pytest.approx(math.log(2), abs=0.01)
    assert float(softened_kl(sure, unsure, 1.0)) == pytest.approx(4 - math.log(2), abs=0.01)
