"""A damaged model folder is refused in one line, whatever is wrong with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.errors import DataError
from moe_distill.pretrained import load_causal_lm

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "student_kd"
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=request.param,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "student_kd")
    return tmp_path / "student_kd"


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_causal_lm(folder, torch.float32, CPU)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert str(caught.value).endswith("run: moe-distill verify; where it finds nothing: dvc repro -f train_kd")
    return str(caught.value)


def rewrite(folder: Path, change: object) -> None:
    weights = load_file(folder / "model.safetensors")
    assert callable(change)
    change(weights)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_model_loads(folder: Path) -> None:
    assert load_causal_lm(folder, torch.float32, CPU).num_parameters() > 0


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "holds no usable model" in refusal(folder)
    path.write_bytes(b"not safetensors")
    assert "holds no usable model" in refusal(folder)
    path.unlink()
    assert "holds no usable model" in refusal(folder)


def test_a_broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "holds no usable model" in refusal(folder)


def test_a_missing_weight(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("model.norm.weight"))
    assert "missing keys; model.norm.weight" in refusal(folder)


def test_a_weight_too_many(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update(other=torch.zeros(1)))
    assert "unexpected keys; other" in refusal(folder)


def test_a_weight_of_another_shape(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(9)}))
    refusal(folder)


def test_a_weight_that_is_not_finite(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["model.norm.weight"].__setitem__(3, float("nan")))
    assert "model.norm.weight" in refusal(folder)


def test_a_model_that_needs_code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder was run')")
    assert "holds no usable model" in refusal(folder)
