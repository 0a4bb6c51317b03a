"""From router logits to mixtures of experts."""

import math

import pytest
import torch

from moe_distill.replay.router_rule import RouterRule, mixture

LOGITS = 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


def softmax_rule(normalizes: bool) -> RouterRule:
    return RouterRule(score="softmax", experts_per_token=2, normalizes=normalizes)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n_experts", [1, 2, 3, 4])
def test_mixture_is_the_normalised_largest_probabilities(temperature: float, n_experts: int) -> None:
    mixed = mixture(softmax_rule(True), LOGITS, None, temperature, n_experts)
    assert mixed.sum(-1).tolist() == pytest.approx([1.0] * 9, abs=1e-6)
    for row, logits in zip(mixed.tolist(), LOGITS.tolist(), strict=True):
        chosen = sorted(range(4), key=lambda expert: -logits[expert])[:n_experts]
        powers = {expert: math.exp(logits[expert] / temperature) for expert in chosen}
        assert row == pytest.approx([powers.get(expert, 0.0) / sum(powers.values()) for expert in range(4)], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_a_mixture_that_is_not_normalised_keeps_the_probabilities(temperature: float, n_experts: int) -> None:
    mixed = mixture(softmax_rule(False), LOGITS, None, temperature, n_experts)
    probs = (LOGITS / temperature).softmax(-1)
    least = probs.sort(-1, descending=True).values[:, n_experts - 1, None]
    torch.testing.assert_close(mixed, probs * (probs >= least))


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_r28_the_gate_learns_whatever_the_number_of_experts(n_experts: int, normalizes: bool) -> None:
    logits = LOGITS.clone().requires_grad_()
    outputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    (mixture(softmax_rule(normalizes), logits, None, 1.0, n_experts) * outputs).sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().amax(-1) > 1e-4).all()


def test_one_expert_has_the_softmax_gradient() -> None:
    outputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    routed, plain = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    (mixture(softmax_rule(True), routed, None, 2.0, 1) * outputs).sum().backward()
    ((plain / 2.0).softmax(-1) * outputs).sum().backward()
    torch.testing.assert_close(routed.grad, plain.grad)


def test_mixture_of_no_positions() -> None:
    assert mixture(softmax_rule(True), torch.zeros(0, 4), None, 1.0, 2).shape == (0, 4)
