"""Stretches of a batch's positions whose logits are held at once, and where their targets lie."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from moe_distill.targets.sparse_target import SparseTarget


@dataclass(frozen=True)
class Stretch:
    """Positions [start, stop), and the entries and samples of their targets, [first, last) each."""

    start: int
    stop: int
    entries: tuple[int, int] = (0, 0)
    samples: tuple[int, int] = (0, 0)


def stretches(n_positions: int, chunk_tokens: int, target: SparseTarget | None) -> tuple[Stretch, ...]:
    """Cut positions into stretches of at most `chunk_tokens`.

    Known before a step, so that a GPU need not tell where in its lists a stretch begins.
    """
    edges = [*range(0, n_positions, chunk_tokens), n_positions]
    none = [0] * len(edges)
    entries = none if target is None else _first_at(target.entry_positions_Z, edges)
    samples = none if target is None else _first_at(target.sample_positions_Y, edges)
    bounds = zip(pairwise(edges), pairwise(entries), pairwise(samples), strict=True)
    return tuple(Stretch(*positions, of_entries, of_samples) for positions, of_entries, of_samples in bounds)


def _first_at(positions: Tensor, edges: list[int]) -> list[int]:
    """How many of some ascending positions lie before each edge."""
    found: list[int] = torch.searchsorted(positions, torch.tensor(edges, dtype=positions.dtype)).tolist()
    return found
