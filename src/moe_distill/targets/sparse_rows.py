"""Sparse rows as flat lists: most places of a padded table would be empty, and each would be sorted and gathered.

Shapes: N rows, Z entries of all rows, X the same before those of one id are added up, U entries of the fullest row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEGATIVE_INFINITY = float("-inf")


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


@dataclass(frozen=True)
class Entries:
    """Ids of each row and their log-probabilities."""

    rows: Tensor  # int64 [Z], ascending
    ids: Tensor  # int64 [Z], ascending within a row
    logprobs: Tensor  # [Z]

    def without(self, gone_Z: Tensor) -> "Entries":
        return Entries(self.rows[~gone_Z], self.ids[~gone_Z], self.logprobs[~gone_Z])


def merged(rows_X: Tensor, ids_X: Tensor, logprobs_X: Tensor) -> Entries:
    """Add up what a row has of one id; log-probabilities of -inf are dropped."""
    is_entry_X = logprobs_X > NEGATIVE_INFINITY
    keys_Z, place_X = pair_keys(rows_X[is_entry_X], ids_X[is_entry_X]).unique(return_inverse=True)
    return Entries(*pairs_of(keys_Z), grouped_logsumexp(logprobs_X[is_entry_X], place_X, len(keys_Z)))


def grouped_logsumexp(values_X: Tensor, groups_X: Tensor, n_groups: int) -> Tensor:
    """Log of the sum of exp of each group's values, [n_groups]; -inf for a group without any."""
    peaks = values_X.new_full((n_groups,), NEGATIVE_INFINITY).scatter_reduce(0, groups_X, values_X, "amax")
    sums = torch.zeros_like(peaks).index_add(0, groups_X, (values_X - peaks[groups_X]).exp())
    return sums.log() + peaks.clamp_min(torch.finfo(peaks.dtype).min)


def probs_at(entries: Entries, rows_X: Tensor, ids_X: Tensor) -> Tensor:
    """Probability of some ids of some rows, [X]; 0 where there is no entry."""
    place_X = index_of(pair_keys(entries.rows, entries.ids), pair_keys(rows_X, ids_X))
    return F.pad(entries.logprobs.exp(), (0, 1))[place_X]  # -1, nowhere, is the 0 at the end


def padded(rows_X: Tensor, values_X: Tensor, n_rows: int, fill: float) -> Tensor:
    """The values of each row side by side, [N, S] with S at least 1; `fill` where a row has fewer.

    Args:
        rows_X: ascending.
    """
    counts_N = torch.bincount(rows_X, minlength=n_rows)
    width = int(F.pad(counts_N, (0, 1), value=1).max())
    columns_X = torch.arange(len(rows_X), device=rows_X.device) - (counts_N.cumsum(0) - counts_N)[rows_X]
    empty_NU = values_X.new_full((n_rows, width), fill)
    return empty_NU.index_put((rows_X, columns_X), values_X)
