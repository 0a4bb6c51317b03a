"""The merge rules of a BPE tokenizer, as ids."""

import json

import torch

from moe_distill.alignment.encode import Encoder
from moe_distill.shards.windows import Merges


def merges_of(encoder: Encoder) -> Merges:
    """The merges of a tokenizer; none unless it is a BPE in which each token is made by one merge.

    Converted SentencePiece tokenizers list every way to make a token; which of them is taken, a text must show.
    """
    model = json.loads(encoder.tokenizer.to_str())["model"]
    pairs = model["merges"] if model["type"] == "BPE" and not model["continuing_subword_prefix"] else []
    results = [left + right for left, right in pairs]
    if len(set(results)) < len(results):
        pairs = results = []
    ids, table = model["vocab"], encoder.token_bytes.table
    result_ids = [ids[token] for token in results]
    return Merges(
        lefts=torch.tensor([ids[left] for left, _ in pairs], dtype=torch.int64),
        rights=torch.tensor([ids[right] for _, right in pairs], dtype=torch.int64),
        results=torch.tensor(result_ids, dtype=torch.int64),
        are_blank=torch.tensor([(table[number] or b"").isspace() for number in result_ids], dtype=torch.bool),
    )
