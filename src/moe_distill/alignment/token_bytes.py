"""The bytes that each token id of a tokenizer stands for.

Two families are supported. Byte-level BPE (GPT-2, Llama-3, Qwen, SmolLM) writes each byte as one printable character.
SentencePiece with byte fallback (Llama-2, Mistral, Gemma) writes a space as U+2581, and as `<0xNN>` a byte that no
other token has. Special tokens stand for no text and have no bytes. Added tokens that are not special (`<think>` in
Qwen3) stand for their content, unless they are tokens of the model too (runs of spaces in Gemma, written with U+2581).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moe_distill.errors import DataError

SPACE_MARK = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _AddedToken(TypedDict):
    id: int
    content: str
    special: bool


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of every id of a tokenizer.

    Attributes:
        table: by id; None for an id that stands for no text.
        is_fallback: by id; True for a SentencePiece `<0xNN>`, which is used only where no other token fits.
        spelling: uint8; the bytes of all ids, one after the other.
        starts, lengths: int64 [ids]; where the bytes of each id begin in `spelling`, and how many they are (0 for an id
            that stands for no text).
    """

    table: tuple[bytes | None, ...]
    is_fallback: tuple[bool, ...]
    spelling: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def join(self, ids: NDArray[np.int64]) -> bytes:
        """The bytes that a sequence of tokens spells; an id that stands for no text adds none."""
        lengths = self.lengths[ids]
        before = np.cumsum(lengths) - lengths
        places = np.repeat(self.starts[ids] - before, lengths)
        places += np.arange(len(places))
        return bytes(self.spelling[places])

    def by_bytes(self) -> dict[bytes, int]:
        """The id of each byte string; of several ids one that is no byte fallback, then the smallest."""
        ids = sorted(range(len(self.table)), key=lambda number: (self.is_fallback[number], number), reverse=True)
        return {token: number for number in ids if (token := self.table[number]) is not None}


def gpt2_alphabet() -> dict[str, int]:
    """Byte of each character in byte-level BPE (Radford et al. 2019): printable Latin-1 bytes are themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return alphabet


def token_bytes(tokenizer: Tokenizer, name: str) -> TokenBytes:
    """The bytes of the tokens of a tokenizer of either family.

    Args:
        name: of the tokenizer, for the error.

    Raises:
        DataError: the tokenizer is of neither family, or has no tokens.
    """
    description = json.loads(tokenizer.to_str())
    model, kinds = description["model"], {*_kinds(description["decoder"]), *_kinds(description["pre_tokenizer"])}
    if "ByteLevel" in kinds and model["type"] == "BPE":
        alphabet = gpt2_alphabet()
        decode: Callable[[str], bytes | None] = partial(_byte_level, alphabet)
    elif "ByteFallback" in kinds and model["type"] in ("BPE", "Unigram"):
        decode = _sentencepiece
    else:
        raise DataError(
            f"tokenizer {name} is neither byte-level BPE nor SentencePiece with byte fallback",
            f"its model is {model['type']}, its decoder and pre-tokenizer are {', '.join(sorted(kinds)) or 'absent'}",
            "choose a model whose tokenizer.json has a ByteLevel or ByteFallback decoder",
        )
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise DataError(f"tokenizer {name} has no tokens", fix="choose another model")
    table: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        table[number] = decode(token)
    of_model = set(tokenizer.get_vocab(with_added_tokens=False).values())
    for added in _added_tokens(description):
        if added["special"]:
            table[added["id"]] = None
        elif added["id"] not in of_model or table[added["id"]] is None:
            table[added["id"]] = added["content"].encode()
    unknown = _unknown_id(model, vocabulary)
    if unknown is not None:
        table[unknown] = None
    is_fallback = [False] * len(table)
    if "ByteLevel" not in kinds:
        for token, number in vocabulary.items():
            is_fallback[number] = BYTE_TOKEN.fullmatch(token) is not None
    spelled = [token or b"" for token in table]
    lengths = np.array([len(token) for token in spelled], dtype=np.int64)
    return TokenBytes(
        table=tuple(token or None for token in table),
        is_fallback=tuple(is_fallback),
        spelling=np.frombuffer(b"".join(spelled), np.uint8),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


def _added_tokens(description: dict[str, object]) -> list[_AddedToken]:
    added = description["added_tokens"]
    assert isinstance(added, list)
    return added


def _unknown_id(model: Mapping[str, object], vocabulary: Mapping[str, int]) -> int | None:
    """The id of the unknown token, which may not be marked as special; None: the model has none."""
    unknown = model.get("unk_id", model.get("unk_token"))  # Unigram names an id, BPE a token
    return unknown if unknown is None or isinstance(unknown, int) else vocabulary.get(str(unknown))


def _kinds(component: object) -> Iterator[str]:
    """Yield the `type` of a component of tokenizer.json and of all components nested in it."""
    if isinstance(component, dict):
        if isinstance(component.get("type"), str):
            yield component["type"]
        for value in component.values():
            yield from _kinds(value)
    elif isinstance(component, list):
        for value in component:
            yield from _kinds(value)


def _byte_level(alphabet: dict[str, int], token: str) -> bytes | None:
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:  # a character outside the alphabet: no text is encoded with this token
        return None


def _sentencepiece(token: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE_MARK, " ").encode()
