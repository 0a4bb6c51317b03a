"""How each of the teacher's tokens may begin, and what the student makes of the bytes that are then left of it.

Where the student's token ends inside one of the teacher's, other teacher tokens that begin with the same bytes were as
possible. To know which, each beginning has a number that it shares with all of the same bytes; and each string that may
be left of a token has the student's first token of it, by the rules of the vocabulary map.
"""

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import first_student_ids


def token_beginnings(teacher: Encoder, student: Encoder) -> dict[str, NDArray[np.int32]]:
    """The columns of the vocabulary map's tables `teacher_tokens`, `beginnings` and `rests`."""
    numbers: dict[bytes, int] = {}
    rests: dict[bytes, int] = {}
    beginnings, left = [], []
    for token in teacher.token_bytes.table:
        for n_bytes in range(1, len(token or b"") + 1):
            assert token is not None
            rest = token[n_bytes:]
            beginnings.append(numbers.setdefault(token[:n_bytes], len(numbers)))
            left.append(rests.setdefault(rest, len(rests)) if rest else -1)
    same_bytes = [rests.get(token or b"", -1) for token in teacher.token_bytes.table]
    return {
        "teacher_bytes": teacher.token_bytes.lengths.astype(np.int32),
        "token_rests": np.array(same_bytes, dtype=np.int32),
        "beginnings": np.array(beginnings, dtype=np.int32),
        "rests": np.array(left, dtype=np.int32),
        "rest_student_ids": first_student_ids(student, list(rests)),
    }
