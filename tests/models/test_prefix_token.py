"""Which token begins every window, and what is unusual about it."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from moe_distill.errors import DataError
from moe_distill.models.prefix_token import is_text, prefix_token_id, prefix_warnings, require_prefix_token

BOS, OTHER = "<|endoftext|>", "<|start|>"


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Byte-level, one byte a token (ids 0 to 255), then two special tokens and an added one that is not special."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BOS, OTHER])
    made.add_tokens([AddedToken("<think>", special=False)])
    return made


def write(folder: Path, tokenizer: Tokenizer, bos: str | None = None, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    if bos is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": bos}}))
    return folder


def test_only_tokens_that_text_becomes_stand_for_text(tokenizer: Tokenizer) -> None:
    texts = [is_text(tokenizer, number) for number in range(256)]
    assert set(texts) == {"a token of text"}  # halves of characters included
    assert (is_text(tokenizer, 256), is_text(tokenizer, 257)) == ("", "")
    assert "not marked as special" in is_text(tokenizer, 258)
    unmarked = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1, "\u2581a": 2, "\u2581": 3}, merges=[("\u2581", "a")]))
    assert [bool(is_text(unmarked, number)) for number in range(4)] == [False, True, True, True]


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_a_token_of_text_is_refused_where_only_the_configuration_says_it(tokenizer: Tokenizer, key: str) -> None:
    """As transformers' defaults do: a LlamaConfig says 1 whatever the tokenizer is."""
    number = tokenizer.token_to_id("!")
    with pytest.raises(
        DataError, match=rf"window with '!' \(id {number}\), a token of text.*`{key}`: {number}"
    ) as caught:
        require_prefix_token({key: number}, tokenizer, "mine", None)
    assert BOS in str(caught.value)
    require_prefix_token({key: number}, tokenizer, "mine", OTHER)
    require_prefix_token({key: number}, tokenizer, "mine", "!")  # asked for
    require_prefix_token({key: 256}, tokenizer, "mine", None)
    require_prefix_token({key: 258}, tokenizer, "mine", None)  # "<think>": told, not refused
    with pytest.raises(DataError, match="names neither"):
        require_prefix_token({}, tokenizer, "mine", None)
    require_prefix_token({}, tokenizer, "mine", 256)


@pytest.mark.parametrize("unknown", ["<s>", 259])
def test_a_prefix_that_the_tokenizer_lacks_is_refused(tokenizer: Tokenizer, unknown: str | int) -> None:
    with pytest.raises(DataError, match=rf"of mine has no token {unknown!r}.*prefix_token.*endoftext"):
        require_prefix_token({"bos_token_id": 256}, tokenizer, "mine", unknown)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, []),
        (f"{BOS} $A", []),
        (f"$A {OTHER}", []),
        (f"{OTHER} $A", [f"its post-processor puts '{OTHER}' (id 257) before a text"]),
        (f"{BOS} {BOS} $A {BOS}", [f"its post-processor puts '{BOS}' (id 256), '{BOS}' (id 256) before a text"]),
    ],
)
def test_another_start_by_the_post_processor_is_told(
    tokenizer: Tokenizer, tmp_path: Path, template: str | None, said: list[str]
) -> None:
    if template:
        special = [(BOS, 256), (OTHER, 257)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    folder = write(tmp_path, tokenizer, BOS, bos_token_id=256)
    assert list(prefix_warnings(folder, tokenizer)) == said
    assert prefix_token_id(folder, tokenizer) == 256


def test_a_tokenizer_that_fails_is_left_to_where_text_is_read() -> None:
    failing = Tokenizer(models.WordLevel({"a b": 0, "c": 1}, unk_token="[UNK]"))
    failing.pre_tokenizer = pre_tokenizers.Whitespace()
    assert is_text(failing, 0) == ""


def test_text_padding_and_another_bos_are_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    said = list(prefix_warnings(write(tmp_path, tokenizer, OTHER, bos_token_id=33, pad_token_id=33), tokenizer))
    assert len(said) == 3
    assert said[0] == "a token of text"
    assert "padding token too" in said[1]
    assert said[2] == f"tokenizer_config.json names '{OTHER}' as `bos_token`"
