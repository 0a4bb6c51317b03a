"""Gates, balance and importance."""

import math

import pytest
import torch

from moe_distill.losses.router import (
    expert_entropy,
    gate_divergence,
    importance_kl,
    load_balancing_loss,
)

LOGITS = 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n_experts", [2, 4, 64])
def test_r11_balance_is_zero_when_uniform_and_experts_less_one_at_collapse(n_experts: int) -> None:
    uniform = torch.full((n_experts,), 1.0 / n_experts)
    collapsed = torch.eye(n_experts)[0]
    assert float(load_balancing_loss(uniform, uniform)) == pytest.approx(0.0, abs=1e-6)
    assert float(load_balancing_loss(collapsed, collapsed)) == pytest.approx(n_experts - 1)
    between = [
        float(load_balancing_loss(share, share))
        for share in (uniform + part * (collapsed - uniform) for part in (0.0, 0.25, 0.5, 1.0))
    ]
    assert between == sorted(between)
    assert len(set(between)) == 4


def test_r11_balance_pushes_the_gate_away_from_the_busiest_expert() -> None:
    probs, share = torch.full((4,), 0.25, requires_grad=True), torch.tensor([0.7, 0.1, 0.1, 0.1], requires_grad=True)
    load_balancing_loss(share, probs).backward()
    assert share.grad is None, "the share counts choices: a constant"
    assert probs.grad is not None
    assert probs.grad.tolist() == pytest.approx([2.8, 0.4, 0.4, 0.4])


def test_importance_is_zero_when_equal_and_the_kl_otherwise() -> None:
    student, teacher = torch.tensor([0.7, 0.2, 0.1, 0.0]), torch.tensor([0.25, 0.25, 0.4, 0.1])
    assert float(importance_kl(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)
    expected = sum(p * math.log(p / q) for p, q in zip(student.tolist(), teacher.tolist(), strict=True) if p > 0)
    assert float(importance_kl(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(float(importance_kl(teacher, student))), "an expert that the teacher never uses"


def test_divergence_is_the_kl_of_each_position_and_zero_when_equal() -> None:
    other = LOGITS.flip(0)
    divergence = gate_divergence(LOGITS.log_softmax(-1), other.log_softmax(-1))
    for value, mine, theirs in zip(divergence.tolist(), LOGITS.double(), other.double(), strict=True):
        p, q = mine.softmax(-1), theirs.softmax(-1)
        assert value == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    assert gate_divergence(LOGITS.log_softmax(-1), (LOGITS + 3.0).log_softmax(-1)).abs().max() < 1e-5, (
        "a shift of all logits changes no gate"
    )


def test_r11_entropy_from_uniform_to_collapse() -> None:
    assert float(expert_entropy(torch.full((4,), 0.25))) == pytest.approx(math.log(4))
    assert float(expert_entropy(torch.eye(4)[0])) == 0.0
    assert float(expert_entropy(torch.tensor([0.5, 0.5, 0.0, 0.0]))) == pytest.approx(math.log(2))
