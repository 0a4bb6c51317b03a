"""From documents to the windows of one split, batch by batch, vectorised over all tokens of a batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moe_distill.alignment.boundaries import (
    Flags,
    Offsets,
    aligned_rows,
    code_point_boundaries,
    next_token_relation,
    token_starts,
)
from moe_distill.alignment.encode import Encoded, Encoder, encode
from moe_distill.alignment.windows import cut, cut_preferably
from moe_distill.documents import Document
from moe_distill.errors import DataError
from moe_distill.shards.windows import STUDENT_FIELDS, STUDENT_WINDOWS, TEACHER_FIELDS, TEACHER_WINDOWS, NextToken
from moe_distill.shards.writer import ShardWriter

BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class WindowLimits:
    """Tokens a window may have, prefix token included, and how windows are filed."""

    teacher_max_length: int
    student_max_length: int
    shard_tokens: int
    max_windows: int | None


@dataclass
class Tally:
    """What one split came to."""

    windows: int = 0  # of the teacher
    student_windows: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    aligned: int = 0  # student positions with an aligned teacher position
    one_to_one: int = 0  # of them, those whose next tokens span the same bytes
    longer: int = 0  # of them, those whose next student token is longer than the teacher's
    forced_cuts: int = 0  # student windows that end where the teacher's tokens do not
    lost: list[str] = field(default_factory=list)  # one line a document that a tokenizer cannot spell


@dataclass(frozen=True)
class _TeacherBatch:
    """The teacher windows of a batch of documents; offsets count bytes of `text`, all documents joined."""

    text: bytes
    ids: NDArray[np.int64]  # [tokens]
    starts: Offsets  # [tokens]
    ends: Offsets  # [tokens]
    window_counts: Offsets  # [windows] tokens
    window_starts: Offsets  # [windows] bytes
    window_ends: Offsets  # [windows] bytes
    documents: Offsets  # [windows] number of the document in the split
    document_starts: Offsets  # [windows] byte at which that document begins in `text`


def tokenize_split(
    documents: Iterable[list[Document]],
    teacher: Encoder,
    student: Encoder,
    limits: WindowLimits,
    teacher_output: Path,
    student_output: Path,
    teacher_key: str,
    student_key: str,
) -> Tally:
    """Write the teacher's and the student's windows of one split.

    Args:
        teacher_key: fingerprint of what the teacher's windows depend on.
        student_key: fingerprint of what the student's windows depend on.

    Raises:
        DataError: no window came out of the documents.
    """
    teacher_writer = ShardWriter(teacher_output, TEACHER_FIELDS, "tokens", limits.shard_tokens)
    student_writer = ShardWriter(student_output, STUDENT_FIELDS, "tokens", limits.shard_tokens)
    tally = Tally()
    for first_document, batch in _batches(documents):
        windows = _teacher_windows(batch, first_document, teacher, limits, tally)
        if limits.max_windows is not None:
            windows = _first_windows(windows, limits.max_windows - tally.windows)
        rows_before = teacher_writer.rows("tokens")
        teacher_writer.append(_teacher_columns(windows), cursor=0)
        student_writer.append(
            _student_columns(windows, batch, first_document, student, limits, rows_before, tally), cursor=0
        )
        tally.windows += len(windows.window_counts)
        tally.teacher_tokens += len(windows.ids)
        if limits.max_windows is not None and tally.windows >= limits.max_windows:
            break
    if not tally.student_windows:
        raise DataError("no window came out of the corpus", "its documents are empty or could not be spelled")
    teacher_writer.finish(
        TEACHER_WINDOWS, teacher_key, {"prefix_id": teacher.prefix_id, "max_length": limits.teacher_max_length}
    )
    student_writer.finish(
        STUDENT_WINDOWS,
        student_key,
        {"prefix_id": student.prefix_id, "max_length": limits.student_max_length, "teacher_windows": teacher_key},
    )
    return tally


def _batches(documents: Iterable[list[Document]]) -> Iterator[tuple[int, list[Document]]]:
    """Regroup documents to about BATCH_BYTES a batch; gives the number of the first one with each."""
    batch: list[Document] = []
    size, number = 0, 0
    for document in (document for group in documents for document in group):
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield number, batch
            number += len(batch)
            batch, size = [], 0
    if batch:
        yield number, batch


def _teacher_windows(
    batch: list[Document], first_document: int, teacher: Encoder, limits: WindowLimits, tally: Tally
) -> _TeacherBatch:
    texts = [document.text.encode() for document in batch]
    encoded = encode(teacher, texts)
    _note_lost(encoded, batch, teacher, tally)
    text_starts = _starts([len(text) for text in texts])
    lengths = teacher.token_bytes.lengths[encoded.ids]
    starts = token_starts(lengths, text_starts, encoded.counts)
    ends = starts + lengths
    text = b"".join(texts)
    may_cut = code_point_boundaries(text)[ends]
    token_stops = np.cumsum(encoded.counts)
    window_ends, documents = [], []  # in tokens of the batch
    for number, (stop, count) in enumerate(zip(token_stops.tolist(), encoded.counts.tolist(), strict=True)):
        part = cut(may_cut[stop - count : stop], limits.teacher_max_length - 1) + stop - count
        if count and (not len(part) or part[-1] != stop):
            raise DataError(
                f"{batch[number].source} document {batch[number].document_id[:12]} has a character of more tokens "
                "than a window may hold",
                fix="raise `windows.teacher_max_length` in the profile",
            )
        window_ends.append(part)
        documents.append(np.full(len(part), number, dtype=np.int64))
    stops, owners = np.concatenate(window_ends), np.concatenate(documents)
    counts = np.diff(stops, prepend=0)
    return _TeacherBatch(
        text=text,
        ids=encoded.ids,
        starts=starts,
        ends=ends,
        window_counts=counts,
        window_starts=starts[stops - counts],
        window_ends=ends[stops - 1],
        documents=owners + first_document,
        document_starts=text_starts[owners],
    )


def _first_windows(windows: _TeacherBatch, n_windows: int) -> _TeacherBatch:
    """The batch cut to its first windows."""
    tokens = int(windows.window_counts[:n_windows].sum())
    return _TeacherBatch(
        windows.text,
        *(column[:tokens] for column in (windows.ids, windows.starts, windows.ends)),
        *(
            column[:n_windows]
            for column in (
                windows.window_counts,
                windows.window_starts,
                windows.window_ends,
                windows.documents,
                windows.document_starts,
            )
        ),
    )


def _teacher_columns(windows: _TeacherBatch) -> dict[str, torch.Tensor]:
    return {
        "token_ids": torch.from_numpy(windows.ids).int(),
        "token_counts": torch.from_numpy(windows.window_counts).int(),
        "documents": torch.from_numpy(windows.documents).int(),
        "byte_starts": torch.from_numpy(windows.window_starts - windows.document_starts),
        "byte_ends": torch.from_numpy(windows.window_ends - windows.document_starts),
    }


def _student_columns(
    windows: _TeacherBatch,
    batch: list[Document],
    first_document: int,
    student: Encoder,
    limits: WindowLimits,
    rows_before: int,
    tally: Tally,
) -> dict[str, torch.Tensor]:
    spans = zip(windows.window_starts.tolist(), windows.window_ends.tolist(), strict=True)
    encoded = encode(student, [windows.text[start:stop] for start, stop in spans])
    encoded = _drop_lost_documents(encoded, windows, batch, first_document, student, tally)
    lengths = student.token_bytes.lengths[encoded.ids]
    starts = token_starts(lengths, windows.window_starts, encoded.counts)
    ends = starts + lengths
    rows = aligned_rows(starts, windows.starts)
    relation = next_token_relation(ends, windows.ends, rows)
    common = np.isin(ends, windows.ends)
    stops, owners, forced = _split_long(encoded.counts, common, code_point_boundaries(windows.text)[ends], limits)
    counts = np.diff(stops, prepend=0)
    first = stops - counts

    tally.student_windows += len(stops)
    tally.student_tokens += len(encoded.ids)
    tally.aligned += int((rows >= 0).sum())
    tally.one_to_one += int((relation == NextToken.SAME).sum())
    tally.longer += int((relation == NextToken.LONGER).sum())
    tally.forced_cuts += forced
    return {
        "token_ids": torch.from_numpy(encoded.ids).int(),
        "token_counts": torch.from_numpy(counts).int(),
        "documents": torch.from_numpy(windows.documents[owners]).int(),
        "byte_starts": torch.from_numpy(starts[first] - windows.document_starts[owners]),
        "byte_ends": torch.from_numpy(ends[stops - 1] - windows.document_starts[owners]),
        "teacher_rows": torch.from_numpy(np.where(rows < 0, -1, rows + rows_before)),
        "next_tokens": torch.from_numpy(relation),
    }


def _split_long(counts: Offsets, common: Flags, whole: Flags, limits: WindowLimits) -> tuple[Offsets, Offsets, int]:
    """Student windows of each teacher window: one where it fits, else several, cut at common boundaries.

    Returns:
        Token numbers after which student windows end, the teacher window of each, and the forced cuts.
    """
    stops = np.cumsum(counts)
    pieces, owners, forced = [], [], 0
    for window, (stop, count) in enumerate(zip(stops.tolist(), counts.tolist(), strict=True)):
        if 0 < count < limits.student_max_length:
            part = np.array([stop])
        elif count:
            start = stop - count
            allowed = whole[start:stop]
            part, n_forced = cut_preferably(common[start:stop] & allowed, allowed, limits.student_max_length - 1)
            part, forced = part + start, forced + n_forced
        else:
            continue
        pieces.append(part)
        owners.append(np.full(len(part), window, dtype=np.int64))
    if not pieces:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    return np.concatenate(pieces), np.concatenate(owners), forced


def _drop_lost_documents(
    encoded: Encoded,
    windows: _TeacherBatch,
    batch: list[Document],
    first_document: int,
    student: Encoder,
    tally: Tally,
) -> Encoded:
    """Empty every window of a document of which the student cannot spell some window."""
    if not encoded.lost:
        return encoded
    lost_documents: set[int] = set()
    for window, offset in encoded.lost:
        document = int(windows.documents[window])
        if document not in lost_documents:
            where = int(windows.window_starts[window] - windows.document_starts[window]) + offset
            tally.lost.append(_lost_line(student.name, batch[document - first_document], where))
        lost_documents.add(document)
    keep = ~np.isin(windows.documents, sorted(lost_documents))
    return Encoded(encoded.ids[np.repeat(keep, encoded.counts)], np.where(keep, encoded.counts, 0), [])


def _note_lost(encoded: Encoded, batch: list[Document], encoder: Encoder, tally: Tally) -> None:
    tally.lost.extend(_lost_line(encoder.name, batch[number], offset) for number, offset in encoded.lost)


def _lost_line(name: str, document: Document, offset: int) -> str:
    return f"{document.source} document {document.document_id[:12]}: {name} cannot spell byte {offset}"


def _starts(lengths: list[int]) -> Offsets:
    sizes = np.array(lengths, dtype=np.int64)
    starts: Offsets = np.cumsum(sizes) - sizes
    return starts
