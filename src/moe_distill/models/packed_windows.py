"""Documents as windows of token ids: packed to train on, document by document to measure on.

Shapes: N tokens of the packed stream, B windows of a batch, L positions of a window.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer

from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DataError

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs, targets


def packed_tokens(documents: Path, tokenizer: Tokenizer, end_id: int) -> torch.Tensor:
    """All documents of a parquet file in order, `end_id` after each: int32 ids [N]."""
    pieces = []
    for batch in read_documents(documents):
        ids: list[int] = []
        for encoding in tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False):
            ids += [*encoding.ids, end_id]
        pieces.append(torch.tensor(ids, dtype=torch.int32))
    return torch.cat(pieces)


def training_batches(tokens_N: torch.Tensor, end_id: int, length: int, windows: int, seed: int) -> Iterator[Batch]:
    """Yield (inputs, targets), each int64 [B, L], without end: B = `windows`, L = `length`.

    Each pass over the tokens cuts them at another offset and takes the pieces in another order. Every
    input begins with `end_id`, so that the model knows the prefix each window of the later stages has.

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
    """Yield (inputs, targets), each int64 [<= B, <= L], with every token of every text as a target once.

    Windows of about one length share a batch; targets past a window's end are -100, as `F.cross_entropy` skips.
    """
    rows = []
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        rows += [torch.tensor(encoding.ids[start : start + length]) for start in range(0, len(encoding.ids), length)]
    rows.sort(key=len)
    for first in range(0, len(rows), windows):
        targets_BL = torch.nn.utils.rnn.pad_sequence(rows[first : first + windows], True, padding_value=-100)
        inputs_BL = targets_BL.roll(1, dims=1).clamp(min=0)  # a row's last -100 lands in front, the others at no target
        inputs_BL[:, 0] = end_id
        yield inputs_BL, targets_BL
