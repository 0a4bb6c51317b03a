"""Which windows a step reads: a pure function of the seed and the step, so that a resume needs no state.

Windows are shuffled, grouped by length inside pools of many batches, and the batches shuffled again (R30):
little padding, and no order by length over time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

POOL_BATCHES = 32


def batches_from(lengths: Tensor, batch_windows: int, seed: int, first_step: int) -> Iterator[list[int]]:
    """Window numbers of each optimizer step from `first_step` on, without end.

    Args:
        lengths: tokens of each window, int64 [windows], at least `batch_windows` of them.
    """
    epoch, place = divmod(first_step, len(lengths) // batch_windows)
    while True:
        yield from epoch_batches(lengths, batch_windows, seed, epoch)[place:]
        epoch, place = epoch + 1, 0


def epoch_batches(lengths: Tensor, batch_windows: int, seed: int, epoch: int) -> list[list[int]]:
    """All batches of an epoch, in order; an incomplete last batch is left out."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    order = order[: len(lengths) // batch_windows * batch_windows]
    pools = order.split(POOL_BATCHES * batch_windows)
    grouped = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
    batches = grouped.view(-1, batch_windows)
    shuffled: list[list[int]] = batches[torch.randperm(len(batches), generator=generator)].tolist()
    return shuffled


def spread_windows(total: int, count: int) -> list[int]:
    """Numbers of at most `count` windows, evenly spread over a split: its sources lie one after the other."""
    count = min(count, total)
    return [number * total // count for number in range(count)]
