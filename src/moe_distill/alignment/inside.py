"""Every place inside every teacher token: what comes before it, and the student's token from there on.

A student that stands inside a teacher token asks which teacher tokens begin with the bytes written so far (equal
bytes before a place have equal numbers), and which of its own tokens comes next in each: the first of its own
segmentation of the remaining bytes.
"""

import numpy as np
import torch

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import first_student_ids
from moe_distill.shards.vocabulary_store import Places


def places_inside(teacher: Encoder, student: Encoder, output_rows: int) -> Places:
    """All places of the teacher's vocabulary.

    Args:
        output_rows: rows of the teacher's output matrix; those beyond its tokenizer's ids have no bytes.
    """
    numbers: dict[bytes, int] = {}
    rest_numbers: dict[bytes, int] = {}
    prefixes, rests = [], []
    for token in (token for token in teacher.token_bytes.table if token is not None):
        for place in range(len(token)):
            prefixes.append(numbers.setdefault(token[:place], len(numbers)))
            rests.append(rest_numbers.setdefault(token[place:], len(rest_numbers)))
    student_ids = first_student_ids(student, list(rest_numbers))[rests]
    counts = np.zeros(output_rows, dtype=np.int64)
    counts[: len(teacher.token_bytes.table)] = teacher.token_bytes.lengths
    return Places(
        torch.from_numpy(counts), torch.tensor(prefixes, dtype=torch.int64), torch.from_numpy(student_ids).long()
    )
