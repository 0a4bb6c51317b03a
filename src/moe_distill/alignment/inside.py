"""Every place inside every teacher token: what comes before it, and the student's token from there on.

A student that stands inside a teacher token asks which teacher tokens begin with the bytes written so far (equal
bytes before a place have equal numbers), and which of its own tokens comes next in each: the first of its own
segmentation of the remaining bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import first_student_ids


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
    numbers: dict[bytes, int] = {}
    rest_numbers: dict[bytes, int] = {}
    prefixes, rests = [], []
    for token in (token for token in teacher.token_bytes.table if token is not None):
        for place in range(len(token)):
            prefixes.append(numbers.setdefault(token[:place], len(numbers)))
            rests.append(rest_numbers.setdefault(token[place:], len(rest_numbers)))
    student_ids = first_student_ids(student, list(rest_numbers))[rests]
    counts = np.zeros(output_rows, dtype=np.int32)
    counts[: len(teacher.token_bytes.table)] = teacher.token_bytes.lengths
    return Places(counts, np.array(prefixes, dtype=np.int32), student_ids)
