"""Train a small byte-level BPE tokenizer that splits text as Qwen3, SmolLM2 or GPT-2 do, and save it.

The tokenizers of the tiny teacher and student must differ as those of a real pair do. They differ in splitting rules,
in size, and in the documents that they are trained on.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moe_distill.config.model_keys import TinyTokenizer
from moe_distill.corpus.documents import hash_fraction, read_documents
from moe_distill.errors import DataError

END_OF_TEXT = "<|endoftext|>"
# Not special, as in Qwen3: ordinary text is encoded with such a token, which has the bytes of its name.
QWEN_ADDED_TOKENS = ("<think>", "</think>")
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sampled_texts(params: TinyTokenizer, documents: Path) -> Iterator[str]:
    """Documents of about `sample_characters` characters together: the trainer holds every word of them in memory."""
    n_characters = sum(len(document.text) for batch in read_documents(documents) for document in batch)
    fraction = params.sample_characters / max(n_characters, 1)
    for batch in read_documents(documents):
        for document in batch:
            if hash_fraction(document.document_id, f"tokenizer {params.sample_seed}") < fraction:
                yield document.text


def _untrained(family: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        steps = [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif family == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def train_tokenizer(params: TinyTokenizer, documents: Path) -> Tokenizer:
    """Train byte-level BPE on some documents of a parquet file; equal inputs give equal tokenizers.

    The vocabulary has exactly `params.vocabulary_size` entries, among them all 256 bytes and the added tokens. Added
    tokens have the last ids for "qwen", as in Qwen3; for the others `<|endoftext|>` has id 0.

    Raises:
        DataError: the sample is too small for that many tokens.
    """
    tokenizer = _untrained(params.pre_tokenizer)
    added_last = [END_OF_TEXT, *QWEN_ADDED_TOKENS] if params.pre_tokenizer == "qwen" else []
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocabulary_size - len(added_last),
        special_tokens=[] if added_last else [END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sampled_texts(params, documents), trainer)
    tokenizer.add_tokens([AddedToken(name, special=name == END_OF_TEXT, normalized=False) for name in added_last])
    if tokenizer.get_vocab_size() != params.vocabulary_size:
        raise DataError(
            f"the sampled documents of {documents} give {tokenizer.get_vocab_size()} tokens,"
            f" not {params.vocabulary_size}",
            fix="lower `vocabulary_size` or raise `sample_characters` of that tokenizer",
        )
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The id of `<|endoftext|>` in a tokenizer that `train_tokenizer` has made."""
    number = tokenizer.token_to_id(END_OF_TEXT)
    assert number is not None
    return number


def save_tokenizer(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write the tokenizer files of a model folder; `max_length` is the most tokens that the model reads."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
    ).save_pretrained(folder)
