"""The student's folder as others load it: the same weights, under names that older programs know too."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from moe_distill.models.shared_model import older_too, share_model
from tests.chain import Chain

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


def test_a_config_without_rotary_embeddings_or_with_several_is_left_as_it_is() -> None:
    for config in ({"n_positions": 8}, {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}):
        assert older_too(config) == config
    assert "rope_scaling" not in older_too({"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}})
