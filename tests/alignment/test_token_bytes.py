"""A token is its bytes, in both tokenizer families."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from moe_distill.alignment.encode import Encoder, encode
from moe_distill.alignment.invented_space import without_invented_space
from moe_distill.alignment.token_bytes import gpt2_alphabet, token_bytes
from moe_distill.alignment.tokenizer_rules import TYPOGRAPHY, changing_normalizer
from moe_distill.errors import DataError
from tests.assets import real_tokenizer

from .pipelines import TOKENIZERS, pipeline_encoder
from .toy import TEXT, byte_level, encoder, id_of, sentencepiece

SAMPLES = [
    "hello world",
    " hello",
    "  two  spaces ",
    "line\nline\r\n\ttab",
    "naïve 東京 🙂",
    "a\u0301 \u200f \x00",
    "x",
]


def spelled(owner: Encoder, text: str) -> bytes:
    encoded = encode(owner, [text.encode()])
    assert encoded.misspelled == []
    return b"".join(owner.token_bytes.table[number] or b"?" for number in encoded.ids)


def test_gpt2_alphabet_is_a_bijection_on_bytes() -> None:
    alphabet = gpt2_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert (alphabet["A"], alphabet["Ġ"], alphabet["Ċ"]) == (0x41, 0x20, 0x0A)


@pytest.mark.parametrize("text", SAMPLES)
@pytest.mark.parametrize("family", ["byte_level", "prepend", "metaspace"])
def test_tokens_spell_the_text_and_no_space_is_invented(family: str, text: str) -> None:
    owner = encoder(byte_level(400) if family == "byte_level" else sentencepiece(family))
    assert spelled(owner, text) == text.encode()


def test_byte_level_table_agrees_with_the_tokenizers_own_decoder() -> None:
    tokenizer = byte_level(400)
    table = token_bytes(tokenizer, "toy").table
    whole = {number: token for number, token in enumerate(table) if token and _is_text(token)}
    assert len(whole) > 150
    assert {number: tokenizer.decode([number]) for number in whole} == {
        number: token.decode() for number, token in whole.items()
    }


@pytest.mark.parametrize("style", ["prepend", "metaspace"])
def test_sentencepiece_table(style: str) -> None:
    tokenizer = sentencepiece(style)
    bytes_of = token_bytes(tokenizer, "toy")

    def of(token: str) -> bytes | None:
        return bytes_of.table[id_of(tokenizer, token)]

    assert (of("▁hello"), of("▁▁"), of("<0x0A>"), of("<0xFF>")) == (b" hello", b"  ", b"\n", b"\xff")
    assert [of(token) for token in ("<unk>", "<s>", "</s>")] == [None, None, None]
    assert bytes_of.lengths[id_of(tokenizer, "▁hello")] == 6
    assert bytes_of.lengths[id_of(tokenizer, "<s>")] == 0


@pytest.mark.parametrize("style", ["prepend", "metaspace"])
def test_sentencepiece_original_invents_a_space_and_the_copy_does_not(style: str) -> None:
    original = sentencepiece(style)
    copy = without_invented_space(original)
    assert original.encode("hello", add_special_tokens=False).tokens == ["▁hello"]
    assert copy.encode("hello", add_special_tokens=False).tokens == ["h", "el", "lo"]
    assert copy.encode(" hello", add_special_tokens=False).tokens == ["▁hello"]
    assert original.encode("hello", add_special_tokens=False).tokens == ["▁hello"]  # the original is left alone


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_the_invented_space_is_gone(name: str) -> None:
    """A text that begins with a space is read by the copy as the original reads it without that space."""
    original, copy = TOKENIZERS[name], without_invented_space(TOKENIZERS[name])
    for text in (
        "the quick brown fox\nthe  lazy dog é 東京",
        "🙂 runs.",
    ):  # no digit: split off, each would get a space
        invents = original.encode(text).ids != copy.encode(text).ids
        assert invents == (name not in {"gpt2", "llama3", "gemma"})
        assert copy.encode(" " * invents + text).ids == original.encode(text).ids


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    tokenizer = byte_level(300)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=2000)
    owner = encoder(tokenizer)
    assert spelled(owner, TEXT) == TEXT.encode()


def test_special_tokens_have_no_bytes_and_added_ones_have_those_of_their_content() -> None:
    tokenizer = byte_level(300)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True)])
    owner = encoder(tokenizer)
    assert owner.token_bytes.table[id_of(tokenizer, "<think>")] == b"<think>"
    assert owner.token_bytes.table[id_of(tokenizer, "<mask>")] is None
    text = "a <think> b <mask> c <|endoftext|>"
    assert spelled(owner, text) == text.encode()
    ids = encode(owner, [text.encode()]).ids.tolist()
    assert id_of(tokenizer, "<think>") in ids
    assert id_of(tokenizer, "<mask>") not in ids


@given(st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_join_is_the_bytes_of_each_token_after_the_other(name: str, data: st.DataObject) -> None:
    table = pipeline_encoder(name).token_bytes
    ids = data.draw(st.lists(st.integers(0, len(table.table) - 1), max_size=20))
    assert table.join(np.array(ids, dtype=np.int64)) == b"".join(table.table[number] or b"" for number in ids)


def test_by_bytes_takes_the_smallest_of_several_ids() -> None:
    tokenizer = byte_level(300)
    tokenizer.add_tokens([AddedToken("a", special=False), AddedToken("<new>", special=False)])
    table = token_bytes(tokenizer, "toy")
    assert table.by_bytes()[b"a"] == id_of(tokenizer, "a")
    assert table.by_bytes()[b"<new>"] == id_of(tokenizer, "<new>")
    assert None not in table.by_bytes()


def test_ids_without_a_token_have_no_bytes() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 5}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert token_bytes(tokenizer, "gaps").table == (b"a", None, None, None, None, b"b")


def test_a_piece_of_the_model_that_is_added_too_keeps_its_bytes() -> None:
    """As Gemma's runs of spaces, and in byte-level BPE the character that stands for a space."""
    gemma = pipeline_encoder("gemma")
    added = {token.content: number for number, token in gemma.tokenizer.get_added_tokens_decoder().items()}
    assert {"\u2581\u2581", "\n\n", "<think>"} <= added.keys()
    assert [gemma.token_bytes.table[added[each]] for each in ("\u2581\u2581", "\n\n", "<think>")] == [
        b"  ",
        b"\n\n",
        b"<think>",
    ]
    assert spelled(gemma, "a  b    c\n\nd <think>") == b"a  b    c\n\nd <think>"
    assert added["\n\n"] in encode(gemma, [b"c\n\nd"]).ids
    tokenizer = byte_level(400)
    tokenizer.add_tokens([AddedToken("\u0120", special=False)])
    assert token_bytes(tokenizer, "toy").table[id_of(tokenizer, "\u0120")] == b" "


