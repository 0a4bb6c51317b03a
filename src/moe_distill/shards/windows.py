"""Windows on disk: the teacher's, which depend on corpus and teacher tokenizer alone, and the student's.

A window is a span of a document's bytes. It is fed to a model as prefix token + tokens, so a window of n
tokens has n positions: position 0 has consumed the prefix token only and predicts token 0. Position rows are
numbered over all windows of a split, in order; row r belongs to token r of the store.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

from moe_distill.shards.format import FieldSpec
from moe_distill.shards.reader import ShardReader

TEACHER_WINDOWS = "moe-distill/teacher-windows"
STUDENT_WINDOWS = "moe-distill/student-windows"
VOCABULARY_MAP = "moe-distill/vocabulary-map"
SPLITS = ("train", "validation")

TEACHER_FIELDS = {
    "token_ids": FieldSpec(table="tokens", dtype="int32"),
    "token_counts": FieldSpec(table="windows", dtype="int32"),
    "documents": FieldSpec(table="windows", dtype="int32"),  # number of the document in its split
    "byte_starts": FieldSpec(table="windows", dtype="int64"),  # in the document
    "byte_ends": FieldSpec(table="windows", dtype="int64"),
}
STUDENT_FIELDS = TEACHER_FIELDS | {
    "teacher_rows": FieldSpec(table="tokens", dtype="int64"),  # aligned position row, or -1
    "next_tokens": FieldSpec(table="tokens", dtype="int8"),  # NextToken
}
MAP_FIELDS = {"student_ids": FieldSpec(table="teacher_ids", dtype="int32")}  # -1: no student token


class NextToken(IntEnum):
    """The next student token against the next teacher token, where both have consumed the same bytes."""

    UNALIGNED = 0
    SAME = 1  # the same span
    SHORTER = 2  # the student's ends first
    LONGER = 3  # the student's ends later: the teacher's distribution says less about it


@dataclass(frozen=True)
class WindowSpan:
    """Where the tokens of a window lie: token rows [start, stop) of the store, and its bytes."""

    start: int
    stop: int
    n_bytes: int


class WindowStore:
    """The windows of one split, by number."""

    def __init__(self, folder: Path, store_format: str) -> None:
        self.reader = ShardReader(folder, store_format)
        counts = [column.long() for column in self.reader.columns("token_counts")]
        n_bytes = [
            ends - starts
            for ends, starts in zip(self.reader.columns("byte_ends"), self.reader.columns("byte_starts"), strict=True)
        ]
        self.token_counts = torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64)
        self.byte_counts = torch.cat(n_bytes) if n_bytes else torch.zeros(0, dtype=torch.int64)
        self._stops = self.token_counts.cumsum(0)

    def __len__(self) -> int:
        return len(self.token_counts)

    def span(self, window: int) -> WindowSpan:
        stop = int(self._stops[window])
        return WindowSpan(stop - int(self.token_counts[window]), stop, int(self.byte_counts[window]))

    def tokens(self, field: str, window: int) -> Tensor:
        """A field of the `tokens` table for one window, [tokens of the window]."""
        span = self.span(window)
        return self.reader.slice(field, span.start, span.stop)


def read_vocabulary_map(folder: Path) -> Tensor:
    """int64 [rows of the teacher's output matrix]: student id of each teacher id, -1 where there is none."""
    reader = ShardReader(folder, VOCABULARY_MAP)
    return torch.cat(list(reader.columns("student_ids"))).long()
