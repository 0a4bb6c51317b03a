"""Sizes of families that name them differently, against the models that transformers makes of the same config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from moe_distill.errors import ConfigError, DataError
from moe_distill.models.config_checks import ModelSizes, check_capture, check_windows, read_sizes

SIZES: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 64}
DEEPSEEK = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK |= {"moe_intermediate_size": 8, "n_routed_experts": 6, "n_group": 1, "topk_group": 1}
FAMILIES: list[tuple[str, dict[str, Any], int]] = [  # settings, experts of the last layer
    ("llama", {}, 0),
    ("gpt2", {"vocab_size": 90, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}, 0),
    ("qwen3_moe", {"num_experts": 5, "moe_intermediate_size": 8}, 5),
    ("qwen2_moe", {"num_experts": 5, "moe_intermediate_size": 8, "mlp_only_layers": [2]}, 0),
    ("qwen2_moe", {"num_experts": 5, "moe_intermediate_size": 8, "decoder_sparse_step": 2}, 0),
    ("qwen2_moe", {"num_experts": 5, "moe_intermediate_size": 8, "decoder_sparse_step": 3}, 5),
    ("mixtral", {"num_local_experts": 4, "num_key_value_heads": 2}, 4),
    ("deepseek_v3", DEEPSEEK | {"first_k_dense_replace": 1}, 6),
    ("glm4_moe", {"n_routed_experts": 6, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1}, 6),
]


def write(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("family", "settings", "experts"), FAMILIES)
def test_sizes_are_those_of_the_model(tmp_path: Path, family: str, settings: dict[str, Any], experts: int) -> None:
    config = AutoConfig.for_model(family, **(settings if family == "gpt2" else SIZES | settings))
    config.save_pretrained(tmp_path)
    sizes = read_sizes(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    rows, hidden_size = model.get_output_embeddings().weight.shape
    assert sizes == ModelSizes(family, rows, hidden_size, 3, 64, experts)
    last = [name for name, _ in model.named_modules() if ".2." in name and name.endswith(".experts")]
    assert bool(last) == bool(experts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "cannot be used"),
        ({}, "cannot be used"),
        ({"model_type": ["llama"]}, "cannot be used"),
        ({"model_type": "no_such"}, "no_such"),
        ({"model_type": "llama", "num_hidden_layers": "x"}, "num_hidden_layers"),
        ({"model_type": "t5"}, "a t5 model is no causal language model"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_in_one_line(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_sizes(write(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


def sizes() -> ModelSizes:
    return ModelSizes("llama", vocabulary=90, hidden_size=32, layers=3, positions=64, experts=0)


def test_windows_longer_than_the_positions_are_refused() -> None:
    check_windows(64, "llama", "student", 64)
    check_windows(None, "llama", "student", 10**6)
    with pytest.raises(ConfigError, match=r"`windows\.teacher_max_length` is 65, the teacher has 64 positions"):
        check_windows(64, "llama", "teacher", 65)


def test_more_logits_or_layers_than_the_teacher_has_are_refused() -> None:
    check_capture(sizes(), 89, [0, 3])
    with pytest.raises(ConfigError, match=r"`teacher\.k` is 90, the teacher has 90 logits"):
        check_capture(sizes(), 90, [0, 3])
    with pytest.raises(ConfigError, match=r"`teacher\.hidden_layers` names layer 4, the teacher has 3"):
        check_capture(sizes(), 89, [0, 4])
