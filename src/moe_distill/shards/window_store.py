"""Windows on disk: the teacher's, which depend on corpus and teacher tokenizer alone, and the student's.

A window is a span of a document's bytes. A model reads it as prefix token + tokens, so a window of n tokens has n
positions: position 0 has read the prefix token alone and predicts token 0. Positions are numbered over all windows of
a split in order, so position r of a split predicts token r of its store. Shapes: B windows of a batch, L positions.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_distill.errors import DataError
from moe_distill.shards.format import FieldSpec
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.value_checks import check_range

TEACHER_WINDOWS = "moe-distill/teacher-windows"
STUDENT_WINDOWS = "moe-distill/student-windows"
SPLITS = ("train", "validation")

TEACHER_FIELDS = {
    "token_ids": FieldSpec(table="tokens", dtype="int32"),
    "token_counts": FieldSpec(table="windows", dtype="int32"),
    "documents": FieldSpec(table="windows", dtype="int32"),  # number of the document among those chosen of its split
    "byte_starts": FieldSpec(table="windows", dtype="int64"),  # in the document
    "byte_ends": FieldSpec(table="windows", dtype="int64"),
    "token_bytes": FieldSpec(table="vocabulary", dtype="int32"),  # bytes of each id of the tokenizer; 0: no text
}
STUDENT_FIELDS = TEACHER_FIELDS | {
    "teacher_rows": FieldSpec(table="tokens", dtype="int64"),  # row of the aligned teacher position, or -1
    "next_teacher_ids": FieldSpec(
        table="tokens", dtype="int32"
    ),  # teacher token that begins where this one does, or -1
    "next_tokens": FieldSpec(table="tokens", dtype="int8"),  # NextToken
    # The last token of the teacher that begins before this one, in the student's window; -1, -1 and 0: there is none
    "last_teacher_rows": FieldSpec(table="tokens", dtype="int64"),
    "last_teacher_ids": FieldSpec(table="tokens", dtype="int32"),
    "last_teacher_bytes": FieldSpec(table="tokens", dtype="int32"),  # of its bytes, those before this token
}


class NextToken(IntEnum):
    """The student's next token compared with the teacher's, at a position where both stand at the same byte."""

    UNALIGNED = 0  # no teacher token begins where the student's does
    SAME = 1  # both tokens span the same bytes
    SHORTER = 2  # the student's ends before the teacher's
    LONGER = 3  # the student's ends after the teacher's: it overhangs, and the teacher's distribution says less of it


@dataclass(frozen=True)
class WindowSpan:
    """Token rows [start, stop) of a window in its store, and the bytes of its text."""

    start: int
    stop: int
    n_bytes: int


class WindowStore:
    """The windows of one split, by their number.

    Args:
        folder: of the store.
        store_format: TEACHER_WINDOWS or STUDENT_WINDOWS.

    Attributes:
        token_counts, byte_counts: int64 [windows].

    Raises:
        DataError: an id is not one of the tokenizer's, or the tokens of a window do not fill its bytes.
    """

    def __init__(self, folder: Path, store_format: str) -> None:
        self.reader = ShardReader(folder, store_format)
        self.token_bytes = torch.cat(list(self.reader.columns("token_bytes"))).long()  # [ids of the tokenizer]
        self._check_prefix()
        for number in range(len(self.reader.index.files)):
            self._check(number)
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
        """Rows and bytes of a window."""
        stop = int(self._stops[window])
        return WindowSpan(stop - int(self.token_counts[window]), stop, int(self.byte_counts[window]))

    def sources(self) -> tuple[list[str], Tensor]:
        """Names of the sources, and the number of each window's source, int64 [windows]; for student windows only."""
        names, starts = (self.reader.index.metadata[name] for name in ("source_names", "source_starts"))
        assert isinstance(names, str)
        assert isinstance(starts, list)
        documents = torch.cat(list(self.reader.columns("documents"))).long()
        return json.loads(names), torch.bucketize(documents, torch.tensor(starts), right=True) - 1

    @property
    def prefix_id(self) -> int:
        """The token that every window begins with, before its own."""
        prefix = self.reader.index.metadata["prefix_id"]
        assert isinstance(prefix, int)
        return prefix

    def _check_prefix(self) -> None:
        prefix, n_ids = self.reader.index.metadata["prefix_id"], len(self.token_bytes)
        if not isinstance(prefix, int) or not 0 <= prefix < n_ids:
            raise DataError(f"{self.reader.folder} begins windows with id {prefix} of {n_ids}", fix=self.reader.fix)

    def _check(self, file_number: int) -> None:
        """Check that the tokens of every window of a file have as many bytes as its span."""
        path = self.reader.path(file_number)
        ids, counts, starts, ends = (
            self.reader.column(name, file_number) for name in ("token_ids", "token_counts", "byte_starts", "byte_ends")
        )
        first_token, first_window = (self.reader.first_row(table, file_number) for table in ("tokens", "windows"))
        check_range(f"{path}: field token_ids", ids, first_token, range(len(self.token_bytes)), self.reader.fix)
        check_range(f"{path}: field token_counts", counts, first_window, range(1, len(ids) + 1), self.reader.fix)
        stops = counts.long().cumsum(0)
        if len(ids) != (int(stops[-1]) if len(stops) else 0):
            raise DataError(f"{path} has {len(ids)} tokens, its windows count {int(counts.sum())}", fix=self.reader.fix)
        filled = torch.cat([torch.zeros(1, dtype=torch.int64), self.token_bytes[ids.long()].cumsum(0)])
        spelled = filled[stops] - filled[stops - counts]
        wrong = (spelled != ends - starts).nonzero()
        if len(wrong):
            window = int(wrong[0])
            raise DataError(
                f"{path}: row {first_window + window} of windows spans {int(ends[window] - starts[window])} bytes",
                f"its tokens are {int(spelled[window])} bytes long",
                self.reader.fix,
            )

    def tokens(self, field: str, window: int) -> Tensor:
        """A field of table `tokens` for one window, [tokens of the window]."""
        span = self.span(window)
        return self.reader.slice(field, span.start, span.stop)


