"""The merge rules of a BPE tokenizer, as ids."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.encode import Encoder


@dataclass(frozen=True)
class MergeColumns:
    """One row a merge, the first to be applied first."""

    lefts: NDArray[np.int32]
    rights: NDArray[np.int32]
    results: NDArray[np.int32]  # what left and right become
    are_blank: NDArray[np.int8]  # 1: the result is whitespace alone


def merges_of(encoder: Encoder) -> MergeColumns:
    """The merges of a tokenizer; no row unless it is a BPE in which each token is made by one merge.

    Converted SentencePiece tokenizers list every way to make a token; which of them is taken, a text must show.
    """
    model = json.loads(encoder.tokenizer.to_str())["model"]
    pairs = model["merges"] if model["type"] == "BPE" and not model["continuing_subword_prefix"] else []
    results = [left + right for left, right in pairs]
    if len(set(results)) < len(results):
        pairs = results = []
    ids, table = model["vocab"], encoder.token_bytes.table
    result_ids = [ids[token] for token in results]
    return MergeColumns(
        np.array([ids[left] for left, _ in pairs], dtype=np.int32),
        np.array([ids[right] for _, right in pairs], dtype=np.int32),
        np.array(result_ids, dtype=np.int32),
        np.array([(table[number] or b"").isspace() for number in result_ids], dtype=np.int8),
    )
