"""Tiny models of many families with random weights; heads, norms, biases and routers are not at their defaults.

`python -m tests.models.families` writes the tables of docs/families.md and README.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moe_distill.errors import DataError
from moe_distill.models.moe_block import has_experts
from moe_distill.models.self_test import random_windows, self_test
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.replay_error import replay_error
from tests.params import ROOT

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "initializer_range": 0.1,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
LATENT_ATTENTION: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
HEADS = {"logits_scaling": 2.0, "logit_scale": 0.5, "final_logit_softcapping": 3.0}  # else 1 or far above the logits
OF_FAMILY: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "deepseek_v2": {"topk_method": "group_limited_greedy"},
    "qwen3_next": {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "full_attention_interval": 3},
}


def make_model(family: str, vocabulary: int, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of a family of transformers in fp32, small in every size that its configuration knows."""
    known = _keys(family)
    settings = SIZES | EXPERTS | HEADS | {"vocab_size": vocabulary} | OF_FAMILY.get(family, {})
    if "kv_lora_rank" in known:
        settings |= LATENT_ATTENTION | {"num_key_value_heads": 4}
        settings.pop("head_dim")
    kept = {key: value for key, value in settings.items() if key in known} | changes
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **kept), dtype=torch.float32
    ).eval()
    _spread(model, seed)
    return model


def _keys(family: str) -> set[str]:
    """What a family's configuration calls its keys, and what transformers calls them."""
    config = AutoConfig.for_model(family)
    return set(vars(config)) | set(config.attribute_map)


@torch.no_grad()
def _spread(model: PreTrainedModel, seed: int) -> None:
    """Weights as those of a trained model: norms and biases off their defaults, routers that choose, wide logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        elif "gate.weight" in name or "router" in name:
            weight.copy_(0.6 * torch.randn(weight.shape, generator=generator))
        elif "expert" in name:
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator))
    model.get_output_embeddings().weight.mul_(4.0)


NAMES = {
    "afmoe": "AFMoE",
    "apertus": "Apertus",
    "arcee": "Arcee",
    "bert": "BERT (encoder)",
    "bloom": "BLOOM",
    "cohere": "Cohere",
    "cohere2": "Cohere 2",
    "cohere2_moe": "Cohere 2 MoE",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3",
    "deepseek_v32": "DeepSeek-V3.2",
    "deepseek_v4": "DeepSeek-V4",
    "dots1": "dots.llm1",
    "electra": "ELECTRA (encoder)",
    "ernie4_5": "ERNIE 4.5",
    "ernie4_5_moe": "ERNIE 4.5 MoE",
    "exaone4": "EXAONE 4",
    "exaone_moe": "EXAONE MoE",
    "falcon": "Falcon",
    "flex_olmo": "FlexOlmo",
    "flint": "Flint",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "glm": "GLM",
    "glm4": "GLM-4",
    "glm4_moe": "GLM-4 MoE",
    "glm4_moe_lite": "GLM-4 MoE Lite",
    "glm_moe_dsa": "GLM MoE DSA",
    "gpt2": "GPT-2",
    "gpt_bigcode": "GPT BigCode",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_oss": "gpt-oss",
    "gptj": "GPT-J",
    "granite": "Granite",
    "granitemoe": "Granite MoE",
    "granitemoeshared": "Granite MoE Shared",
    "helium": "Helium",
    "hunyuan_v1_dense": "Hunyuan",
    "hunyuan_v1_moe": "Hunyuan MoE",
    "hy_v3": "HY-V3",
    "hyperclovax": "HyperCLOVA X",
    "jamba": "Jamba",
    "jetmoe": "JetMoE",
    "laguna": "Laguna",
    "lfm2": "LFM2",
    "llama": "Llama, SmolLM",
    "llama4_text": "Llama 4",
    "mamba": "Mamba",
    "mellum": "Mellum",
    "mimo_v2_flash": "MiMo-V2-Flash",
    "minimax": "MiniMax",
    "minimax_m2": "MiniMax-M2",
    "ministral": "Ministral",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "mpt": "MPT",
    "nanochat": "nanochat",
    "nemotron": "Nemotron",
    "nemotron_h": "Nemotron-H",
    "olmo": "OLMo",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "olmoe": "OLMoE",
    "opt": "OPT",
    "persimmon": "Persimmon",
    "phi": "Phi",
    "phi3": "Phi-3",
    "phimoe": "Phi-3.5 MoE",
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2 MoE",
    "qwen3": "Qwen3",
    "qwen3_5_moe_text": "Qwen3.5 MoE",
    "qwen3_5_text": "Qwen3.5",
    "qwen3_moe": "Qwen3 MoE",
    "qwen3_next": "Qwen3-Next",
    "rwkv": "RWKV",
    "seed_oss": "Seed-OSS",
    "smollm3": "SmolLM3",
    "solar_open": "Solar Open",
    "stablelm": "StableLM",
    "starcoder2": "StarCoder2",
    "vaultgemma": "VaultGemma",
    "xglm": "XGLM",
}
WINDOW, VOCABULARY = 64, 120


@dataclass(frozen=True)
class Verdict:
    """What the pipeline's self-test says of a family."""

    refused: str | None  # as teacher and as student alike
    replay: str  # "yes", or why not

    def row(self, family: str) -> str:
        """A line of the table."""
        if self.refused is not None:
            return f"| {NAMES[family]} | `{family}` | no: {self.refused} | no | |"
        return f"| {NAMES[family]} | `{family}` | yes | yes | {self.replay} |"


