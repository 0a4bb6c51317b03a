"""Encode texts in batches and prove, text by text, that no byte was lost or invented."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moe_distill.alignment.invented_space import without_invented_space
from moe_distill.alignment.token_bytes import TokenBytes, token_bytes
from moe_distill.errors import DataError

# What every text may hold: capitals, punctuation, digits, indentation, blank lines, blanks at either end.
ORDINARY_TEXT = ' The fox said: "It isn\'t 42!"\n\n    (quick, brown; lazy)  dogs.\n'


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that encodes text as it stands, with the bytes of its tokens."""

    tokenizer: Tokenizer
    token_bytes: TokenBytes
    prefix_id: int  # begins every window (the model's BOS, else its EOS)
    name: str


@dataclass(frozen=True)
class Encoded:
    """Token ids of several texts, one after the other.

    Attributes:
        ids: int64 [tokens].
        counts: int64 [texts]; tokens of each text, 0 for a text that was lost.
        lost: (number of the text, first differing byte) of texts whose tokens do not spell them.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    lost: list[tuple[int, int]]


def make_encoder(tokenizer: Tokenizer, prefix_id: int, name: str) -> Encoder:
    """Prepare a tokenizer for windows.

    Raises:
        DataError: the tokenizer is of an unknown family (see `token_bytes`), or changes ordinary text; names it.
    """
    encoder = Encoder(without_invented_space(tokenizer), token_bytes(tokenizer, name), prefix_id, name)
    for _, offset in encode(encoder, [ORDINARY_TEXT.encode()]).lost:
        raise DataError(
            f"tokenizer {name} changes ordinary text",
            f"its tokens do not spell {ORDINARY_TEXT!r} from byte {offset} on",
            "choose a model whose tokenizer keeps letter case and blanks",
        )
    return encoder


def encode(encoder: Encoder, texts: Sequence[bytes]) -> Encoded:
    """Encode UTF-8 texts on all cores; a text whose tokens spell something else counts as lost.

    Raises:
        DataError: the tokenizer fails, as one does without a token for what it does not know; names it.
    """
    try:
        encodings = encoder.tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
    except Exception as error:  # the Rust library raises plain Exception
        raise DataError(
            f"tokenizer {encoder.name} cannot encode the text", str(error), "choose another model"
        ) from error
    ids = np.array(list(chain.from_iterable(encoding.ids for encoding in encodings)), dtype=np.int64)
    counts = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    spelled = encoder.token_bytes.join(ids)
    bytes_before = np.append(0, np.cumsum(encoder.token_bytes.lengths[ids]))
    edges = bytes_before[np.append(0, np.cumsum(counts))].tolist()
    lost = []
    for number, ((start, stop), text) in enumerate(zip(pairwise(edges), texts, strict=True)):
        if spelled[start:stop] != text:
            lost.append((number, _first_difference(spelled[start:stop], text)))
    return without(Encoded(ids, counts, lost), [number for number, _ in lost])


def without(encoded: Encoded, texts: Sequence[int]) -> Encoded:
    """The same, with the texts of these numbers left empty."""
    keep = np.ones(len(encoded.counts), dtype=np.bool_)
    keep[texts] = False
    return Encoded(encoded.ids[np.repeat(keep, encoded.counts)], np.where(keep, encoded.counts, 0), encoded.lost)


def _first_difference(spelled: bytes, text: bytes) -> int:
    shorter = min(len(spelled), len(text))
    differs = np.frombuffer(spelled, np.uint8, shorter) != np.frombuffer(text, np.uint8, shorter)
    return int(differs.argmax()) if differs.any() else shorter