def model_inputs(windows: WindowStore, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Inputs of a model for some windows, and the tokens that it is to predict.

    Returns:
        Input ids, int64 [B, L]: prefix token, then all tokens but the last, padded to the right with the prefix token;
        and the tokens of each window, int64 [tokens of the window].
    """
    prefix, tokens = windows.prefix_id, [windows.tokens("token_ids", number).long() for number in numbers]
    padded = pad_sequence(tokens, batch_first=True, padding_value=prefix)
    return torch.cat([torch.full((len(tokens), 1), prefix), padded[:, :-1]], dim=1), tokens


def check_aligned(student: WindowStore, teacher: WindowStore) -> None:
    """Refuse student positions whose teacher position, or last teacher token, stands at other bytes.

    Raises:
        DataError: there is one; names the row and both places in the corpus.
    """
    for field in ("teacher_rows", "last_teacher_rows"):
        student.reader.expect(field, range(-1, teacher.reader.rows("tokens")))
    firsts = torch.tensor([teacher.reader.first_row("tokens", n) for n in range(len(teacher.reader.index.files))])
    of_teacher = lru_cache(maxsize=2)(partial(_places, teacher))  # both stores are in the corpus's order
    for number in range(len(student.reader.index.files)):
        of_student, last_bytes = _places(student, number), student.reader.column("last_teacher_bytes", number)
        for field, n_read in (("teacher_rows", torch.zeros_like(last_bytes)), ("last_teacher_rows", last_bytes)):
            rows = student.reader.column(field, number)
            pointing = (rows >= 0).nonzero().squeeze(1)
            found, expected = of_student[:, pointing], _at_rows(of_teacher, firsts, rows[pointing])
            expected[1] += n_read[pointing]
            wrong = (found != expected).any(0).nonzero()
            if len(wrong):
                at = int(wrong[0])
                (document, byte), (other, other_byte) = found[:, at].tolist(), expected[:, at].tolist()
                row = student.reader.first_row("tokens", number) + int(pointing[at])
                raise DataError(
                    f"{student.reader.folder}: row {row} of tokens stands at byte {byte} of document {document}",
                    f"by {field} the teacher's row {int(rows[pointing[at]])} at byte {other_byte} of document {other}",
                    student.reader.fix,
                )


def _at_rows(places_of_file: Callable[[int], Tensor], firsts: Tensor, rows: Tensor) -> Tensor:
    """Document and byte of some rows of table `tokens`, int64 [2, rows].

    Args:
        firsts: int64 [files]: the first row of each.
    """
    files, found = torch.bucketize(rows, firsts, right=True) - 1, rows.new_zeros(2, len(rows))
    for number in files.unique().tolist():
        of_file = files == number
        found[:, of_file] = places_of_file(number)[:, rows[of_file] - firsts[number]]
    return found


def _places(windows: WindowStore, file_number: int) -> Tensor:
    """Document and byte at which each token of a file begins, int64 [2, tokens of the file]."""
    documents, starts, ids, counts = (
        windows.reader.column(name, file_number).long()
        for name in ("documents", "byte_starts", "token_ids", "token_counts")
    )
    lengths = windows.token_bytes[ids]
    before = lengths.cumsum(0) - lengths
    offsets = (starts - before[counts.cumsum(0) - counts]).repeat_interleave(counts)
    return torch.stack([documents.repeat_interleave(counts), before + offsets])
