"""Small tokenizers of both families, documents, and windows read back as plain lists."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe_distill.alignment.encode import ORDINARY_TEXT, Encoder, make_encoder
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import Cut, SplitCounts, WindowLimits
from moe_distill.corpus.documents import Document
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore

TEXT = "the quick brown fox jumps over the lazy dog; the dog sleeps, the fox runs. naïve café 東京 🙂 " * 20
TEXT += ORDINARY_TEXT


def byte_level(
    vocabulary_size: int, text: str = TEXT, digits: bool = False, full_alphabet: bool = True, split: bool = True
) -> Tokenizer:
    """A byte-level BPE trained on `text`; with `full_alphabet` off, bytes that the text lacks have no token."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    parts = [pre_tokenizers.Digits(individual_digits=True), byte_level] if digits else [byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if full_alphabet else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """A SentencePiece without merges."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdehilorwt", "\u2581hello"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def sentencepiece(style: str) -> Tokenizer:
    """A hand-made BPE with byte fallback, spaces marked by a "prepend" normaliser or by "metaspace"."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehilorwt"]
    merges = [("▁", "h"), ("e", "l"), ("l", "o"), ("▁h", "el"), ("▁hel", "lo"), ("▁", "w"), ("▁", "▁")]
    tokens += [left + right for left, right in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None
    return number


def encoder(tokenizer: Tokenizer, name: str = "toy") -> Encoder:
    return make_encoder(tokenizer, 0, name)


def document(text: str) -> Document:
    return Document(hashlib.sha256(text.encode()).hexdigest(), "test", text)


@dataclass(frozen=True)
class Window:
    """A window as plain values."""

    document: int
    start: int  # byte in the document
    stop: int
    ids: list[int]
    first_row: int  # number of its first token in the store
    fields: dict[str, list[int]]  # of the tokens table


@dataclass(frozen=True)
class Split:
    counts: SplitCounts
    teacher: list[Window]
    student: list[Window]


def make_split(
    texts: list[str],
    teacher: Encoder,
    student: Encoder,
    folder: Path,
    teacher_max_length: int = 16,
    student_max_length: int = 16,
    cut: Cut | None = None,
    shard_tokens: int = 1000,
) -> Split:
    """Cut documents into windows, and read the windows back."""
    limits = WindowLimits(teacher_max_length, student_max_length, shard_tokens, cut)
    documents = [[document(text)] for text in texts]
    split_counts = tokenize_split(
        documents, teacher, student, limits, folder / "teacher", folder / "student", "t", "s", ("T", "S")
    )
    return Split(split_counts, read(folder / "teacher", TEACHER_WINDOWS), read(folder / "student", STUDENT_WINDOWS))


def read(folder: Path, store_format: str) -> list[Window]:
    store = WindowStore(folder, store_format)
    column = {
        name: [value for part in store.reader.columns(name) for value in part.tolist()]
        for name in store.reader.index.fields
    }
    token_fields = [name for name, spec in store.reader.index.fields.items() if spec.table == "tokens"]
    return [
        Window(
            column["documents"][number],
            column["byte_starts"][number],
            column["byte_ends"][number],
            store.tokens("token_ids", number).tolist(),
            store.span(number).start,
            {name: store.tokens(name, number).tolist() for name in token_fields},
        )
        for number in range(len(store))
    ]


def token_ends(window: Window, owner: Encoder) -> list[int]:
    """Byte in the document after each token of a window, the slow way."""
    ends, place = [], window.start
    for token in window.ids:
        text = owner.token_bytes.table[token]
        assert text is not None
        place += len(text)
        ends.append(place)
    return ends
