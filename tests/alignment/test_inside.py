"""Places inside teacher tokens, against slicing every token by hand."""

from contextlib import suppress

import numpy as np
import pytest

from moe_distill.alignment.encode import Encoder, encode
from moe_distill.alignment.inside import places_inside

from .test_vocabulary_map import pairs


def first_id(student: Encoder, rest: bytes) -> int:
    """The first token of its own segmentation where it is text that the student spells; else the longest that fits."""
    with suppress(UnicodeDecodeError):
        rest.decode()
        encoded = encode(student, [rest])
        if len(encoded.ids):
            return int(encoded.ids[0])
    by_bytes = student.token_bytes.by_bytes()
    fitting = [each for each in by_bytes if rest.startswith(each)]
    return by_bytes[max(fitting, key=len)] if fitting else -1


@pytest.mark.parametrize("name", ["full", "lossy", "sentencepiece", "from sentencepiece"])
def test_places_are_the_slices_of_every_token(name: str) -> None:
    teacher, student = pairs()[name]
    rows = len(teacher.token_bytes.table) + 7
    found = places_inside(teacher, student, rows)
    assert found.counts.tolist() == [len(token or b"") for token in teacher.token_bytes.table] + [0] * 7
    starts = np.cumsum(found.counts) - found.counts
    before: dict[int, bytes] = {}
    for start, token in zip(starts.tolist(), teacher.token_bytes.table, strict=False):
        for place in range(len(token or b"")):
            assert token is not None
            number, student_id = int(found.prefixes[start + place]), int(found.student_ids[start + place])
            assert before.setdefault(number, token[:place]) == token[:place]
            assert student_id == first_id(student, token[place:])
    assert len(set(before.values())) == len(before)  # equal bytes, equal numbers
