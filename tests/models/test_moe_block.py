"""Which MoE blocks are replayed, and that a block which differs anywhere is not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_distill.models.decoder import find_decoder
from moe_distill.models.moe_block import MoeBlock, find_moe_block
from moe_distill.models.self_test import random_windows
from moe_distill.replay.head import HeadDescription
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.replay_error import replay_error
from tests.models.families import make_model


def found(model: PreTrainedModel) -> MoeBlock | str:
    return find_moe_block(model, find_decoder(model))


def block_of(model: PreTrainedModel) -> nn.Module:
    return find_decoder(model).layers[-1].get_submodule("mlp")


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("qwen3_moe", {"score": "softmax", "normalizes": False}),
        ("mixtral", {"score": "softmax", "normalizes": True}),
        (
            "deepseek_v3",
            {"score": "sigmoid", "groups": 2, "kept_groups": 1, "group_score": "two_largest", "scale": 2.5},
        ),
    ],
)
def test_rules_are_found_by_what_the_router_does(family: str, rule: dict[str, object]) -> None:
    block = found(make_model(family, 120))
    assert isinstance(block, MoeBlock)
    assert rule.items() <= block.head.router.model_dump().items()
    assert block.head.router.experts_per_token == 2


def test_norms_of_one_plus_the_weight_are_stored_as_they_work() -> None:
    model = make_model("qwen3_next", 120)
    block = found(model)
    assert isinstance(block, MoeBlock)
    weight = find_decoder(model).layers[-1].get_parameter("post_attention_layernorm.weight")
    torch.testing.assert_close(block.head.tensors["moe_norm"], 1.0 + weight.detach())


def replayed(model: PreTrainedModel) -> HeadDescription:
    """The description of a block whose replay gives the logits of the model's own forward pass."""
    architecture = find_architecture(model)
    assert isinstance(architecture.moe, MoeBlock), architecture.moe
    assert replay_error(model, architecture, random_windows(architecture.decoder, 64, seed=0))[0] <= 1.0
    return architecture.moe.head.description


def test_a_factor_of_what_the_block_adds_is_replayed() -> None:
    assert replayed(make_model("granitemoe", 120, residual_multiplier=0.22)).output_scale == 0.22


@pytest.mark.parametrize("scale", [0.015625, 1.0, 2.826])
def test_the_scale_of_the_weights_is_found_without_its_key(scale: float) -> None:
    """Families call it differently, and some take it from elsewhere."""
    model = make_model("deepseek_v3", 120, routed_scaling_factor=scale)
    del model.config.routed_scaling_factor
    router = replayed(model).router
    assert router is not None
    assert router.scale == scale


def test_an_activation_other_than_the_usual_one_is_replayed() -> None:
    assert replayed(make_model("qwen3_moe", 120, hidden_act="gelu")).activation == "gelu"


def test_the_limits_of_activations_are_replayed() -> None:
    """As released they are 7, which no activation of a small model reaches."""
    model = make_model("gpt_oss", 120)
    vars(block_of(model).get_submodule("experts"))["limit"] = 0.5
    assert replayed(model).activation_limit == 0.5


def test_each_norm_has_its_own_epsilon() -> None:
    model = make_model("qwen3_moe", 120)
    norm = find_decoder(model).layers[-1].get_submodule("post_attention_layernorm")
    vars(norm)["variance_epsilon"] = 1e-2
    description = replayed(model)
    assert (description.moe_norm_epsilon, description.final_norm_epsilon) == (1e-2, 1e-6)


def change_block_output(model: PreTrainedModel) -> None:
    block_of(model).register_forward_hook(lambda _module, _arguments, output: 1.01 * output)


def change_router(model: PreTrainedModel) -> None:
    gate = block_of(model).get_submodule("gate")

    def swapped(_module: nn.Module, _arguments: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output[0], output[1] ** 2, output[2]

    gate.register_forward_hook(swapped)


def change_activation(model: PreTrainedModel) -> None:
    block_of(model).get_submodule("experts").act_fn = nn.Softplus()


def change_final_norm(model: PreTrainedModel) -> None:
    model.get_decoder().norm = nn.LayerNorm(32)


def add_a_part(model: PreTrainedModel) -> None:
    block_of(model).add_module("adapter", nn.Linear(32, 32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_block_output, "replayed, its output differs by"),
        (change_router, "unknown rule"),
        (change_activation, "the activation of its experts is unknown"),
        (change_final_norm, "a norm around it is no RMS norm"),
        (add_a_part, "what its part `adapter` does is unknown"),
    ],
)
def test_a_block_that_differs_is_not_replayed(change: Callable[[PreTrainedModel], None], reason: str) -> None:
    model = make_model("qwen3_moe", 120)
    assert isinstance(found(model), MoeBlock)
    change(model)
    said = found(model)
    assert isinstance(said, str)
    assert reason in said


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_a_block_that_adds_little_is_replayed_and_compared_as_strictly(scale: float) -> None:
    """So little that the residual stream, of about 1, would round it off."""
    model = make_model("qwen3_moe", 120)
    with torch.no_grad():
        block_of(model).get_parameter("experts.down_proj").mul_(scale)
    assert isinstance(found(model), MoeBlock)
    change_block_output(model)
    assert "replayed, its output differs by" in str(found(model))


def test_dense_last_layers_and_dense_models_have_other_reasons() -> None:
    assert found(make_model("llama", 120)) == "the teacher has no experts"
    assert found(make_model("jamba", 120)) == "the teacher's last layer is dense"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision_has_the_same_block(dtype: torch.dtype) -> None:
    for family in ("qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe"):
        model = make_model(family, 120)
        exact = found(model)
        nn.Module.to(model, dtype)
        rounded = found(model)
        assert isinstance(exact, MoeBlock)
        assert isinstance(rounded, MoeBlock), rounded
        assert exact.head.description == rounded.head.description
        assert rounded.head.tensors["gate_up"].dtype is dtype


@pytest.mark.parametrize("groups", [3, 4])
def test_a_number_of_groups_that_the_router_does_not_use_is_no_matter(groups: int) -> None:
    """Three do not divide four experts, and four leave one expert in each."""
    model = make_model("qwen2_moe", 120)
    model.config.n_group, model.config.topk_group = groups, 1
    block = found(model)
    assert isinstance(block, MoeBlock)
    assert block.head.router.groups == 1


def test_a_norm_that_reads_more_than_states_is_no_traceback() -> None:
    model = make_model("qwen3_moe", 120)
    norm = find_decoder(model).layers[-1].get_submodule("post_attention_layernorm")

    def alone(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].ndim == 2:
            raise TypeError("a gate is missing")

    norm.register_forward_pre_hook(alone)
    assert found(model) == "the teacher's last MoE block is of an unknown form: a norm around it is no RMS norm"
