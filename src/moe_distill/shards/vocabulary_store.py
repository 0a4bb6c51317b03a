"""The map from the teacher's ids to the student's on disk, and beside it what is known of both vocabularies.

Tables: a row for each row of the teacher's output matrix, for each merge of the student's tokenizer, for each byte of
that tokenizer and of its tokens, for each id of the teacher's tokenizer, for each beginning of one of its tokens (the
first byte, the first two, ..., all), and for each string that may be left of one.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.shards.format import FieldSpec
from moe_distill.shards.reader import ShardReader

VOCABULARY_MAP = "moe-distill/vocabulary-map"
MAP_FIELDS = {
    "student_ids": FieldSpec(table="teacher_ids", dtype="int32"),  # -1: no student token
    "merge_lefts": FieldSpec(table="merges", dtype="int32"),  # of the student's BPE, in the order of their ranks
    "merge_rights": FieldSpec(table="merges", dtype="int32"),
    "merge_results": FieldSpec(table="merges", dtype="int32"),  # what left and right become
    "student_bytes": FieldSpec(table="student_ids", dtype="int32"),  # of each id; 0: it stands for no text
    "student_spelling": FieldSpec(table="spelling", dtype="int8"),  # the bytes of all ids, one after the other
    "student_tokenizer": FieldSpec(table="tokenizer", dtype="int8"),  # bytes of its tokenizer.json
    "teacher_bytes": FieldSpec(table="teacher_tokens", dtype="int32"),  # of each id; as many rows of `beginnings`
    "token_rests": FieldSpec(
        table="teacher_tokens", dtype="int32"
    ),  # row of `rests` of the same bytes; -1: there is none
    "beginnings": FieldSpec(table="beginnings", dtype="int32"),  # equal where the bytes are
    "rests": FieldSpec(table="beginnings", dtype="int32"),  # row of `rests`; -1: nothing is left
    "rest_student_ids": FieldSpec(table="rests", dtype="int32"),  # -1: no student token
}
MERGE_IDS = ("merge_lefts", "merge_rights", "merge_results")


@dataclass(frozen=True)
class Merges:
    """Merges of a tokenizer, the first to be applied first, [merges]; there may be none.

    Each makes a token that no other makes, of two that no later one makes.
    """

    lefts: Tensor  # int64
    rights: Tensor  # int64
    results: Tensor  # int64: what left and right become


@dataclass(frozen=True)
class Beginnings:
    """The beginnings of the teacher's tokens, one token's after the other's, the shortest first, int64."""

    teacher_bytes: Tensor  # [ids]: of each id, and so many beginnings
    token_rests: Tensor  # [ids]: number of the string of the same bytes that may be left of another token; -1: none
    numbers: Tensor  # [beginnings]: equal where the bytes are
    rests: Tensor  # [beginnings]: number of what is left of the token; -1: nothing
    rest_student_ids: Tensor  # [rests]: the student's first token of what is left; -1: none


def open_vocabulary_map(folder: Path) -> ShardReader:
    """Open a vocabulary map; an id that the student's tokenizer does not have is refused."""
    reader = ShardReader(folder, VOCABULARY_MAP)
    n_ids = _n_student_ids(reader)
    reader.expect("student_ids", range(-1, n_ids))
    reader.expect("rest_student_ids", range(-1, n_ids))
    for name in ("rests", "token_rests"):
        reader.expect(name, range(-1, reader.rows("rests")))
    for name in ("student_bytes", "teacher_bytes", "beginnings"):
        reader.expect(name, range(1 << 31))
    for name in MERGE_IDS:
        reader.expect(name, range(n_ids))
    return reader


def read_vocabulary_map(folder: Path) -> Tensor:
    """int64 [rows of the teacher's output matrix]: student id of each teacher id, -1 where there is none."""
    return _column(open_vocabulary_map(folder), "student_ids")


def read_beginnings(folder: Path) -> Beginnings:
    """The beginnings of the teacher's tokens.

    Raises:
        DataError: there are not as many as the tokens have bytes.
    """
    reader = open_vocabulary_map(folder)
    names = ("teacher_bytes", "token_rests", "beginnings", "rests", "rest_student_ids")
    found = Beginnings(*(_column(reader, name) for name in names))
    if int(found.teacher_bytes.sum()) != len(found.numbers):
        what = (
            f"{reader.folder} has {len(found.numbers)} beginnings of tokens of {int(found.teacher_bytes.sum())} bytes"
        )
        raise DataError(what, fix=reader.fix)
    return found


def read_merges(folder: Path) -> tuple[Merges, int]:
    """The merges of the student's tokenizer, and how many ids it has.

    Raises:
        DataError: a merge is of a token that it or a later one makes; names it.
    """
    reader = open_vocabulary_map(folder)
    lefts, rights, results = (_column(reader, name) for name in MERGE_IDS)
    merges, n_ids = Merges(lefts, rights, results), _n_student_ids(reader)
    wrong = out_of_order(merges, n_ids).nonzero()
    if len(wrong):
        number = int(wrong[0])
        made_of = f"{int(lefts[number])} and {int(rights[number])}"
        raise DataError(
            f"{reader.path(0)}: row {number} of merges makes token {int(results[number])} of {made_of}",
            "it or a later row makes one of the two",
            reader.fix,
        )
    return merges, n_ids


def read_tokenizer(folder: Path) -> tuple[str, list[bytes]] | None:
    """The student's tokenizer.json, as it encodes windows, and the bytes of each of its ids; None: there are no merges.

    Raises:
        DataError: the ids have not as many bytes as there are.
    """
    reader = open_vocabulary_map(folder)
    if not reader.rows("tokenizer"):
        return None
    lengths, spelling = _column(reader, "student_bytes"), _bytes(reader, "student_spelling")
    stops = lengths.cumsum(0).tolist()
    if len(stops) != _n_student_ids(reader) or stops[-1] != len(spelling):
        raise DataError(
            f"{reader.folder} spells {len(stops)} ids of {int(lengths.sum())} bytes with {len(spelling)}",
            fix=reader.fix,
        )
    spellings = [spelling[start:stop] for start, stop in pairwise([0, *stops])]
    return _bytes(reader, "student_tokenizer").decode(), spellings


def out_of_order(merges: Merges, n_ids: int) -> Tensor:
    """Which merges are of a token that is not made before, bool [merges]."""
    ranks = torch.arange(len(merges.results))
    made_by = torch.full((n_ids,), -1).index_copy(0, merges.results, ranks)
    return (made_by[merges.lefts] >= ranks) | (made_by[merges.rights] >= ranks)


def _column(reader: ShardReader, name: str) -> Tensor:
    return torch.cat(list(reader.columns(name))).long()


def _bytes(reader: ShardReader, name: str) -> bytes:
    return torch.cat(list(reader.columns(name))).numpy().tobytes()


def _n_student_ids(reader: ShardReader) -> int:
    return int(str(reader.index.metadata["student_ids"]))
