"""The tiny student: an ordinary Llama with random, seeded weights and a tokenizer unlike the teacher's."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_distill.models.tiny_student import make_tiny_student

from .conftest import STUDENT, files


def test_seed_alone_decides_the_weights(corpus: Path, student: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    make_tiny_student(STUDENT, 3, corpus / "train.parquet", tmp_path / "same")
    make_tiny_student(STUDENT, 4, corpus / "train.parquet", tmp_path / "other")
    assert torch.equal(torch.get_rng_state(), before)
    assert files(tmp_path / "same") == files(student)
    differing = {name for name, content in files(tmp_path / "other").items() if content != files(student)[name]}
    assert differing == {"model.safetensors"}


def test_saved_folder_is_an_ordinary_llama(student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(tokenizer) == STUDENT.tokenizer.vocabulary_size
    assert tokenizer.model_max_length == model.config.max_position_embeddings == STUDENT.max_length
    assert model.config.bos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.model.embed_tokens.padding_idx is None
    assert model(tokenizer("def f(x):", return_tensors="pt").input_ids).logits.isfinite().all()


def test_pair_differs_as_real_pairs_do(student: Path, teacher: tuple[Path, dict[str, float]]) -> None:
    ours, theirs = (set(AutoTokenizer.from_pretrained(folder).get_vocab()) for folder in (student, teacher[0]))
    assert 0.5 < len(ours & theirs) / len(ours) < 1.0
