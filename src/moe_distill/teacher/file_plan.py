"""Which windows each file of a capture holds, and which of them run through the teacher together."""

from collections.abc import Iterator, Sequence


def plan_files(token_counts: Sequence[int], batch_windows: int, shard_positions: int) -> list[range]:
    """The windows of each file: whole batches, up to the batch that fills it.

    Args:
        token_counts: tokens of each window of the split.
        batch_windows: windows of a batch.
        shard_positions: positions at which a file is full.
    """
    files, first, filled = [], 0, 0
    for batch in batches_of(range(len(token_counts)), batch_windows):
        filled += sum(token_counts[batch.start : batch.stop])
        if filled >= shard_positions or batch.stop == len(token_counts):
            files.append(range(first, batch.stop))
            first, filled = batch.stop, 0
    return files


def batches_of(windows: range, batch_windows: int) -> Iterator[range]:
    """Yield consecutive windows, `batch_windows` at a time."""
    for start in range(windows.start, windows.stop, batch_windows):
        yield range(start, min(start + batch_windows, windows.stop))
