"""Replay against the definition, one position, one expert and one number at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_distill.replay.block import TeacherHead, replayed_logits, replayed_residual
from moe_distill.replay.head import HeadDescription
from moe_distill.replay.router_rule import RouterRule

N, T, E, INNER, VOCABULARY = 7, 6, 3, 4, 11
RULE = RouterRule(score="softmax", experts_per_token=2, normalizes=True)
SHAPES = {
    "moe_norm": (T,),
    "gate": (E, T),
    "gate_bias": (E,),
    "gate_up": (E, 2 * INNER, T),
    "gate_up_bias": (E, 2 * INNER),
    "down": (E, T, INNER),
    "down_bias": (E, T),
    "shared_gate_up": (2 * INNER, T),
    "shared_down": (T, INNER),
    "shared_gate": (1, T),
    "final_norm": (T,),
    "output": (VOCABULARY, T),
    "output_bias": (VOCABULARY,),
}
Row = list[float]


def make_head(**changes: Any) -> TeacherHead:
    """Nothing in it is at its default, and the two norms differ."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    settings: dict[str, Any] = {
        "activation": "gelu",
        "activation_slope": 1.7,
        "output_scale": 0.22,
        "moe_norm_epsilon": 1e-6,
        "final_norm_epsilon": 1e-2,
        "logit_scale": 0.5,
        "logit_softcap": 2.0,
    }
    description = HeadDescription(teacher_fingerprint="", num_experts=E, router=RULE, **(settings | changes))
    return TeacherHead(description, tensors)


def states() -> Tensor:
    """Small ones, which a norm's epsilon is not lost beside."""
    return 0.05 * torch.randn(N, T, generator=torch.Generator().manual_seed(1))


def norm(row: Row, weight: Tensor, epsilon: float) -> Row:
    size = math.sqrt(sum(each**2 for each in row) / len(row) + epsilon)
    return [each / size * factor for each, factor in zip(row, weight.tolist(), strict=True)]


def linear(row: Row, weight: Tensor, bias: Tensor | None) -> Row:
    added = [0.0] * len(weight) if bias is None else bias.tolist()
    products = [sum(one * other for one, other in zip(of_output, row, strict=True)) for of_output in weight.tolist()]
    return [product + each for product, each in zip(products, added, strict=True)]


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def inner(description: HeadDescription, gate: float, up: float) -> float:
    limit = description.activation_limit
    if limit is not None:  # gpt-oss
        gate, up = min(gate, limit), max(-limit, min(up, limit))
        return (up + 1.0) * gate * sigmoid(description.activation_slope * gate)
    if description.activation == "gelu":
        return up * gate * 0.5 * (1.0 + math.erf(gate / math.sqrt(2.0)))
    assert description.activation == "silu"
    return up * gate * sigmoid(gate)


def expert(head: TeacherHead, row: Row, weights: tuple[Tensor, Tensor], biases: tuple[Tensor, Tensor] | None) -> Row:
    both = linear(row, weights[0], None if biases is None else biases[0])
    pairs = zip(both[:INNER], both[INNER:], strict=True)
    values = [inner(head.description, gate, up) for gate, up in pairs]
    return linear(values, weights[1], None if biases is None else biases[1])


def plain_residual(head: TeacherHead, row: Row) -> Row:
    tensors, scale = head.tensors, head.description.output_scale
    read = norm(row, tensors["moe_norm"], head.description.moe_norm_epsilon)
    logits = linear(read, tensors["gate"], tensors["gate_bias"])
    chosen = sorted(range(E), key=lambda number: -logits[number])[:2]
    total = sum(math.exp(logits[number]) for number in chosen)
    open_by = sigmoid(linear(read, tensors["shared_gate"], None)[0])
    shared = expert(head, read, (tensors["shared_gate_up"], tensors["shared_down"]), None)
    after = [each + scale * open_by * added for each, added in zip(row, shared, strict=True)]
    for number in chosen:
        weights = tensors["gate_up"][number], tensors["down"][number]
        output = expert(head, read, weights, (tensors["gate_up_bias"][number], tensors["down_bias"][number]))
        share = scale * math.exp(logits[number]) / total
        after = [each + share * added for each, added in zip(after, output, strict=True)]
    return after


def plain_logits(head: TeacherHead, row: Row) -> Row:
    description, tensors = head.description, head.tensors
    final = norm(row, tensors["final_norm"], description.final_norm_epsilon)
    scaled = [description.logit_scale * each for each in final]
    products = linear(scaled, tensors["output"], tensors["output_bias"])
    cap = description.logit_softcap
    return products if cap is None else [cap * math.tanh(each / cap) for each in products]


@pytest.mark.parametrize(
    "changes", [{}, {"activation": "silu"}, {"activation_limit": 0.5}, {"logit_softcap": None}], ids=str
)
def test_replay_is_the_definition(changes: dict[str, Any]) -> None:
    head, moe_input_NT = make_head(**changes), states()
    residual_NT = replayed_residual(head, moe_input_NT)
    expected = torch.tensor([plain_residual(head, row) for row in moe_input_NT.tolist()])
    torch.testing.assert_close(residual_NT, expected, atol=1e-5, rtol=1e-5)
    ids_NK = torch.arange(VOCABULARY).expand(N, -1)
    for stream_NT in (residual_NT, moe_input_NT):  # as large as the block makes it, and small
        logits_NK = replayed_logits(head, stream_NT, ids_NK)
        expected = torch.tensor([plain_logits(head, row) for row in stream_NT.tolist()])
        torch.testing.assert_close(logits_NK, expected, atol=1e-5, rtol=1e-5)
