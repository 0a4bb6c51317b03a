"""From router logits to mixtures of experts."""

import math
from typing import Literal

import pytest
import torch

from moe_distill.replay.router_rule import RouterRule, gate_logprobs, mixture

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


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_one_normalised_expert_has_the_softmax_gradient(scale: float) -> None:
    outputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    routed, plain = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    rule = softmax_rule(True).model_copy(update={"scale": scale})
    (mixture(rule, routed, None, 2.0, 1) * outputs).sum().backward()
    (scale * (plain / 2.0).softmax(-1) * outputs).sum().backward()
    torch.testing.assert_close(routed.grad, plain.grad)


@pytest.mark.parametrize(("normalizes", "n_experts"), [(True, 2), (True, 4), (False, 1), (False, 2)])
def test_weights_that_are_not_constant_have_their_own_gradient(normalizes: bool, n_experts: int) -> None:
    outputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    routed, plain = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    (mixture(softmax_rule(normalizes), routed, None, 1.0, n_experts) * outputs).sum().backward()
    chosen = LOGITS.argsort(-1, descending=True)[:, :n_experts]
    weights = plain.softmax(-1).gather(1, chosen)
    weights = weights / weights.sum(-1, keepdim=True) if normalizes else weights
    (weights * outputs.gather(1, chosen)).sum().backward()
    torch.testing.assert_close(routed.grad, plain.grad)


def test_mixture_of_no_positions() -> None:
    assert mixture(softmax_rule(True), torch.zeros(0, 4), None, 1.0, 2).shape == (0, 4)


def plain_mixture(rule: RouterRule, logits: list[float], bias: list[float], temperature: float, n: int) -> list[float]:
    """One position, number by number."""
    if rule.score == "sigmoid":
        scores = [1.0 / (1.0 + math.exp(-each / temperature)) for each in logits]
    else:
        powers = [math.exp(each / temperature) for each in logits]
        scores = [each / sum(powers) for each in powers]
    ranking = [score + each for score, each in zip(scores, bias, strict=True)]
    size = len(ranking) // rule.groups
    counted = 1 if rule.group_score == "largest" else 2
    of_group = [sum(sorted(ranking[g * size : (g + 1) * size])[-counted:]) for g in range(rule.groups)]
    groups = sorted(range(rule.groups), key=lambda group: -of_group[group])[: rule.kept_groups]
    allowed = [expert for expert in range(len(ranking)) if expert // size in groups]
    chosen = sorted(allowed, key=lambda expert: -ranking[expert])[:n]
    total = sum(scores[expert] for expert in chosen) if rule.normalizes else 1.0
    return [rule.scale * scores[expert] / total if expert in chosen else 0.0 for expert in range(len(scores))]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("groups", [(1, 1), (3, 2), (2, 1)])
@pytest.mark.parametrize("group_score", ["largest", "two_largest"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_rule_is_the_plain_one(
    score: Literal["softmax", "sigmoid"],
    normalizes: bool,
    groups: tuple[int, int],
    group_score: Literal["largest", "two_largest"],
    temperature: float,
) -> None:
    rule = RouterRule(
        score=score,
        experts_per_token=2,
        normalizes=normalizes,
        scale=2.5,
        groups=groups[0],
        kept_groups=groups[1],
        group_score=group_score,
    )
    generator = torch.Generator().manual_seed(0)
    logits, bias = 2 * torch.randn(20, 6, generator=generator), 0.5 * torch.randn(6, generator=generator)
    for n in (1, 2, 6):  # 6: as many as the kept groups hold
        mixed = mixture(rule, logits, bias, temperature, n)
        for row, of_row in zip(mixed.tolist(), logits.tolist(), strict=True):
            assert row == pytest.approx(plain_mixture(rule, of_row, bias.tolist(), temperature, n), abs=1e-6)
    without = mixture(rule, logits, None, temperature, 2)
    assert not torch.allclose(without, mixture(rule, logits, bias, temperature, 2)), "the bias chooses"


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gate_probabilities_sum_to_one(score: Literal["softmax", "sigmoid"]) -> None:
    rule = RouterRule(score=score, experts_per_token=2, normalizes=True)
    probs = gate_logprobs(rule, LOGITS, 2.0).exp()
    assert probs.sum(-1).tolist() == pytest.approx([1.0] * 9, abs=1e-6)
    scores = (LOGITS / 2.0).softmax(-1) if score == "softmax" else (LOGITS / 2.0).sigmoid()
    torch.testing.assert_close(probs, scores / scores.sum(-1, keepdim=True))
