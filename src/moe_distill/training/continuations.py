"""Count which student token follows where the teacher's next token is a given one."""

import torch

from moe_distill.losses.vocabulary import Continuations
from moe_distill.shards.windows import WindowStore


def count_continuations(windows: WindowStore) -> Continuations:
    """Pairs of next tokens at all aligned positions of a split, file by file."""
    pairs, counts = [torch.zeros(0, 2, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for student_ids, teacher_ids in zip(
        windows.reader.columns("token_ids"), windows.reader.columns("next_teacher_ids"), strict=True
    ):
        aligned = teacher_ids >= 0
        of_file = torch.stack([teacher_ids[aligned], student_ids[aligned]], dim=1).long()
        found, n_found = of_file.unique(dim=0, return_counts=True)
        pairs.append(found)
        counts.append(n_found)
    merged, place = torch.cat(pairs).unique(dim=0, return_inverse=True)
    totals = torch.zeros(len(merged), dtype=torch.int64).index_add(0, place, torch.cat(counts))
    return Continuations(merged[:, 0], merged[:, 1], totals)
