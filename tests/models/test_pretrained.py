"""A damaged model folder is refused in one line, whatever is wrong with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.errors import DataError
from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.pretrained import load_causal_lm, text_token_mask

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


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.parametrize("asked", [torch.float16, torch.float32])
def test_a_model_has_the_dtype_that_is_asked_for(folder: Path, stored: torch.dtype, asked: torch.dtype) -> None:
    """Whatever the folder holds, and says of itself."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(stored).removeprefix("torch.")}))
    rewrite(folder, lambda weights: weights.update({name: each.to(stored) for name, each in weights.items()}))
    assert {each.dtype for each in load_causal_lm(folder, asked, CPU).parameters()} == {asked}


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
    assert "mismatched keys; ('model.norm.weight', " in refusal(folder)


def test_a_weight_that_is_not_finite(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["model.norm.weight"].__setitem__(3, float("nan")))
    assert "model.norm.weight" in refusal(folder)


def test_a_model_that_needs_code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder was run')")
    assert "holds no usable model" in refusal(folder)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, 1),
        ({"bos_token_id": None, "eos_token_id": [2, 1]}, 2),
        ({"bos_token_id": [], "eos_token_id": 2}, 2),
        ({"bos_token_id": -1, "eos_token_id": 0}, 0),
        ({"bos_token_id": 99, "eos_token_id": 2}, 2),
    ],
)
def test_windows_begin_with_bos_or_else_eos(tmp_path: Path, ids: dict[str, object], expected: int) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
    (tmp_path / "config.json").write_text(json.dumps(ids))
    assert prefix_token_id(tmp_path, tokenizer) == expected


def test_a_model_without_either_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": -1, "eos_token_id": []}))
    with pytest.raises(DataError, match="names neither a bos_token_id nor an eos_token_id"):
        prefix_token_id(tmp_path, Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))


def test_the_padding_tokens_row_has_a_gradient(folder: Path) -> None:
    """It may begin every window; the folder that is written still names it."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    model = load_causal_lm(folder, torch.float32, CPU)
    model(input_ids=torch.tensor([[3, 5]])).logits[0, 0].logsumexp(0).backward()
    gradient = model.get_input_embeddings().get_parameter("weight").grad
    assert gradient is not None
    assert float(gradient[3].abs().max()) > 0.0
    assert model.config.pad_token_id == 3


def test_an_added_token_stands_for_text_unless_it_is_special() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.add_tokens([AddedToken("bab", special=False)])
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    assert tokenizer.token_to_id("bab") == 2
    assert tokenizer.token_to_id("<|end|>") == 3
    assert text_token_mask(tokenizer, 6).tolist() == [True, True, True, False, False, False]
