"""Documents as windows of token ids for the tiny teacher: packed for training, one by one for its evaluation.

Shapes: B windows of a batch, L positions of a window; here N counts the tokens of all documents joined.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from tokenizers import Tokenizer

from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DataError

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs, targets


def packed_tokens(documents: Path, tokenizer: Tokenizer, end_id: int, folder: Path) -> torch.Tensor:
    """The token ids of all documents of a parquet file, joined in order with `end_id` after each: int32 [N].

    They lie in a file without a name, which goes with them; the system holds in memory what it has room for.

    Args:
        folder: where that file is made; it must exist.
    """
    with TemporaryFile(dir=folder) as file:
        for batch in read_documents(documents):
            texts = [document.text for document in batch]
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                file.write(np.array([*encoding.ids, end_id], dtype=np.int32).tobytes())
        return torch.from_numpy(np.memmap(file, dtype=np.int32, mode="c"))


def training_batches(tokens_N: torch.Tensor, end_id: int, length: int, windows: int, seed: int) -> Iterator[Batch]:
    """Yield (inputs, targets) forever, each int64 [B, L] with B = `windows` and L = `length`.

    Each pass over the tokens cuts them at another offset and takes the pieces in another order. Every input begins with
    `end_id`, the prefix token that every window of the later stages begins with.

    Raises:
        DataError: there are too few tokens for one window.
    """
    if len(tokens_N) < 2 * length:
        raise DataError(
            f"the training documents give {len(tokens_N)} tokens, too few for windows of {length}",
            fix="add documents to the corpus, or lower the tiny teacher's `max_length`",
        )
    generator = torch.Generator().manual_seed(seed)
    starts: list[int] = []
    while True:
        while len(starts) < windows:
            offset = int(torch.randint(length, (), generator=generator))
            pieces = (len(tokens_N) - offset) // length
            starts += (offset + length * torch.randperm(pieces, generator=generator)).tolist()
        chosen, starts = starts[:windows], starts[windows:]
        targets_BL = torch.stack([tokens_N[start : start + length] for start in chosen]).long()
        inputs_BL = targets_BL.roll(1, dims=1)
        inputs_BL[:, 0] = end_id
        yield inputs_BL, targets_BL


def document_batches(texts: list[str], tokenizer: Tokenizer, end_id: int, length: int, windows: int) -> Iterator[Batch]:
    """Yield (inputs, targets), each int64 [B, L] with B <= `windows` and L <= `length`; every token is a target once.

    Windows of like length share a batch. Targets past a window's end are -100, which `F.cross_entropy` ignores.
    """
    rows = []
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        rows += [torch.tensor(encoding.ids[start : start + length]) for start in range(0, len(encoding.ids), length)]
    rows.sort(key=len)
    for first in range(0, len(rows), windows):
        targets_BL = torch.nn.utils.rnn.pad_sequence(rows[first : first + windows], True, padding_value=-100)
        inputs_BL = targets_BL.roll(1, dims=1).clamp(min=0)  # -100 becomes an id of 0, at positions without a target
        inputs_BL[:, 0] = end_id
        yield inputs_BL, targets_BL
