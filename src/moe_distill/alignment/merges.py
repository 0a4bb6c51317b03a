"""The merge rules of a BPE tokenizer, as ids."""

import json

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


def merges_of(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """int32 [merges, 3]: left id, right id and what they become, the first to be applied first; none without BPE."""
    model = json.loads(tokenizer.to_str())["model"]
    pairs = model["merges"] if model["type"] == "BPE" else []
    ids = model["vocab"]
    rows = [(ids[left], ids[right], ids[left + right]) for left, right in pairs]
    return np.array(rows, dtype=np.int32).reshape(-1, 3)
