"""The kinds of tokenizer.json that real models have, each trained small: name -> tokenizer."""

import json
from collections.abc import Sequence
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe_distill.alignment.encode import ORDINARY_TEXT, Encoder

from .toy import TEXT, encoder

MARK = "\u2581"
GEMMA_BLANKS = (2 * MARK, 4 * MARK, "\n", "\n\n")
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
)


def _byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, ORDINARY_TEXT], trainer)
    return tokenizer


def _sentencepiece(
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None,
    pieces: Sequence[str] = (),
) -> Tokenizer:
    """A BPE trained behind these parts, with a token for each byte that is, as in real files, not an added one.

    Args:
        pieces: that the model has whatever the text.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *of_bytes, MARK, *pieces], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    description["model"] |= {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    trained = Tokenizer.from_str(json.dumps(description))
    trained.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return trained


def _named() -> dict[str, Tokenizer]:
    parts, pre_parts = normalizers.Sequence, pre_tokenizers.Sequence
    byte_level, metaspace = pre_tokenizers.ByteLevel, pre_tokenizers.Metaspace
    split, digits = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), pre_tokenizers.Digits(individual_digits=True)
    nfc, prepend, replace = normalizers.NFC(), normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)
    return {
        "gpt2": _byte_level(byte_level(add_prefix_space=False)),
        "roberta": _byte_level(byte_level(add_prefix_space=True)),
        "llama3": _byte_level(pre_parts([split, byte_level(add_prefix_space=False, use_regex=False)])),
        "nfc, nested byte level": _byte_level(pre_parts([digits, byte_level(add_prefix_space=True)]), nfc),
        "llama2": _sentencepiece(parts([prepend, replace]), None),
        "bare prepend": _sentencepiece(prepend, metaspace(prepend_scheme="never")),
        "mistral": _sentencepiece(None, metaspace(prepend_scheme="first", split=False)),
        "split metaspace": _sentencepiece(None, metaspace(prepend_scheme="always", split=True)),
        "nested metaspace": _sentencepiece(None, pre_parts([digits, metaspace(prepend_scheme="always", split=False)])),
        "gemma": _sentencepiece(replace, pre_tokenizers.Split(" ", "merged_with_previous"), GEMMA_BLANKS),
        "nfc, prepend": _sentencepiece(parts([nfc, prepend, replace]), None),
        "nfc, nested prepend": _sentencepiece(parts([parts([prepend]), parts([nfc, replace])]), None),
    }


TOKENIZERS = _named()
for _tokenizer in TOKENIZERS.values():
    _tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<think>", "<tool_call>")])
# Its pieces of blanks are added tokens too, as the converter of transformers leaves them
TOKENIZERS["gemma"].add_tokens([AddedToken(text, special=False, normalized=False) for text in GEMMA_BLANKS])


@cache
def pipeline_encoder(name: str) -> Encoder:
    return encoder(TOKENIZERS[name], name)
