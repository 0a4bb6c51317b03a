"""For any text: the tokens spell it byte for byte, or it is reported as lost where they differ."""

import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_distill.alignment.encode import Encoder, encode

from .toy import byte_level, encoder, sentencepiece

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
    "<think>",
    " \u3000\u00a0\r\n\t",
    "\ufeff\ufffd\U0010ffff",
    "▁",
    "12345",
    "don't",
]
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(FRAGMENTS), max_size=8
).map(lambda parts: unicodedata.normalize("NFC", "".join(parts)))


def check(owner: Encoder, texts: list[str]) -> None:
    """Compare with the tokenizer asked text by text, and joined the slow way."""
    sources = [text.encode() for text in texts]
    encoded = encode(owner, sources)
    lost, stop = dict(encoded.lost), 0
    for number, source in enumerate(sources):
        ids = encoded.ids[stop : stop + encoded.counts[number]]
        stop += len(ids)
        spelled = b"".join(owner.token_bytes.table[token] or b"" for token in ids)
        if number not in lost:
            assert spelled == source
            continue
        assert len(ids) == 0
        raw = owner.tokenizer.encode(source.decode(), add_special_tokens=False).ids
        said = b"".join(owner.token_bytes.table[token] or b"" for token in raw)
        assert said != source
        offset = lost[number]
        assert said[:offset] == source[:offset]
        assert said[offset : offset + 1] != source[offset : offset + 1]
    assert stop == len(encoded.ids)
    assert encoded.ids.dtype == encoded.counts.dtype == np.int64


@SETTINGS
@given(texts=st.lists(TEXTS, max_size=4))
def test_qwen3_spells_every_text_or_says_where_it_does_not(qwen3, texts):
    check(qwen3, texts)


@SETTINGS
@given(texts=st.lists(TEXTS, max_size=4))
def test_smollm2_spells_every_text_or_says_where_it_does_not(smollm2, texts):
    check(smollm2, texts)


@SETTINGS
@given(texts=st.lists(TEXTS, max_size=4))
@pytest.mark.parametrize("style", ["prepend", "metaspace"])
def test_sentencepiece_spells_every_text_or_says_where_it_does_not(style, texts):
    check(SENTENCEPIECE[style], texts)


@SETTINGS
@given(text=TEXTS)
def test_a_full_byte_alphabet_loses_nothing(text):
    assert encode(BYTE_LEVEL, [text.encode()]).lost == []


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_qwen3_loses_no_fragment_of_normalised_text(qwen3, fragment):
    assert encode(qwen3, [unicodedata.normalize("NFC", fragment).encode()]).lost == []


def test_text_that_is_not_normalised_is_lost_at_the_byte_that_the_tokenizer_changes(qwen3):
    assert encode(qwen3, ["cafe\u0301".encode()]).lost == [(0, 3)]


BYTE_LEVEL = encoder(byte_level(400))
SENTENCEPIECE = {style: encoder(sentencepiece(style)) for style in ("prepend", "metaspace")}
