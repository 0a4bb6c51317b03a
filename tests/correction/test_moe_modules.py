"""Experts and routers are found by what they are made of."""

import math

import pytest
import torch
from torch import nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from moe_distill.correction.moe_modules import effective_experts, find_moe_modules, is_below
from tests.teacher.conftest import SIZES, make_teacher


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe"])
def test_every_layer_has_its_experts_and_its_router(family: str) -> None:
    found = find_moe_modules(make_teacher(family))
    layers = [f"model.layers.{number}.mlp" for number in range(3)]
    assert found.experts == {f"{layer}.experts": 4 for layer in layers}
    assert found.routers == tuple(f"{layer}.gate" for layer in layers)
    assert found.fused == tuple(f"{layer}.experts.{name}" for layer in layers for name in ("gate_up_proj", "down_proj"))


def test_a_dense_model_has_none() -> None:
    found = find_moe_modules(make_teacher("dense"))
    assert not found.experts
    assert not found.routers


def test_the_gate_of_a_shared_expert_is_a_router_and_the_shared_expert_is_none_of_the_experts() -> None:
    config = Qwen2MoeConfig(
        **SIZES,
        intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    )
    found = find_moe_modules(Qwen2MoeForCausalLM(config))
    assert set(found.experts) == {f"model.layers.{number}.mlp.experts" for number in range(3)}
    assert set(found.routers) == {
        f"model.layers.{number}.mlp.{name}" for number in range(3) for name in ("gate", "shared_expert_gate")
    }


def test_a_list_of_experts_and_a_convolution() -> None:
    block = nn.Module()
    block.gate = nn.Linear(8, 3)
    block.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 8)) for _ in range(3))
    model = nn.ModuleDict({"mixer": nn.Conv1d(8, 8, 4), "block": block})
    found = find_moe_modules(model)
    assert found.experts == {"block.experts": 3}
    assert found.fused == ()
    assert found.routers == ("block.gate",)


def test_a_name_that_begins_alike_is_no_part() -> None:
    assert is_below("a.experts", "a.experts")
    assert is_below("a.experts.0.up", "a.experts")
    assert not is_below("a.experts2", "a.experts")
    assert not is_below("a", "a.experts")


def test_effective_experts() -> None:
    assert effective_experts([0.25] * 4) == pytest.approx(4.0)
    assert effective_experts([1.0, 0.0, 0.0]) == 1.0
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert effective_experts(torch.tensor([0.7, 0.3, 0.0]).tolist()) == pytest.approx(math.exp(entropy), rel=1e-6)
