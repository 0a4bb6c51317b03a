"""What a tokenizer does to every text is said once, by name."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from moe_distill.alignment.encode import encode
from moe_distill.alignment.tokenizer_rules import told_differences
from moe_distill.errors import DataError

from .pipelines import TOKENIZERS
from .toy import byte_level, encoder, id_of, unigram


def told(tokenizer: Tokenizer) -> list[str]:
    return list(told_differences(tokenizer, encoder(tokenizer).tokenizer, "mine"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_spaces_that_windows_do_not_have_are_told_or_refused(name: str) -> None:
    if name in ("nfc, nested byte level", "nested metaspace"):
        with pytest.raises(DataError, match=r"tokenizer mine puts spaces into the middle.*pre-tokenizer: Digits"):
            told(TOKENIZERS[name])
        return
    said = told(TOKENIZERS[name])
    assert ("it puts a space before a text; windows, which begin anywhere, are read without it" in said) == (
        name not in ("gpt2", "llama3", "gemma")
    )
    # Behind `Prepend` a token that is normalised has that space itself, or each text after one gets it.
    beside = [line for line in said if line.startswith("beside its added tokens '<think>', '<tool_call>'")]
    assert bool(beside) == (name not in ("gpt2", "llama3", "gemma", "mistral"))


def test_a_tokenizer_that_reads_windows_as_its_file_is_not_mentioned() -> None:
    tokenizer = byte_level(400)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=20)
    assert told(tokenizer) == []
    assert told(unigram()) == []


def test_dropout_is_told() -> None:
    description = json.loads(byte_level(400).to_str())
    description["model"]["dropout"] = 0.5
    (line,) = told(Tokenizer.from_str(json.dumps(description)))
    assert "dropped at random" in line


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_that_takes_blanks_is_told_and_every_kept_text_is_spelled(side: str, special: bool) -> None:
    tokenizer = byte_level(400)
    tokenizer.add_tokens([AddedToken("<t>", special=special, **{side: True})])
    said = told(tokenizer)
    assert said == [] if special else "added tokens '<t>' take the blanks beside them" in said[0]
    texts = ["a <t> b", "a<t>b", "a<t>"]
    misspelled = dict(encode(encoder(tokenizer), [text.encode() for text in texts]).misspelled)
    assert set(misspelled) == (set() if special else {0})


@pytest.mark.parametrize("flags", [{"single_word": True}, {"normalized": True}, {"normalized": False}])
def test_other_added_tokens_have_the_bytes_of_their_content(flags: dict[str, bool]) -> None:
    tokenizer = byte_level(400)
    tokenizer.add_tokens([AddedToken("wörd", special=False, **flags)])
    owner = encoder(tokenizer)
    assert told(tokenizer) == []
    encoded = encode(owner, ["a wörd b".encode(), "awördb".encode()])
    assert encoded.misspelled == []
    assert owner.token_bytes.table[id_of(tokenizer, "wörd")] == "wörd".encode()
    assert (encoded.ids == id_of(tokenizer, "wörd")).sum() == (1 if "single_word" in flags else 2)
