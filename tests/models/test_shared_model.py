"""The student's folder as others load it: the same weights, under names that older programs know too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_distill.models.shared_model import older_too, share_model
from tests.chain import Chain

from .families import make_model

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def share(source: Path, output: Path) -> Path:
    output.mkdir()
    assert share_model(source, output) == "AutoTokenizer"
    return output


def test_weights_are_those_that_were_trained_and_take_no_space(chain: Chain, tmp_path: Path) -> None:
    source = chain.folder / "models/student_init"
    output = share(source, tmp_path / "shared")
    assert (output / "model.safetensors").samefile(source / "model.safetensors")
    assert {path.name for path in output.iterdir()} == {path.name for path in source.iterdir()}


def test_config_names_the_prefix_token_and_rotary_embeddings_as_older_programs_do(chain: Chain, tmp_path: Path) -> None:
    """Without `rope_theta` at the top transformers 4.57 takes 10,000, whatever the model was trained with."""
    source = chain.copy(tmp_path / "chain").folder / "models/student_init"
    config = json.loads((source / "config.json").read_text()) | {"rope_parameters": LLAMA3}
    del config["bos_token_id"]
    (source / "config.json").write_text(json.dumps(config))
    output = share(source, tmp_path / "shared")
    found = json.loads((output / "config.json").read_text())
    assert found["bos_token_id"] == config["eos_token_id"]
    assert found["rope_theta"] == 5e5
    assert found["rope_scaling"] == {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    ids = torch.arange(40)[None]
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(each) for each in (source, output)]
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)


PLAIN = {"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.5}
SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN = SCALING | {"rope_theta": 555.0}
FACTORS = {"short_factor": [1.5] * 4, "long_factor": [3.0] * 4}
LONG = FACTORS | {"rope_type": "longrope", "rope_theta": 777.0, "partial_rotary_factor": 1.0}
LAYERS = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 333.0}}


@pytest.mark.parametrize(
    ("family", "rotary", "added"),
    [
        ("phi", PLAIN, {"rope_theta": 777.0, "partial_rotary_factor": 0.5}),
        ("gpt_neox", PLAIN, {"rotary_emb_base": 777.0, "rotary_pct": 0.5}),
        ("gemma3_text", LAYERS, {"rope_theta": 555.0, "rope_scaling": SCALING, "rope_local_base_freq": 333.0}),
        (
            "phi3",
            LONG,
            {"rope_theta": 777.0, "partial_rotary_factor": 1.0, "rope_scaling": {"type": "longrope", **FACTORS}},
        ),
        ("qwen3_moe", YARN, {"rope_theta": 555.0, "rope_scaling": SCALING, "num_experts": 4}),
    ],
)
def test_the_names_of_4_57_stand_beside_the_new_ones(
    tmp_path: Path, family: str, rotary: dict[str, Any], added: dict[str, Any]
) -> None:
    """With these keys 4.57.6 gave the logits of such models; without them other ones, or it did not open them."""
    model: Any = make_model(family, 100, rope_parameters=rotary)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    older = older_too(config)
    assert {name: value for name, value in older.items() if name not in config} == added
    assert config.items() <= older.items()
    (tmp_path / "config.json").write_text(json.dumps(older))
    ids = torch.arange(40)[None]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_config_without_rotary_embeddings_or_with_several_is_left_as_it_is() -> None:
    several = {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}
    for config in ({"n_positions": 8}, several, several | {"model_type": "gemma3_text"}):
        assert older_too(config) == config
    assert "rope_scaling" not in older_too({"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}})
