"""Random small teachers of three families, and what the running teacher says at every position."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moe_distill.replay.block import TeacherHead
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.forward import forward

FAMILIES = ("qwen3_moe", "mixtral", "olmoe")
VOCABULARY = 300


def make_teacher(family: str, seed: int) -> PreTrainedModel:
    """Sizes drawn from the seed; Qwen3 of an even seed as Huihui-MoE-1B: one expert a token, its weight normalised.

    Weights are larger than at initialisation, so that experts differ and log-probabilities reach -20.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    heads, num_experts = draw(2, 4), draw(3, 4, 8)
    per_token = 1 if family == "qwen3_moe" and seed % 2 == 0 else draw(1, 2, 3)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": heads * draw(8, 16),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(1, heads),
        "num_hidden_layers": draw(1, 2, 3),
        "max_position_embeddings": 256,
        "num_experts_per_tok": per_token,
        "initializer_range": 0.1,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    expert_size = draw(16, 24)
    torch.manual_seed(seed)
    model = _of_family(family, sizes, num_experts, expert_size, normalizes_topk=seed % 2 == 0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5.0)
    model.eval()
    return model


def _of_family(
    family: str, sizes: dict[str, Any], num_experts: int, expert_size: int, normalizes_topk: bool
) -> PreTrainedModel:
    match family:
        case "qwen3_moe":
            sizes = sizes | {"intermediate_size": 48, "moe_intermediate_size": expert_size, "head_dim": 8}
            config = Qwen3MoeConfig(**sizes, num_experts=num_experts, norm_topk_prob=normalizes_topk)
            return Qwen3MoeForCausalLM(config)
        case "mixtral":
            return MixtralForCausalLM(
                MixtralConfig(**sizes, num_local_experts=num_experts, intermediate_size=expert_size)
            )
        case _:
            return OlmoeForCausalLM(OlmoeConfig(**sizes, num_experts=num_experts, intermediate_size=expert_size))


@dataclass(frozen=True)
class Said:
    """Legend: N positions, D hidden size, E experts, V vocabulary."""

    moe_input_ND: Tensor
    router_logits_NE: Tensor
    residual_ND: Tensor  # after the last layer
    logprobs_NV: Tensor  # fp32 head


def say(model: PreTrainedModel) -> Said:
    """Run 4 random windows of 64 tokens."""
    ids = torch.randint(VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(1))
    architecture = find_architecture(model)
    states, _ = forward(model, architecture, ids, [len(architecture.decoder.layers)])
    assert states.moe_input_BLT is not None
    assert states.router_logits_BLE is not None
    final_ND = states.final_BLT.flatten(0, 1)
    return Said(
        states.moe_input_BLT.flatten(0, 1),
        states.router_logits_BLE.flatten(0, 1),
        states.hidden_BLST.flatten(0, 1)[:, 0],
        architecture.decoder.head.to_dtype(torch.float32).logits(final_ND).log_softmax(-1),
    )


def certain(gate_NE: Tensor, head: TeacherHead) -> Tensor:
    """Positions where no two experts tie for the last place, which rounding to fp16 could swap, bool [N]."""
    ordered_NE, k = gate_NE.sort(-1, descending=True).values, head.router.experts_per_token
    if k == head.num_experts:
        return torch.ones(len(gate_NE), dtype=torch.bool)
    certain_N = ordered_NE[:, k - 1] - ordered_NE[:, k] > 5e-3
    assert certain_N.float().mean() > 0.95
    return certain_N
