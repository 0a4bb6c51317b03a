"""The merge rules of a BPE tokenizer as ids (Sennrich et al. 2016)."""

import json
from collections.abc import Mapping, Sequence

import torch

from moe_distill.alignment.encode import Encoder
from moe_distill.shards.vocabulary_store import Merges, out_of_order


def merges_of(encoder: Encoder) -> Merges:
    """The merges of a tokenizer in order; none unless it is a BPE where one merge makes each token, after its parts.

    Converted SentencePiece tokenizers list every pair that makes a token; which one is used depends on the text.
    """
    model = json.loads(encoder.tokenizer.to_str())["model"]
    pairs = model["merges"] if model["type"] == "BPE" and not model["continuing_subword_prefix"] else []
    if len({left + right for left, right in pairs}) < len(pairs):
        pairs = []
    merges = _as_ids(pairs, model["vocab"])
    return _as_ids([], {}) if out_of_order(merges, len(encoder.token_bytes.table)).any() else merges


def _as_ids(pairs: Sequence[Sequence[str]], ids: Mapping[str, int]) -> Merges:
    """Pairs of token strings as tensors of ids."""
    return Merges(
        lefts=torch.tensor([ids[left] for left, _ in pairs], dtype=torch.int64),
        rights=torch.tensor([ids[right] for _, right in pairs], dtype=torch.int64),
        results=torch.tensor([ids[left + right] for left, right in pairs], dtype=torch.int64),
    )
