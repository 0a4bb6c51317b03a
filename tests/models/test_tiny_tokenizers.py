"""Byte-level BPE: deterministic, lossless, of the size asked for, and different by its splitting rules."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from moe_distill.config.model_keys import TinyTokenizer
from moe_distill.errors import DataError
from moe_distill.models.tiny_tokenizers import sampled_texts, save_tokenizer, train_tokenizer

from .conftest import AWKWARD, TOKENIZER, write_documents

Family = Literal["qwen", "smollm", "gpt2"]
FAMILIES: tuple[Family, ...] = ("qwen", "smollm", "gpt2")


def tiny(family: Family, **changes: object) -> TinyTokenizer:
    return TOKENIZER.model_copy(update={"pre_tokenizer": family, **changes})


@pytest.fixture(scope="module")
def trained(corpus: Path) -> dict[str, Tokenizer]:
    tokenizers: dict[str, Tokenizer] = {
        family: train_tokenizer(tiny(family), corpus / "train.parquet") for family in FAMILIES
    }
    for tokenizer in tokenizers.values():
        tokenizer.encode_special_tokens = True
    return tokenizers


@pytest.mark.parametrize("family", FAMILIES)
def test_vocabulary_has_exactly_the_size_asked_for_with_all_bytes(
    family: Family, trained: dict[str, Tokenizer]
) -> None:
    vocabulary = trained[family].get_vocab()
    assert sorted(vocabulary.values()) == list(range(TOKENIZER.vocabulary_size))
    assert sum(len(token) == 1 for token in vocabulary) == 256


def test_added_tokens_stand_last_for_qwen_and_first_for_the_others(trained: dict[str, Tokenizer]) -> None:
    assert [trained["qwen"].token_to_id(name) for name in ("<|endoftext|>", "<think>", "</think>")] == [397, 398, 399]
    assert trained["smollm"].token_to_id("<|endoftext|>") == 0
    assert trained["smollm"].token_to_id("<think>") is None
    special = {token.content: token.special for token in trained["qwen"].get_added_tokens_decoder().values()}
    assert special == {"<|endoftext|>": True, "<think>": False, "</think>": False}


@given(text=st.text(max_size=60) | st.text(alphabet="a1 \n\r\t'_-.", max_size=60) | st.just(AWKWARD))
def test_no_byte_is_lost_or_added(trained: dict[str, Tokenizer], text: str) -> None:
    for family, tokenizer in trained.items():
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        # Each character of a byte-level token is one byte.
        encoding = tokenizer.encode(text, add_special_tokens=False)
        assert sum(len(token) for token in encoding.tokens) == len(normal.encode()), family
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == normal, family


def test_spelled_special_token_is_text_and_the_non_special_one_a_token(trained: dict[str, Tokenizer]) -> None:
    tokens = trained["qwen"].encode("<|endoftext|><think>").tokens
    assert "<|endoftext|>" not in tokens
    assert tokens[-1] == "<think>"


def test_families_split_as_their_models_do(trained: dict[str, Tokenizer]) -> None:
    def pieces(family: str, text: str) -> list[str]:
        return [piece for piece, _ in trained[family].pre_tokenizer.pre_tokenize_str(text)]

    assert pieces("qwen", "(foo 123") == ["(foo", "Ġ", "1", "2", "3"]
    assert pieces("smollm", "(foo 123") == ["(", "foo", "Ġ", "1", "2", "3"]
    assert pieces("qwen", "I'LL") == ["I", "'LL"]  # in capitals too
    assert pieces("smollm", "I'LL") == ["I", "'", "LL"]
    assert pieces("gpt2", "(foo 123") == ["(", "foo", "Ġ123"]
    assert trained["qwen"].encode("e\u0301").ids == trained["qwen"].encode("\u00e9").ids
    assert trained["smollm"].encode("e\u0301").ids != trained["smollm"].encode("\u00e9").ids


def test_equal_inputs_give_equal_bytes_in_another_process_too(corpus: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from moe_distill.config.model_keys import TinyTokenizer;"
        "from moe_distill.models.tiny_tokenizers import *;"
        "save_tokenizer(train_tokenizer(TinyTokenizer.model_validate_json(sys.argv[1]), Path(sys.argv[2])), 64,"
        " Path(sys.argv[3]))"
    )
    arguments = [TOKENIZER.model_dump_json(), str(corpus / "train.parquet"), str(tmp_path / "other")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    save_tokenizer(train_tokenizer(TOKENIZER, corpus / "train.parquet"), 64, tmp_path / "here")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_saved_folder_loads_with_auto_tokenizer(corpus: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TOKENIZER, corpus / "train.parquet")
    save_tokenizer(tokenizer, 64, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|endoftext|>",) * 3
    assert loaded.model_max_length == 64
    assert len(loaded) == TOKENIZER.vocabulary_size
    text = "Naïve (foo) isn't 42"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert "tmp" not in (tmp_path / "tokenizer_config.json").read_text()


def test_seed_and_sample_change_what_is_learnt(corpus: Path) -> None:
    vocabularies = [
        set(
            train_tokenizer(
                tiny("qwen", sample_seed=seed, sample_characters=characters), corpus / "train.parquet"
            ).get_vocab()
        )
        for seed, characters in ((1, 55_000), (2, 55_000), (1, 1_000_000))
    ]
    assert all(first != second for first, second in combinations(vocabularies, 2))


def test_the_sample_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "texts.parquet", [f"{number} " * 40 for number in range(1000, 9000)])
    sampled = sum(map(len, sampled_texts(tiny("qwen", sample_characters=100_000), path)))
    assert 85_000 < sampled < 115_000  # of 1,600,000


def test_too_little_text_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "small.parquet", ["some words"])
    with pytest.raises(DataError, match=r"not 400.*lower `vocabulary_size`"):
        train_tokenizer(tiny("smollm", sample_characters=1_000_000), path)
