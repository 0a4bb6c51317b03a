"""Adapters: where they stand, that they begin as nothing, and that merging them changes no logit."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moe_distill.correction.adapters import adapter_parameters, attach_adapters, merge_adapters
from moe_distill.errors import ConfigError, DataError
from tests.correction.conftest import PARAMS
from tests.models.families import make_model
from tests.teacher.conftest import FAMILIES, VOCABULARY, make_teacher

IDS = torch.randint(1, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(2))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_adapters_give_the_logits_of_unmerged_ones(family: str) -> None:
    model = make_teacher(family)
    names, before = [name for name, _ in model.named_parameters()], logits(model)
    adapted = attach_adapters(model, PARAMS, seed=0)
    assert torch.equal(logits(model), before)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter_parameters(adapted).items():
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    unmerged = logits(model)
    assert (unmerged - before).abs().max() > 0.1
    merged = merge_adapters(adapted)
    torch.testing.assert_close(logits(merged), unmerged, atol=1e-4, rtol=1e-4)
    assert [name for name, _ in merged.named_parameters()] == names


def adapted_layers(**changes: object) -> set[str]:
    """The parts of the first decoder layer of a Qwen3-MoE that have adapters."""
    params = PARAMS.model_copy(update=changes)
    names = adapter_parameters(attach_adapters(make_teacher("qwen3_moe"), params, seed=0))
    inside = {name.split(".layers.0.")[1] for name in names if ".layers.0." in name}
    return {name.split(".lora_")[0].replace(".base_layer", "") for name in inside}


ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}


def test_experts_and_router_are_frozen_by_choice() -> None:
    assert adapted_layers(train_experts=False, train_router=False) == ATTENTION
    assert adapted_layers(train_experts=True, train_router=False) == ATTENTION | {"mlp.experts"}
    assert adapted_layers(train_experts=False, train_router=True) == ATTENTION | {"mlp.gate"}


@pytest.mark.parametrize("family", ["qwen3_moe", "dense"])
def test_all_but_the_adapters_is_frozen_and_they_are_fp32_on_a_teacher_in_fp16(family: str) -> None:
    model = make_teacher(family).half()
    adapters = adapter_parameters(attach_adapters(model, PARAMS, seed=0))
    assert adapters
    assert all("lora_" in name and each.dtype is torch.float32 for name, each in adapters.items())
    frozen = {name: each for name, each in model.named_parameters() if not each.requires_grad}
    assert not any("lora_" in name for name in frozen)
    assert all(each.dtype is torch.float16 for each in frozen.values())
    assert not any("lm_head" in name or "embed" in name for name in adapters)


def test_adapters_follow_the_seed_and_leave_the_process_random_state() -> None:
    models = [make_teacher("dense") for _ in range(3)]
    before = torch.get_rng_state()
    adapted = [attach_adapters(model, PARAMS, seed) for model, seed in zip(models, (3, 3, 4), strict=True)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = map(adapter_parameters, adapted)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class Unadaptable(nn.Module):
    config = SimpleNamespace(model_type="odd")

    def get_output_embeddings(self) -> None:
        return None


def test_a_model_without_linear_layers_is_refused() -> None:
    model = cast(PreTrainedModel, cast(Any, Unadaptable()))
    with pytest.raises(DataError, match=r"odd model has no linear layer.*teacher_correction: null"):
        attach_adapters(model, PARAMS, seed=0)


@pytest.mark.parametrize("family", ["llama4_text", "phimoe", "jetmoe"])
def test_a_router_that_returns_more_than_logits_is_tuned(family: str) -> None:
    adapted = attach_adapters(make_model(family, 120), PARAMS, seed=0)
    assert adapted(input_ids=torch.arange(12)[None], use_cache=False).logits.isfinite().all()


def test_a_router_that_adapters_break_is_refused_in_one_line() -> None:
    said = r"a ernie4_5_moe teacher cannot be tuned with these adapters; .*; set `train_router` and"
    with pytest.raises(ConfigError, match=said):
        attach_adapters(make_model("ernie4_5_moe", 120), PARAMS, seed=0)
    without = attach_adapters(
        make_model("ernie4_5_moe", 120), PARAMS.model_copy(update={"train_router": False}), seed=0
    )
    assert without(input_ids=torch.arange(12)[None], use_cache=False).logits.isfinite().all()
