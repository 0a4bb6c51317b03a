"""Softmax over a matrix of logits, block by block: its log-sums, and a gradient that takes the logits' place.

Shapes: n rows, V columns.
"""

from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from moe_distill.utils.tensors import map_tensors

BLOCK_VALUES = {"cpu": 2**18, "cuda": 2**26}  # logits of a block: about a core's cache; enough to fill a GPU
LOWEST = torch.finfo(torch.float32).min  # instead of -inf as the peak of a row that has nothing: -inf - LOWEST is -inf


@dataclass(frozen=True)
class Pulls:
    """What the gradient of each row is made of, fp32 [n]: how much of which softmax over its logits, less the label's.

    The label's is subtracted before the gradient is rounded: in bf16 a probability of 0.998 is 1.
    """

    at_one: Tensor
    label_ids: Tensor  # int64 [n]
    labels: Tensor
    tempered: Tensor | None = None  # None: there is no loss at a temperature
    rest: Tensor | None = None  # of the tempered softmax over what was not removed, to be subtracted


@dataclass(frozen=True)
class Removed:
    """Log-sum of what stands at -inf in each row of the matrix and counts all the same, fp32 [n]; -inf: nothing."""

    at_one: Tensor
    tempered: Tensor


@dataclass(frozen=True)
class LogSums:
    """Log of the sum of exp of each row, fp32 [n]."""

    at_one: Tensor  # at T = 1
    tempered: Tensor
    rest: Tensor  # tempered, without what was removed; -inf where nothing is left


def softmax_(logits_nV: Tensor, temperature: float, removed: Removed | None, pulls: Pulls | None) -> LogSums:
    """The log-sums of each row; the logits become their gradient, or lose their meaning without `pulls`."""
    sums, start = [], 0
    for block in _blocks(logits_nV):
        rows = slice(start, start := start + len(block))
        of_rows = itemgetter((rows, None))
        sums.append(_softmax_block(block, temperature, map_tensors(removed, of_rows), map_tensors(pulls, of_rows)))
    at_one, tempered, rest = (torch.cat(column).squeeze(-1) for column in zip(*sums, strict=True))
    return LogSums(at_one, tempered, rest)


def _softmax_block(
    block: Tensor, temperature: float, removed: Removed | None, pulls: Pulls | None
) -> tuple[Tensor, Tensor, Tensor]:
    values = block.float()  # itself where it is fp32
    scaled = values if temperature == 1.0 else values / temperature
    rest_at_one, sum_at_one = _exponentials_(values)
    rest, rest_sum = (rest_at_one, sum_at_one) if scaled is values else _exponentials_(scaled)
    at_one, tempered = rest_at_one, rest
    if removed is not None:
        at_one, tempered = torch.logaddexp(rest_at_one, removed.at_one), torch.logaddexp(rest, removed.tempered)
    if pulls is not None:
        scale_at_one = pulls.at_one * (rest_at_one - at_one).exp() / sum_at_one
        if pulls.tempered is not None:
            scale = pulls.tempered * (rest - tempered).exp()
            scale = (scale if pulls.rest is None else scale - pulls.rest) / rest_sum
            if scaled is values:
                scale_at_one += scale
            else:
                scaled.mul_(scale)
        values.mul_(scale_at_one)
        if scaled is not values:
            values.add_(scaled)
        values.scatter_add_(1, pulls.label_ids, -pulls.labels)
        if values is not block:
            block.copy_(values)
    return at_one, tempered, rest


def _exponentials_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each row's logits into multiples of their exponentials.

    Returns:
        The log-sum of the row, and the sum of what now stands there; at least the smallest number, to divide by.
    """
    peak = logits.amax(-1, keepdim=True).clamp_min_(LOWEST)
    total = logits.sub_(peak).exp_().sum(-1, keepdim=True)
    return peak + total.log(), total.clamp_min_(torch.finfo(torch.float32).tiny)


def _blocks(logits_nV: Tensor) -> tuple[Tensor, ...]:
    blocks: tuple[Tensor, ...] = logits_nV.split(max(1, BLOCK_VALUES[logits_nV.device.type] // logits_nV.shape[1]))
    return blocks
