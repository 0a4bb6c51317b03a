"""The tiny teacher: it learns, from the training split alone, the same way each time."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DivergenceError
from moe_distill.models import tiny_teacher
from moe_distill.models.packed_windows import packed_tokens
from moe_distill.models.tiny_teacher import output_rows, train_tiny_teacher
from moe_distill.models.tokenizer_files import load_tokenizer

from .conftest import TEACHER, files, write_documents

Trained = tuple[Path, dict[str, float]]


def train(corpus: Path, output: Path, seed: int = 3, **changes: object) -> dict[str, float]:
    params = TEACHER.model_copy(update=changes)
    return train_tiny_teacher(params, seed, corpus / "train.parquet", corpus / "validation.parquet", output)


def test_trained_twice_gives_equal_bytes(corpus: Path, teacher: Trained, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever the process drew before
    metrics = train(corpus, tmp_path)
    assert files(tmp_path) == files(teacher[0])
    assert metrics.items() <= teacher[1].items()


def test_another_seed_gives_other_weights_and_leaves_the_process_random_state(corpus: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for seed in (3, 4):
        train(corpus, tmp_path / str(seed), seed=seed, steps=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert files(tmp_path / "3")["model.safetensors"] != files(tmp_path / "4")["model.safetensors"]
    assert files(tmp_path / "3")["tokenizer.json"] == files(tmp_path / "4")["tokenizer.json"]


def test_loss_falls(corpus: Path, teacher: Trained, tmp_path: Path) -> None:
    untrained = train(corpus, tmp_path, steps=1, learning_rate=1e-9)["teacher_bits_per_byte"]
    assert teacher[1]["teacher_bits_per_byte"] < 0.85 * untrained


def test_validation_text_reaches_neither_weights_nor_tokenizer(corpus: Path, teacher: Trained, tmp_path: Path) -> None:
    other = write_documents(tmp_path / "other.parquet", ["Zebras quibble. " * 50, "0123456789" * 40])
    metrics = train_tiny_teacher(TEACHER, 3, corpus / "train.parquet", other, tmp_path / "model")
    assert files(tmp_path / "model") == files(teacher[0])
    assert metrics["teacher_bits_per_byte"] != teacher[1]["teacher_bits_per_byte"]


def test_training_text_does_reach_them(corpus: Path, teacher: Trained, tmp_path: Path) -> None:
    """The counterpart of the test above: equal bytes there mean something."""
    train_tiny_teacher(TEACHER, 3, corpus / "validation.parquet", corpus / "validation.parquet", tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        assert files(tmp_path)[name] != files(teacher[0])[name]


def test_bits_per_byte_equals_the_slow_way(corpus: Path, teacher: Trained) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher[0])
    tokenizer = load_tokenizer(teacher[0])
    tokenizer.encode_special_tokens = True
    nats, size = 0.0, 0
    for batch in read_documents(corpus / "validation.parquet"):
        for document in batch:
            ids = tokenizer.encode(document.text).ids
            size += len(document.text.encode())
            for start in range(0, len(ids), TEACHER.max_length):
                window = [tokenizer.token_to_id("<|endoftext|>"), *ids[start : start + TEACHER.max_length]]
                with torch.no_grad():
                    logprobs = model(torch.tensor([window])).logits[0].log_softmax(-1)
                nats -= float(logprobs[torch.arange(len(window) - 1), window[1:]].sum())
    assert teacher[1]["teacher_bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_saved_folder_is_an_ordinary_qwen3_moe(teacher: Trained) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher[0])
    assert model.config.model_type == "qwen3_moe"
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (640, 32)  # 400 tokens: up to 512, and 128 more
    assert model.model.embed_tokens.padding_idx is None
    assert model.config.norm_topk_prob
    assert [type(layer.mlp).__name__ for layer in model.model.layers] == ["Qwen3MoeSparseMoeBlock"] * 2
    end_id = AutoTokenizer.from_pretrained(teacher[0]).eos_token_id
    assert model.config.bos_token_id == model.config.eos_token_id == model.generation_config.pad_token_id == end_id


def test_saved_folder_names_no_path_and_no_time(teacher: Trained) -> None:
    assert sorted(files(teacher[0])) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads(files(teacher[0])[name])
        assert not {"_name_or_path", "name_or_path"} & content.keys()
        assert str(teacher[0].parent) not in json.dumps(content)


def busiest_expert(folder: Path, documents: Path) -> float:
    """The largest share of tokens any expert of any layer is chosen for; an even load is a half."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens_N = packed_tokens(documents, load_tokenizer(folder), end_id=0, folder=folder)
    with torch.no_grad():
        layers = model(tokens_N[:512].view(16, 32), output_router_logits=True).router_logits
    return max(float(logits_TE.topk(2).indices.flatten().bincount().max()) / 512 for logits_TE in layers)


def test_balancing_term_spreads_the_tokens_of_each_layer(corpus: Path, tmp_path: Path) -> None:
    for weight in (0.0, 1.0):
        train(corpus, tmp_path / str(weight), router_auxiliary_weight=weight, steps=120)
    busiest = [busiest_expert(tmp_path / str(weight), corpus / "validation.parquet") for weight in (0.0, 1.0)]
    assert busiest[1] < 0.8 < busiest[0]


def test_each_step_has_its_own_learning_rate(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_teacher, "warmup_cosine", lambda step, *_others: float(step == 2))
    first, second, third = (train(corpus, tmp_path, steps=steps)["teacher_bits_per_byte"] for steps in (1, 2, 3))
    assert first == second != third


def test_output_matrix_has_rows_without_a_token() -> None:
    assert [output_rows(tokens) for tokens in (400, 512, 513, 4096)] == [640, 640, 768, 4224]


def test_infinite_loss_ends_training(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"nan at step.*learning_rate"):
        train(corpus, tmp_path, learning_rate=1e30)
    assert not (tmp_path / "model.safetensors").exists()
