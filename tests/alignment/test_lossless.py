"""For any text: the tokens spell it byte for byte, or it is reported as lost where they differ."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moe_distill.alignment.encode import Encoder, encode

from .pipelines import MARK, TOKENIZERS, pipeline_encoder
from .toy import encoder

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
FRAGMENTS = [
    "👩‍👩‍👧‍👦",  # joined emoji
    "🏳️‍🌈",
    "e\u0301\u0323",  # combining marks in an order that NFC changes
    "각",
    "각",  # Hangul, composed and not
    "漢字かな",
    "\u202eשמח العربية\u202c",
    "\x04\x00\x1d\x7f",
    "<|im_start|>",
    "<|endoftext|>",
    "<think>",
    " <tool_call> ",
    "</s>",
    "<unk>",
    "<0x0A>",
    " \u3000\u00a0\r\n\t",
    "\ufeff\ufffd\U0010ffff",
    "▁",
    "12345",
    "don't",
]
RAW_TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(FRAGMENTS), max_size=8
).map("".join)
TEXTS = RAW_TEXTS.map(lambda text: unicodedata.normalize("NFC", text))


def check(owner: Encoder, texts: list[str]) -> None:
    """Compare with the tokenizer asked text by text, and joined the slow way."""
    sources = [text.encode() for text in texts]
    encoded = encode(owner, sources)
    misspelled, stop = dict(encoded.misspelled), 0
    for number, source in enumerate(sources):
        ids = encoded.ids[stop : stop + encoded.counts[number]]
        stop += len(ids)
        spelled = b"".join(owner.token_bytes.table[token] or b"" for token in ids)
        if number not in misspelled:
            assert spelled == source
            continue
        assert len(ids) == 0
        raw = owner.tokenizer.encode(source.decode(), add_special_tokens=False).ids
        said = b"".join(owner.token_bytes.table[token] or b"" for token in raw)
        assert said != source
        offset = misspelled[number]
        assert said[:offset] == source[:offset]
        assert said[offset : offset + 1] != source[offset : offset + 1]
    assert stop == len(encoded.ids)
    assert encoded.ids.dtype == encoded.counts.dtype == np.int64


@SETTINGS
@given(texts=st.lists(TEXTS | RAW_TEXTS, max_size=4))
def test_qwen3_spells_every_text_or_says_where_it_does_not(qwen3: Encoder, texts: list[str]) -> None:
    check(qwen3, texts)


@SETTINGS
@given(texts=st.lists(TEXTS | RAW_TEXTS, max_size=4))
def test_smollm2_spells_every_text_or_says_where_it_does_not(smollm2: Encoder, texts: list[str]) -> None:
    check(smollm2, texts)


@SETTINGS
@given(texts=st.lists(RAW_TEXTS, max_size=4))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_kind_of_tokenizer_spells_every_text_or_says_where_it_does_not(name: str, texts: list[str]) -> None:
    check(pipeline_encoder(name), texts)


@SETTINGS
@given(text=RAW_TEXTS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_text_is_lost_without_need(name: str, text: str) -> None:
    """Only a space mark in the text itself, and what NFC changes, cannot be spelled."""
    needed = (MARK in text and name not in BYTE_LEVEL) or ("nfc" in name and not unicodedata.is_normalized("NFC", text))
    assert bool(encode(pipeline_encoder(name), [text.encode()]).misspelled) == needed


def test_a_character_that_only_the_unknown_token_stands_for_is_lost() -> None:
    description = json.loads(TOKENIZERS["mistral"].to_str())
    description["model"]["byte_fallback"] = False
    owner = encoder(Tokenizer.from_str(json.dumps(description)))
    assert encode(owner, [b"the fox", "the \u0416 fox".encode(), "\u0416".encode()]).misspelled == [(1, 4), (2, 0)]


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_qwen3_loses_no_fragment_of_normalised_text(qwen3: Encoder, fragment: str) -> None:
    assert encode(qwen3, [unicodedata.normalize("NFC", fragment).encode()]).misspelled == []


def test_text_that_is_not_normalised_is_lost_at_the_byte_that_the_tokenizer_changes(qwen3: Encoder) -> None:
    assert encode(qwen3, ["cafe\u0301".encode()]).misspelled == [(0, 3)]


BYTE_LEVEL = {"gpt2", "roberta", "llama3", "nfc, nested byte level"}
