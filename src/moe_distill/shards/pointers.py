"""Check that the teacher rows in a student's windows exist in the teacher targets; done once, when both are opened."""

import torch
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import NextToken, WindowStore


def check_pointers(windows: WindowStore, targets: ShardReader) -> None:
    """Refuse teacher rows and ids that do not exist, and rows of a window that do not rise or lie in two files.

    `last_teacher_rows` rise too, but stay while several student tokens begin in one of the teacher's.

    Raises:
        DataError: there is one; names the file, the token's row and the values.
    """
    reader = windows.reader
    for name in ("teacher_rows", "last_teacher_rows"):
        reader.expect(name, range(-1, targets.rows("positions")))
    for name in ("next_teacher_ids", "last_teacher_ids"):
        reader.expect(name, range(-1, int(str(targets.index.metadata["output_rows"]))))
    reader.expect("next_tokens", range(len(NextToken)))
    first_rows = [targets.first_row("positions", number) for number in range(1, len(targets.index.files))]
    stops = torch.tensor(first_rows, dtype=torch.int64)
    for number in range(len(reader.index.files)):
        _check(reader, number, stops, ("teacher_rows", "next_teacher_ids"), least_step=1)
        _check(reader, number, stops, ("last_teacher_rows", "last_teacher_ids"), least_step=0)


def _check(reader: ShardReader, number: int, file_stops: Tensor, names: tuple[str, str], least_step: int) -> None:
    """Check the rows and ids of one file.

    Args:
        names: of the fields that hold them.
        least_step: from a row of a window to the next.
    """
    rows, ids, counts = (reader.column(name, number) for name in (*names, "token_counts"))
    wrong = ((rows >= 0) != (ids >= 0)).nonzero()
    if len(wrong):
        token = int(wrong[0])
        _refuse(reader, number, token, names[0], rows, f"with {names[1]} {int(ids[token])}")
    pointing = (rows >= 0).nonzero().squeeze(1)
    window = torch.bucketize(pointing, counts.long().cumsum(0), right=True)
    file = torch.bucketize(rows[pointing], file_stops, right=True)
    follows = window[1:] == window[:-1]
    wrong = (follows & ((rows[pointing].diff() < least_step) | (file.diff() != 0))).nonzero()
    if len(wrong):
        before, token = (int(pointing[int(wrong[0]) + step]) for step in (0, 1))
        bound = "higher" if least_step else "no lower"
        why = f"after {int(rows[before])} in one window: it must be {bound}, in one file"
        _refuse(reader, number, token, names[0], rows, why)


def _refuse(reader: ShardReader, number: int, token: int, name: str, rows: Tensor, why: str) -> None:
    place = f"{reader.path(number)}: row {reader.first_row('tokens', number) + token} of tokens"
    raise DataError(f"{place} has {name} {int(rows[token])} {why}", fix=reader.fix)
