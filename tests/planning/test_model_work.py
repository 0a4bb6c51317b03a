"""What a model costs, against operations that torch counts one by one."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from moe_distill.planning.model_work import body_flops, count_work, forward_flops, training_flops

WINDOWS, LENGTH = 2, 24
LLAMA = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"intermediate_size": 96, "tie_word_embeddings": True},
    "qwen3_moe": LLAMA
    | {"head_dim": 16, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 7},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64},
}


def config(family: str) -> PreTrainedConfig:
    return AutoConfig.for_model(family, vocab_size=90, **FAMILIES[family])


def counted(family: str, backward: bool, layers_twice: bool = False) -> float:
    """Operations of a token, by torch's own counter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(family), attn_implementation="eager")
    if family == "qwen3_moe":
        model.set_experts_implementation("eager")
    if layers_twice:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.randint(90, (WINDOWS, LENGTH)), use_cache=False).logits
        if backward:
            logits.sum().backward()
    return float(counter.get_total_flops()) / WINDOWS / LENGTH


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_is_what_torch_counts(family: str) -> None:
    assert forward_flops(count_work(config(family)), LENGTH) == pytest.approx(counted(family, False), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_is_what_torch_counts(family: str) -> None:
    expected = counted(family, backward=True)
    assert training_flops(count_work(config(family)), LENGTH) == pytest.approx(expected, rel=0.02)


def test_layers_computed_twice_cost_a_forward_pass_of_them() -> None:
    expected = counted("llama", backward=True, layers_twice=True)
    said = training_flops(count_work(config("llama")), LENGTH, layers_twice=True)
    assert expected <= said <= 1.06 * expected, "torch ends a layer's second time before its last product"


@pytest.mark.parametrize(
    ("family", "settings"), [("mamba", {"state_size": 4}), ("rwkv", {"attention_hidden_size": 48})]
)
def test_a_model_without_attention_costs_the_same_in_every_window(family: str, settings: dict[str, int]) -> None:
    work = count_work(AutoConfig.for_model(family, vocab_size=90, hidden_size=48, num_hidden_layers=3, **settings))
    assert (work.heads, work.layers, work.head) == (0, 3, 90 * 48)
    assert body_flops(work, 8) == body_flops(work, 800) == 2 * work.body > 0


def test_sizes_by_hand() -> None:
    work = count_work(config("qwen3_moe"))
    attention = 48 * (64 + 32 + 32 + 64)
    expert = 3 * 48 * 32
    assert work.body == 3 * (attention + 5 * 48 + 2 * expert)
    norms = 3 * (2 * 48 + 2 * 16) + 48
    assert work.parameters == 3 * (attention + 5 * 48 + 5 * expert) + norms + 2 * 90 * 48
    assert (work.head, work.rows, work.experts, work.width, work.last_block) == (90 * 48, 90, 5, 64, 5 * expert)
    assert body_flops(work, LENGTH) == 2 * work.body + 4 * LENGTH * 64 * 3


def test_the_real_pair_by_hand() -> None:
    """The sizes that the models have by their cards: 1.12 thousand million parameters, and 134.5 million."""
    student = count_work(
        AutoConfig.for_model(
            "llama",
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )
    assert student.parameters == 134_515_008
    assert student.body + student.head == pytest.approx(student.parameters, rel=1e-3)