def test_the_unknown_token_stands_for_no_text_though_it_is_not_marked_as_special() -> None:
    bpe = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1, "<0x62>": 2}, merges=[], unk_token="<unk>"))
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("<unk>", 0.0)], unk_id=1, byte_fallback=True))
    for tokenizer, expected in ((bpe, (None, b"a", b"b")), (unigram, (b"a", None))):
        tokenizer.decoder = decoders.ByteFallback()
        assert token_bytes(tokenizer, "toy").table == expected


def test_bpe_dropout_is_switched_off() -> None:
    description = json.loads(byte_level(400).to_str())
    description["model"]["dropout"] = 0.5
    drawing = Tokenizer.from_str(json.dumps(description))
    expected = encode(encoder(byte_level(400)), [TEXT.encode()]).ids
    assert len({tuple(drawing.encode(TEXT).ids) for _ in range(3)}) > 1
    assert encode(encoder(drawing), [TEXT.encode()]).ids.tolist() == expected.tolist()


def test_a_tokenizer_that_fails_is_refused_by_name() -> None:
    tokenizer = Tokenizer(models.Unigram([("a", -1.0)], unk_id=None, byte_fallback=False))
    tokenizer.decoder = decoders.ByteFallback()
    with pytest.raises(DataError, match=r"tokenizer failing cannot encode the text.*unk"):
        encoder(tokenizer, "failing")


