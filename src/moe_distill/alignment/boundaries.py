"""Compare two tokenisations of the same bytes. Offsets are in bytes; a token covers the half-open span [start, end)."""

import numpy as np
from numpy.typing import NDArray

from moe_distill.shards.window_store import NextToken

Offsets = NDArray[np.int64]
Flags = NDArray[np.bool_]


def token_starts(lengths: Offsets, text_starts: Offsets, counts: Offsets) -> Offsets:
    """Start of every token, [tokens]: the start of its text plus the bytes of the tokens before it in that text.

    Args:
        lengths: bytes of each token, the texts one after the other, [tokens].
        text_starts: offset of each text, [texts].
        counts: tokens of each text, [texts].
    """
    before = np.cumsum(lengths) - lengths
    first_token = np.cumsum(counts) - counts
    base = np.where(counts > 0, before[np.minimum(first_token, max(len(before) - 1, 0))] if len(before) else 0, 0)
    shifted: Offsets = before + np.repeat(text_starts - base, counts)
    return shifted


def code_point_boundaries(text: bytes) -> Flags:
    """For each byte offset of a UTF-8 text, whether it is at an edge of a character: bool [len(text) + 1]."""
    starts = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
    return np.append(starts, True)


def aligned_rows(student_starts: Offsets, teacher_starts: Offsets) -> Offsets:
    """For each student token the number of the teacher token that starts at the same byte, or -1: [student tokens].

    The position that predicts a token has read the bytes before it, from the start of its window on. So equal starts
    mean that both models have read the same text, or that the student has read the end of it, where its window begins
    after the teacher's. `teacher_starts` is strictly increasing.
    """
    found = np.searchsorted(teacher_starts, student_starts)
    within = np.minimum(found, len(teacher_starts) - 1)
    rows: Offsets = np.where(teacher_starts[within] == student_starts, within, -1)
    return rows


def last_rows(student_starts: Offsets, teacher_starts: Offsets, first_starts: Offsets) -> Offsets:
    """For each student token the number of the last teacher token that begins before it, or -1: [student tokens].

    Args:
        first_starts: where the student's window begins, of each student token.
    """
    rows = np.searchsorted(teacher_starts, student_starts) - 1
    found: Offsets = np.where((rows >= 0) & (teacher_starts[rows] >= first_starts), rows, -1)
    return found


def next_token_relation(student_ends: Offsets, teacher_ends: Offsets, rows: Offsets) -> NDArray[np.int8]:
    """The `NextToken` of each student position: int8 [student tokens].

    Args:
        student_ends, teacher_ends: end of each token.
        rows: the aligned teacher token of each student token, or -1.
    """
    ends = teacher_ends[rows]  # a row of -1 reads any value, and is unaligned below
    relation = np.select(
        [rows < 0, student_ends == ends, student_ends < ends],
        [NextToken.UNALIGNED, NextToken.SAME, NextToken.SHORTER],
        NextToken.LONGER,
    )
    return relation.astype(np.int8)
