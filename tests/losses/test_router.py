"""Gates, balance and importance."""

import math

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from moe_distill.losses.router import (
    expert_entropy,
    gate_divergence,
    importance_kl,
    load_balancing_loss,
    mixture,
    router_auxiliary_loss,
)

LOGITS = 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n_experts", [1, 2, 3, 4])
def test_mixture_is_the_normalised_largest_probabilities(temperature: float, n_experts: int) -> None:
    mixed = mixture(LOGITS, temperature, n_experts, normalizes=True)
    assert mixed.sum(-1).tolist() == pytest.approx([1.0] * 9, abs=1e-6)
    for row, logits in zip(mixed.tolist(), LOGITS.tolist(), strict=True):
        chosen = sorted(range(4), key=lambda expert: -logits[expert])[:n_experts]
        powers = {expert: math.exp(logits[expert] / temperature) for expert in chosen}
        assert row == pytest.approx([powers.get(expert, 0.0) / sum(powers.values()) for expert in range(4)], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_a_mixture_that_is_not_normalised_keeps_the_probabilities(temperature: float, n_experts: int) -> None:
    mixed = mixture(LOGITS, temperature, n_experts, normalizes=False)
    probs = (LOGITS / temperature).softmax(-1)
    least = probs.sort(-1, descending=True).values[:, n_experts - 1, None]
    torch.testing.assert_close(mixed, probs * (probs >= least))


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_r28_the_gate_learns_whatever_the_number_of_experts(n_experts: int, normalizes: bool) -> None:
    logits = LOGITS.clone().requires_grad_()
    outputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    (mixture(logits, 1.0, n_experts, normalizes) * outputs).sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().amax(-1) > 1e-4).all()


def test_one_expert_has_the_softmax_gradient() -> None:
    outputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    routed, plain = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    (mixture(routed, 2.0, 1, normalizes=True) * outputs).sum().backward()
    ((plain / 2.0).softmax(-1) * outputs).sum().backward()
    torch.testing.assert_close(routed.grad, plain.grad)


def test_mixture_of_no_positions() -> None:
    assert mixture(torch.zeros(0, 4), 1.0, 2, normalizes=True).shape == (0, 4)


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
    divergence = gate_divergence(LOGITS, other)
    for value, mine, theirs in zip(divergence.tolist(), LOGITS.double(), other.double(), strict=True):
        p, q = mine.softmax(-1), theirs.softmax(-1)
        assert value == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    assert gate_divergence(LOGITS, LOGITS + 3.0).abs().max() < 1e-5, "a shift of all logits changes no gate"


def test_r11_entropy_from_uniform_to_collapse() -> None:
    assert float(expert_entropy(torch.full((4,), 0.25))) == pytest.approx(math.log(4))
    assert float(expert_entropy(torch.eye(4)[0])) == 0.0
    assert float(expert_entropy(torch.tensor([0.5, 0.5, 0.0, 0.0]))) == pytest.approx(math.log(2))


def test_balancing_loss_sees_layers_whose_imbalances_cancel() -> None:
    one, other = torch.tensor([[9.0, 9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    assert router_auxiliary_loss([one, other], 2) == pytest.approx(4.0, rel=1e-3)
    assert router_auxiliary_loss([torch.cat([one, other])], 2) == pytest.approx(2.0, rel=1e-3)
    pooled = load_balancing_loss_func((one, other), num_experts=4, top_k=2)  # type: ignore[arg-type]  # "a tuple of one"
    assert pooled == pytest.approx(2.0, rel=1e-3)  # what transformers would train with
    logits_TE = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert router_auxiliary_loss([logits_TE], 3) == pytest.approx(
        float(load_balancing_loss_func((logits_TE,), num_experts=4, top_k=3))
    )
