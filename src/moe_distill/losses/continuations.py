"""Count which student token follows where the teacher's next token is a given one."""

import torch

from moe_distill.losses.vocabulary import Continuations, pair_keys, pairs_of
from moe_distill.shards.windows import WindowStore


def count_continuations(windows: WindowStore) -> Continuations:
    """Pairs of next tokens at all aligned positions of a split, file by file."""
    keys, counts = [], []
    for student_ids, teacher_ids in zip(
        windows.reader.columns("token_ids"), windows.reader.columns("next_teacher_ids"), strict=True
    ):
        aligned = teacher_ids >= 0
        found, n_found = pair_keys(teacher_ids[aligned].long(), student_ids[aligned].long()).unique(return_counts=True)
        keys.append(found)
        counts.append(n_found)
    merged, place = torch.cat(keys).unique(return_inverse=True)
    totals = torch.zeros(len(merged), dtype=torch.int64).index_add(0, place, torch.cat(counts))
    return Continuations(*pairs_of(merged), totals)
