"""Every place inside every teacher token: what comes before it, and the student's token from there on.

A student that stands inside a teacher token asks which teacher tokens begin with the bytes written so far (equal
bytes before a place have equal numbers), and which of its own tokens comes next in each: the longest that the
remaining bytes begin with.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import longest_prefix


@dataclass(frozen=True)
class Places:
    """The places of one token side by side, the tokens in order of their ids."""

    counts: NDArray[np.int32]  # [rows of the teacher's output matrix]: bytes of each token
    prefixes: NDArray[np.int32]  # [places]: number of the bytes before the place
    student_ids: NDArray[np.int32]  # [places]: -1: no student token


def places_inside(teacher: Encoder, student: Encoder, output_rows: int) -> Places:
    """All places of the teacher's vocabulary.

    Args:
        output_rows: rows of the teacher's output matrix; those beyond its tokenizer's ids have no bytes.
    """
    by_bytes = student.token_bytes.by_bytes()
    numbers: dict[bytes, int] = {}

    @cache
    def student_id(rest: bytes) -> int:
        return longest_prefix(by_bytes, rest)

    prefixes, student_ids = [], []
    for token in (token for token in teacher.token_bytes.table if token is not None):
        for place in range(len(token)):
            prefixes.append(numbers.setdefault(token[:place], len(numbers)))
            student_ids.append(student_id(token[place:]))
    counts = np.zeros(output_rows, dtype=np.int32)
    counts[: len(teacher.token_bytes.table)] = teacher.token_bytes.lengths
    return Places(counts, np.array(prefixes, dtype=np.int32), np.array(student_ids, dtype=np.int32))
