"""Places inside teacher tokens, against slicing every token by hand."""

import numpy as np
import pytest

from moe_distill.alignment.inside import places_inside

from .test_vocabulary_map import pairs


@pytest.mark.parametrize("name", ["full", "lossy", "sentencepiece", "from sentencepiece"])
def test_places_are_the_slices_of_every_token(name: str) -> None:
    teacher, student = pairs()[name]
    rows = len(teacher.token_bytes.table) + 7
    found = places_inside(teacher, student, rows)
    assert found.counts.tolist() == [len(token or b"") for token in teacher.token_bytes.table] + [0] * 7
    starts = np.cumsum(found.counts) - found.counts
    table = student.token_bytes.table
    before: dict[int, bytes] = {}
    for start, token in zip(starts.tolist(), teacher.token_bytes.table, strict=False):
        for place in range(len(token or b"")):
            assert token is not None
            number, student_id = int(found.prefixes[start + place]), int(found.student_ids[start + place])
            assert before.setdefault(number, token[:place]) == token[:place]
            fitting = [len(entry) for entry in table if entry and token[place:].startswith(entry)]
            assert (0 if student_id < 0 else len(table[student_id] or b"")) == max(fitting, default=0)
            assert student_id < 0 or token[place:].startswith(table[student_id] or b"?")
    assert len(set(before.values())) == len(before)  # equal bytes, equal numbers