@cache
def verdict(family: str) -> Verdict:
    """Test a random model of a family."""
    model = make_model(family, VOCABULARY)
    try:
        self_test(model, "teacher", WINDOW, seed=0)
    except DataError as error:
        reasons = {
            "looks ahead": "it looks ahead",
            "between its states": "its head is more than a matrix",
            "of another size inside": "its states are wider between its layers",
        }
        return Verdict(next(reason for part, reason in reasons.items() if part in str(error)), "")
    architecture = find_architecture(model)
    if not isinstance(architecture.moe, str):
        excess, gate_error = replay_error(model, architecture, random_windows(architecture.decoder, WINDOW, seed=0))
        assert excess <= 1.0
        assert gate_error <= 1e-3
        return Verdict(None, "yes")
    reason = architecture.moe.split(": ")[-1].removeprefix("the teacher's ")
    return Verdict(None, f"no: {reason}" if has_experts(model) else "dense")


def short_table() -> str:
    """The table of README.md: the same, by groups."""
    groups: dict[str, list[str]] = {"yes": [], "off": [], "dense": [], "refused": []}
    for family in sorted(NAMES):
        found = verdict(family)
        kind = "refused" if found.refused else found.replay if found.replay in groups else "off"
        groups[kind].append(f"`{family}`")
    rows = {
        "yes": "| yes, yes, yes |",
        "off": "| yes, yes, no: the router is off |",
        "dense": "| yes, yes, dense |",
        "refused": "| no, no, no |",
    }
    lines = [f"| {', '.join(groups[kind])} {told}" for kind, told in rows.items()]
    return "\n".join(["| `model_type` | as teacher, as student, experts replayed |", "|---|---|", *lines])


def table() -> str:
    """The table of docs/families.md."""
    rows = [verdict(family).row(family) for family in sorted(NAMES, key=lambda name: NAMES[name].lower())]
    return "\n".join(["| family | `model_type` | teacher | student | replay |", "|---|---|---|---|---|", *rows])


def pages() -> Iterator[tuple[Path, str]]:
    """docs/families.md and README.md, each with the text that it should have."""
    for name, made in (("docs/families.md", table()), ("README.md", short_table())):
        head = re.escape(made.partition("\n")[0])
        old = (ROOT / name).read_text(encoding="utf-8")
        found = re.search(rf"^{head}(\n\|.*)*", old, re.MULTILINE)
        assert found is not None, f"{name} has no such table"
        yield ROOT / name, old[: found.start()] + made + old[found.end() :]


if __name__ == "__main__":
    for page, text in pages():
        page.write_text(text, encoding="utf-8")