@pytest.mark.parametrize(
    "model", [models.WordLevel({"[UNK]": 0, "the": 1}, "[UNK]"), models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")]
)
def test_another_model_behind_byte_level_parts_is_refused_by_name(model: models.Model) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    with pytest.raises(DataError, match=r"tokenizer odd is neither.*its model is Word.*ByteLevel"):
        token_bytes(tokenizer, "odd")


def test_a_tokenizer_without_tokens_is_refused_by_name() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(DataError, match="tokenizer empty has no tokens"):
        token_bytes(tokenizer, "empty")


def test_wordpiece_is_refused_by_name() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(DataError, match=r"tokenizer bert-like is neither.*WordPiece"):
        token_bytes(tokenizer, "bert-like")


def test_a_tokenizer_without_decoder_is_refused() -> None:
    with pytest.raises(DataError, match=r"tokenizer bare is neither.*absent"):
        token_bytes(Tokenizer(models.BPE()), "bare")


def test_unigram_without_bytes_is_refused_by_name() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581the", -1.0)], unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(DataError, match=r"tokenizer t5-like is neither.*Metaspace"):
        encoder(tokenizer, "t5-like")


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Lowercase(),
        normalizers.Strip(),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Replace("\n", " "),
    ],
)
def test_a_tokenizer_that_changes_ordinary_text_is_refused_by_name(normalizer: normalizers.Normalizer) -> None:
    tokenizer = byte_level(300)
    tokenizer.normalizer = normalizer
    with pytest.raises(DataError, match=r"tokenizer changing changes ordinary text.*from byte \d+ on"):
        encoder(tokenizer, "changing")


@pytest.mark.parametrize("style", ["byte level", "sentencepiece"])
@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Nmt(),
        normalizers.BertNormalizer(lowercase=False),
        normalizers.Replace("``", '"'),
        normalizers.Lowercase(),
        normalizers.Strip(),
    ],
    ids=lambda normalizer: type(normalizer).__name__,
)
def test_a_normaliser_that_changes_text_is_named(normalizer: normalizers.Normalizer, style: str) -> None:
    tokenizer = byte_level(300) if style == "byte level" else sentencepiece("metaspace")
    kept = [] if style == "byte level" else [normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizer, *kept])
    with pytest.raises(DataError, match=f"changes ordinary text.*its normaliser {type(normalizer).__name__} turns"):
        encoder(tokenizer)


def test_nfc_alone_is_no_change_to_documents_in_that_form(qwen3: Encoder) -> None:
    assert changing_normalizer(qwen3.tokenizer, TYPOGRAPHY) == ""
    assert unicodedata.is_normalized("NFC", TYPOGRAPHY)
    assert spelled(qwen3, TYPOGRAPHY) == TYPOGRAPHY.encode()


def test_a_pre_tokenizer_that_drops_blanks_is_named() -> None:
    tokenizer = byte_level(300)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(DataError, match="its normaliser: none; its pre-tokenizer: WhitespaceSplit, ByteLevel"):
        encoder(tokenizer)


def test_real_qwen3_reads_special_token_text_as_ordinary_text(qwen3: Encoder) -> None:
    tokenizer = real_tokenizer("qwen3")
    text = "<|im_start|>user<|im_end|> <think> 2+2 </think><tool_call><|endoftext|>"
    ids = encode(qwen3, [text.encode()]).ids.tolist()
    assert spelled(qwen3, text) == text.encode()
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert len(special) >= 14
    assert not special & set(ids)
    assert special & set(tokenizer.encode(text).ids)  # the plain tokenizer would have used them
    assert qwen3.token_bytes.table[id_of(tokenizer, "<think>")] == b"<think>"
    assert len(qwen3.token_bytes.table) == 151669


def test_real_smollm2_drops_a_control_character_and_that_is_seen(smollm2: Encoder) -> None:
    encoded = encode(smollm2, [b"fine", b"caf\xc3\xa9 \x04 end", b"\x04"])
    assert encoded.misspelled == [(1, 6), (2, 0)]
    assert encoded.counts.tolist()[1:] == [0, 0]
    assert encoded.counts[0] > 0


@pytest.mark.parametrize("text", [*SAMPLES, "Once upon a time, there was a little girl. 🐉"])
def test_real_sentencepiece_tokenizer_spells_the_text(stories: Encoder, text: str) -> None:
    assert spelled(stories, text) == text.encode()


def test_real_sentencepiece_space_mark_in_the_text_counts_as_lost(stories: Encoder) -> None:
    assert encode(stories, ["ab ▁ c".encode()]).misspelled == [(0, 3)]


def test_by_bytes_names_the_id_that_sentencepiece_itself_produces() -> None:
    owner = encoder(sentencepiece("metaspace"))
    produced = encode(owner, [b"a"]).ids.tolist()
    assert [owner.token_bytes.by_bytes()[b"a"]] == produced


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
