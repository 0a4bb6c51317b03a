"""The binarised divergence of chunk likelihoods, against float64 written out."""

import math

import pytest
import torch

from moe_distill.losses.chunk import chunk_kl


def coin_kl(teacher: float, student: float, tau: float) -> float:
    p, q = math.exp(teacher / tau), math.exp(student / tau)
    return tau * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


@pytest.mark.parametrize("tau", [1.0, 3.0, 100.0])
@pytest.mark.parametrize("teacher", [-0.01, -0.7, -9.0])
@pytest.mark.parametrize("student", [-0.02, -1.5, -20.0])
def test_equals_the_kl_of_two_coins(teacher: float, student: float, tau: float) -> None:
    value = chunk_kl(torch.tensor([student]), torch.tensor([teacher]), tau)
    assert float(value) == pytest.approx(coin_kl(teacher, student, tau), rel=2e-4, abs=1e-6)


def test_is_zero_with_zero_gradient_where_both_agree() -> None:
    student = torch.tensor([-0.3, -5.0, -60.0]).requires_grad_()
    value = chunk_kl(student, student.detach(), 2.0)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("teacher", [0.0, -1e-9, -300.0])
@pytest.mark.parametrize("student", [0.0, -1e-9, -300.0])
def test_stays_finite_at_the_limits_of_probability(teacher: float, student: float) -> None:
    logprobs = torch.tensor([student]).requires_grad_()
    value = chunk_kl(logprobs, torch.tensor([teacher]), 1.0)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logprobs.grad).all()


def test_pulls_towards_the_teacher_from_both_sides() -> None:
    student = torch.tensor([-3.0, -1.0]).requires_grad_()
    chunk_kl(student, torch.tensor([-2.0, -2.0]), 1.0).sum().backward()
    assert student.grad[0] < 0 < student.grad[1]


def test_keeps_its_scale_as_tau_grows() -> None:
    gradients = []
    for tau in (100.0, 1000.0):
        student = torch.tensor([-3.0]).requires_grad_()
        chunk_kl(student, torch.tensor([-2.0]), tau).backward()
        gradients.append(float(student.grad))
    assert gradients[0] == pytest.approx(gradients[1], rel=0.02)
