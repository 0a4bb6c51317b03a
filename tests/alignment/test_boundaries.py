"""Boundaries against the slow obvious version."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_distill.alignment.boundaries import (
    aligned_rows,
    code_point_boundaries,
    last_rows,
    next_token_relation,
    token_starts,
)
from moe_distill.shards.window_store import NextToken

LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=20)


def spans(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    return ends - np.array(lengths), ends


def brute_force(student: list[int], teacher: list[int]) -> tuple[list[int], list[int]]:
    """Positions whose consumed bytes are the same, and how their next tokens compare: a double loop."""
    rows, relations = [], []
    consumed = 0
    for length in student:
        row, relation, teacher_consumed = -1, NextToken.UNALIGNED, 0
        for number, teacher_length in enumerate(teacher):
            if teacher_consumed == consumed:
                row = number
                relation = NextToken.SAME if length == teacher_length else NextToken.LONGER
                relation = NextToken.SHORTER if length < teacher_length else relation
            teacher_consumed += teacher_length
        rows.append(row)
        relations.append(int(relation))
        consumed += length
    return rows, relations


@settings(max_examples=300, deadline=None)
@given(student=LENGTHS, teacher=LENGTHS)
def test_r14_positions_are_aligned_only_where_the_same_bytes_are_consumed(
    student: list[int], teacher: list[int]
) -> None:
    (student_starts, student_ends), (teacher_starts, teacher_ends) = spans(student), spans(teacher)
    rows = aligned_rows(student_starts, teacher_starts)
    expected_rows, expected_relations = brute_force(student, teacher)
    assert rows.tolist() == expected_rows
    assert next_token_relation(student_ends, teacher_ends, rows).tolist() == expected_relations


@settings(max_examples=300, deadline=None)
@given(student=LENGTHS, teacher=LENGTHS, first=st.integers(0, 20))
def test_the_last_row_is_of_the_teacher_token_that_began_before(
    student: list[int], teacher: list[int], first: int
) -> None:
    student_starts, teacher_starts = spans(student)[0], spans(teacher)[0]
    found = last_rows(student_starts, teacher_starts, np.full(len(student), first)).tolist()
    for start, row in zip(student_starts.tolist(), found, strict=True):
        begun = [number for number, each in enumerate(teacher_starts.tolist()) if first <= each < start]
        assert row == (begun[-1] if begun else -1)


def test_r14_equal_index_is_not_aligned() -> None:
    student_starts, teacher_starts = spans([1, 2, 3])[0], spans([2, 1, 3])[0]
    assert aligned_rows(student_starts, teacher_starts).tolist() == [0, -1, 2]


def test_relation_at_each_kind_of_position() -> None:
    (student_starts, student_ends), (teacher_starts, teacher_ends) = spans([2, 1, 3, 4]), spans([2, 2, 2, 3, 1])
    rows = aligned_rows(student_starts, teacher_starts)
    assert rows.tolist() == [0, 1, -1, 3]
    relation = next_token_relation(student_ends, teacher_ends, rows)
    assert relation.tolist() == [NextToken.SAME, NextToken.SHORTER, NextToken.UNALIGNED, NextToken.LONGER]
    assert relation.dtype == np.int8


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_code_point_boundaries(text: str) -> None:
    source = text.encode()
    expected = {len(text[:number].encode()) for number in range(len(text) + 1)}
    assert set(np.flatnonzero(code_point_boundaries(source)).tolist()) == expected


@given(st.lists(st.tuples(st.integers(0, 1000), st.lists(st.integers(1, 9), max_size=4)), max_size=6))
def test_token_starts_of_several_texts_some_of_them_empty(texts: list[tuple[int, list[int]]]) -> None:
    expected = [offset + sum(lengths[:number]) for offset, lengths in texts for number in range(len(lengths))]
    lengths = np.array([length for _, part in texts for length in part], dtype=np.int64)
    starts = token_starts(
        lengths,
        np.array([offset for offset, _ in texts], dtype=np.int64),
        np.array([len(part) for _, part in texts], dtype=np.int64),
    )
    assert starts.tolist() == expected
