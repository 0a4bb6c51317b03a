"""Check that the teacher rows in a student's windows exist in the teacher targets; done once, when both are opened."""

import torch
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import NextToken, WindowStore


def check_pointers(windows: WindowStore, targets: ShardReader) -> None:
    """Refuse teacher rows and ids that do not exist, and teacher rows of a window that do not rise or lie in two files.

    Raises:
        DataError: there is one; names the file, the token's row and the values.
    """
    reader = windows.reader
    reader.expect("teacher_rows", range(-1, targets.rows("positions")))
    reader.expect("next_teacher_ids", range(-1, int(str(targets.index.metadata["output_rows"]))))
    reader.expect("next_tokens", range(len(NextToken)))
    first_rows = [targets.first_row("positions", number) for number in range(1, len(targets.index.files))]
    stops = torch.tensor(first_rows, dtype=torch.int64)
    for number in range(len(reader.index.files)):
        _check(reader, number, stops)


def _check(reader: ShardReader, number: int, file_stops: Tensor) -> None:
    rows, next_ids, counts = (
        reader.column(name, number) for name in ("teacher_rows", "next_teacher_ids", "token_counts")
    )
    wrong = ((rows >= 0) != (next_ids >= 0)).nonzero()
    if len(wrong):
        token = int(wrong[0])
        _refuse(reader, number, token, rows, f"with the next teacher id {int(next_ids[token])}")
    aligned = (rows >= 0).nonzero().squeeze(1)
    window = torch.bucketize(aligned, counts.long().cumsum(0), right=True)
    file = torch.bucketize(rows[aligned], file_stops, right=True)
    follows = window[1:] == window[:-1]
    wrong = (follows & ((rows[aligned].diff() <= 0) | (file.diff() != 0))).nonzero()
    if len(wrong):
        before, token = (int(aligned[int(wrong[0]) + step]) for step in (0, 1))
        _refuse(reader, number, token, rows, f"after {int(rows[before])} in one window: it must be higher, in one file")


def _refuse(reader: ShardReader, number: int, token: int, rows: Tensor, why: str) -> None:
    place = f"{reader.path(number)}: row {reader.first_row('tokens', number) + token} of tokens"
    raise DataError(f"{place} has the teacher row {int(rows[token])} {why}", fix=reader.fix)
