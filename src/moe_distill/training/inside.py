"""Positions inside a teacher token, read for a batch."""

from pathlib import Path

import torch
from torch import Tensor

from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import read_rows
from moe_distill.shards.vocabulary_store import read_places
from moe_distill.shards.window_store import WindowStore
from moe_distill.targets.inside import InsidePlaces, InsideText, inside_places
from moe_distill.training.batch import Inside


def load_places(vocabulary_map: Path, frequencies_R: Tensor) -> InsidePlaces:
    """All places inside the teacher's tokens, from data/windows/student/vocabulary_map.

    Args:
        frequencies_R: of each teacher id in the text.
    """
    places = read_places(vocabulary_map)
    return inside_places(places.counts, places.prefixes, places.student_ids, frequencies_R)


def read_inside(windows: WindowStore, targets: ShardReader, numbers: list[int]) -> Inside:
    """The positions of windows that are not aligned, from each window's first common boundary on.

    In stretches where both sides have several tokens some of them stand in a later teacher token than the one that
    began at the boundary; which ones the length of that token tells (`losses.inside`).
    """
    rows_of_windows, positions, text = [], [], []
    first_position = 0
    for number in numbers:
        rows, next_ids, ids = (
            windows.tokens(name, number) for name in ("teacher_rows", "next_teacher_ids", "token_ids")
        )
        boundary = _boundary_before(rows >= 0)
        inside = ((rows < 0) & (boundary >= 0)).nonzero().squeeze(1)
        before = boundary[inside]
        lengths = windows.token_bytes[ids.long()]
        starts = lengths.cumsum(0) - lengths
        rows_of_windows.append(rows[before])
        positions.append(inside + first_position)
        text.append(torch.stack([next_ids[before].long(), starts[inside] - starts[before], ids[inside].long()]))
        first_position += len(rows)
    return Inside(torch.cat(positions), read_rows(targets, rows_of_windows), InsideText(*torch.cat(text, dim=1)))


def _boundary_before(is_aligned: Tensor) -> Tensor:
    """The number of the last aligned position up to each position; -1: none."""
    return torch.where(is_aligned, torch.arange(len(is_aligned)), -1).cummax(0).values
