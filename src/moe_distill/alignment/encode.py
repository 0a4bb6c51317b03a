"""Encode texts in batches, and prove for each text that its tokens spell it byte for byte."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moe_distill.alignment.invented_space import without_invented_space
from moe_distill.alignment.token_bytes import TokenBytes, token_bytes
from moe_distill.alignment.tokenizer_rules import TYPOGRAPHY, changing_normalizer, rules
from moe_distill.errors import DataError

# What any text can contain: capitals, punctuation, digits, indentation, blank lines, blanks at either end.
ORDINARY_TEXT = ' The fox said: "It isn\'t 42!"\n\n    (quick, brown; lazy)  dogs.\n'


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that adds nothing to a text, with the bytes of its tokens."""

    tokenizer: Tokenizer
    token_bytes: TokenBytes
    prefix_id: int  # id of the token that begins every window (the model's BOS, else its EOS)
    name: str  # for errors


@dataclass(frozen=True)
class Encoded:
    """Token ids of several texts, one after the other.

    Attributes:
        ids: int64 [tokens].
        counts: int64 [texts]; tokens of each text, 0 for a misspelled one.
        misspelled: (number of the text, first differing byte) of each text that its tokens do not spell.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    misspelled: list[tuple[int, int]]


def make_encoder(tokenizer: Tokenizer, prefix_id: int, name: str) -> Encoder:
    """Prepare a tokenizer for windows.

    Args:
        prefix_id: id of the token that begins every window.
        name: of the tokenizer, for errors.

    Raises:
        DataError: the tokenizer is of an unknown family (see `token_bytes`), or changes text as a rule.
    """
    encoder = Encoder(without_invented_space(tokenizer), token_bytes(tokenizer, name), prefix_id, name)
    for _, offset in encode(encoder, [ORDINARY_TEXT.encode()]).misspelled:
        why = changing_normalizer(encoder.tokenizer, ORDINARY_TEXT) or rules(encoder.tokenizer)
        _refuse(name, f"its tokens do not spell {ORDINARY_TEXT!r} from byte {offset} on: {why}")
    if why := changing_normalizer(encoder.tokenizer, TYPOGRAPHY):
        _refuse(name, why)
    return encoder


def _refuse(name: str, why: str) -> NoReturn:
    fix = "choose a model whose tokenizer keeps letter case, blanks and characters"
    raise DataError(f"tokenizer {name} changes ordinary text", why, fix)


def encode(encoder: Encoder, texts: Sequence[bytes]) -> Encoded:
    """Encode UTF-8 texts on all cores; a text that its tokens do not spell is reported, and left empty.

    Raises:
        DataError: the tokenizer fails, as one without an unknown token does.
    """
    ids, counts = _token_ids(encoder, texts)
    spelled = encoder.token_bytes.join(ids)
    bytes_before = np.append(0, np.cumsum(encoder.token_bytes.lengths[ids]))
    edges = bytes_before[np.append(0, np.cumsum(counts))].tolist()
    misspelled = []
    for number, ((start, stop), text) in enumerate(zip(pairwise(edges), texts, strict=True)):
        if spelled[start:stop] != text:
            misspelled.append((number, _first_difference(spelled[start:stop], text)))
    return without(Encoded(ids, counts, misspelled), [number for number, _ in misspelled])


def _token_ids(encoder: Encoder, texts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of all texts, one after the other, and tokens of each."""
    try:
        encodings = encoder.tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
    except Exception as error:  # the Rust library raises plain Exception
        raise DataError(
            f"tokenizer {encoder.name} cannot encode the text", str(error), "choose another model"
        ) from error
    ids = np.array(list(chain.from_iterable(encoding.ids for encoding in encodings)), dtype=np.int64)
    return ids, np.array([len(encoding) for encoding in encodings], dtype=np.int64)


def without(encoded: Encoded, texts: Sequence[int]) -> Encoded:
    """A copy in which the texts of these numbers have no tokens."""
    keep = np.ones(len(encoded.counts), dtype=np.bool_)
    keep[texts] = False
    return Encoded(encoded.ids[np.repeat(keep, encoded.counts)], np.where(keep, encoded.counts, 0), encoded.misspelled)


def _first_difference(spelled: bytes, text: bytes) -> int:
    shorter = min(len(spelled), len(text))
    differs = np.frombuffer(spelled, np.uint8, shorter) != np.frombuffer(text, np.uint8, shorter)
    return int(differs.argmax()) if differs.any() else shorter
