"""The beginnings of teacher tokens against the slow obvious version."""

import numpy as np
import pytest

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.token_beginnings import token_beginnings
from moe_distill.alignment.vocabulary_map import UNMAPPED, longest_prefix

from .test_vocabulary_map import pairs
from .toy import byte_level, encoder


def first_id(rest: bytes, student: Encoder) -> int:
    """Of the student's segmentation; where it has none, or not of these bytes, the longest that they begin with."""
    try:
        ids = student.tokenizer.encode(rest.decode(), add_special_tokens=False).ids
    except UnicodeDecodeError:
        ids = []
    if ids and student.token_bytes.join(np.array(ids)) == rest:
        return ids[0]
    return longest_prefix(student.token_bytes.by_bytes(), rest)


@pytest.mark.parametrize("name", ["full", "lossy", "sentencepiece", "from sentencepiece"])
def test_each_beginning_has_the_number_of_its_bytes_and_what_is_left(name: str) -> None:
    teacher, student = pairs()[name]
    found = token_beginnings(teacher, student)
    assert {column.dtype for column in found.values()} == {np.dtype(np.int32)}
    table = [token or b"" for token in teacher.token_bytes.table]
    assert found["teacher_bytes"].tolist() == [len(token) for token in table]
    strings = [(token[:n], token[n:]) for token in table for n in range(1, len(token) + 1)]
    assert len(found["beginnings"]) == len(found["rests"]) == len(strings)
    number_of: dict[bytes, int] = {}
    rest_of: dict[int, bytes] = {}
    for (begun, rest), number, left in zip(
        strings, *(found[each].tolist() for each in ("beginnings", "rests")), strict=True
    ):
        assert number_of.setdefault(begun, number) == number
        assert (left < 0) == (not rest)
        assert not rest or rest_of.setdefault(left, rest) == rest
    assert len(set(number_of.values())) == len(number_of), "other bytes, another number"
    assert len(set(rest_of.values())) == len(rest_of) == len(found["rest_student_ids"])
    wholes = {rest: number for number, rest in rest_of.items()}
    assert found["token_rests"].tolist() == [wholes.get(token, -1) for token in table]
    assert (found["token_rests"] >= 0).any()
    expected = [first_id(rest_of[number], student) for number in range(len(rest_of))]
    assert found["rest_student_ids"].tolist() == expected
    assert (name == "lossy") == (UNMAPPED in expected)


def test_a_teacher_of_single_bytes_leaves_nothing() -> None:
    found = token_beginnings(encoder(byte_level(257)), encoder(byte_level(300)))
    assert found["rests"].tolist() == [-1] * 256
    assert len(found["rest_student_ids"]) == 0
