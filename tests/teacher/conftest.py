"""Random small teachers of several families, and windows for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moe_distill.shards.window_store import TEACHER_FIELDS, TEACHER_WINDOWS, WindowStore
from moe_distill.shards.writer import ShardWriter

VOCABULARY = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = ("qwen3_moe", "qwen3_moe_top1", "mixtral", "olmoe", "dense")


def make_teacher(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = _of_family(family)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at initialisation: experts and logits that differ
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    model.eval()
    return model


def _of_family(family: str) -> PreTrainedModel:
    moe = SIZES | {"num_experts": 4, "num_experts_per_tok": 2}
    qwen3 = moe | {"moe_intermediate_size": 24, "intermediate_size": 48, "head_dim": 8}
    match family:
        case "qwen3_moe":
            return Qwen3MoeForCausalLM(Qwen3MoeConfig(**qwen3, norm_topk_prob=False))
        case "qwen3_moe_top1":  # as Huihui-MoE-1B: 3 experts, 1 per token, normalised
            top1 = qwen3 | {"num_experts": 3, "num_experts_per_tok": 1}
            return Qwen3MoeForCausalLM(Qwen3MoeConfig(**top1, norm_topk_prob=True))
        case "mixtral":
            config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, intermediate_size=24)
            return MixtralForCausalLM(config)
        case "olmoe":
            return OlmoeForCausalLM(OlmoeConfig(**moe, intermediate_size=24))
        case _:
            return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48))


@pytest.fixture
def windows(tmp_path: Path) -> WindowStore:
    """Twelve windows of 70 to 92 tokens."""
    generator = torch.Generator().manual_seed(1)
    writer = ShardWriter(tmp_path / "windows", TEACHER_FIELDS, "tokens", 400)
    for number in range(12):
        count = 70 + 2 * number
        writer.append(
            {
                "token_ids": torch.randint(1, VOCABULARY, (count,), generator=generator, dtype=torch.int32),
                "token_counts": torch.tensor([count], dtype=torch.int32),
                "documents": torch.tensor([number], dtype=torch.int32),
                "byte_starts": torch.tensor([0]),
                "byte_ends": torch.tensor([3 * count]),
                "token_bytes": torch.full((0 if number else VOCABULARY,), 3, dtype=torch.int32),
            },
        )
    writer.finish(TEACHER_WINDOWS, "w", {"prefix_id": 0, "max_length": 100, "tokenizer": "t"})
    return WindowStore(tmp_path / "windows", TEACHER_WINDOWS)
