"""The student's windows for a batch of teacher windows: the student's own tokens, and their aligned teacher rows."""

import numpy as np
import torch

from moe_distill.alignment.boundaries import aligned_rows, last_rows, next_token_relation
from moe_distill.alignment.encode import Encoded, Encoder, encode, without
from moe_distill.alignment.teacher_windows import TeacherBatch, narrow
from moe_distill.alignment.window_cuts import lay_out, split_evenly
from moe_distill.alignment.window_limits import SPELL, SplitCounts, WindowLimits, no_cut, skipped_line
from moe_distill.corpus.documents import Document
from moe_distill.shards.window_store import NextToken


def student_columns(
    windows: TeacherBatch,
    batch: list[Document],
    first_document: int,
    student: Encoder,
    limits: WindowLimits,
    rows_before: int,
    split_counts: SplitCounts,
) -> dict[str, torch.Tensor]:
    """The columns of the student's windows (STUDENT_FIELDS but `token_bytes`), each inside one teacher window.

    Args:
        windows: the teacher's windows of the documents `batch`.
        first_document: number of the first of these documents.
        rows_before: teacher tokens of the split before this batch, to number `teacher_rows`.
        split_counts: counts of the split, which this batch is added to.
    """
    max_tokens = limits.student_max_length - 1
    spans = zip(windows.window_starts.tolist(), windows.window_ends.tolist(), strict=True)
    encoded = encode(student, [windows.text[start:stop] for start, stop in spans])
    layout = lay_out(student, encoded, windows.text, windows.window_starts, max_tokens)
    skipped = [(window, SPELL, offset) for window, offset in encoded.misspelled]
    skipped += [(window, no_cut(max_tokens), offset) for window, offset in layout.uncut]
    if skipped:
        kept = _without_documents(layout.encoded, skipped, windows, batch, first_document, student, split_counts)
        layout = lay_out(student, kept, windows.text, windows.window_starts, max_tokens)
    encoded, starts, ends, whole = layout.encoded, layout.starts, layout.ends, layout.between_characters
    rows = aligned_rows(starts, windows.starts)
    relation = next_token_relation(ends, windows.ends, rows)
    common = np.isin(ends, windows.ends, assume_unique=True)
    stops, forced = split_evenly(encoded.counts, common & whole, whole, max_tokens)
    owners = np.searchsorted(np.cumsum(encoded.counts), stops)
    counts = np.diff(stops, prepend=0)
    first = stops - counts
    last = last_rows(starts, windows.starts, np.repeat(starts[first], counts))

    split_counts.student_windows += len(stops)
    split_counts.student_tokens += len(encoded.ids)
    split_counts.aligned += int((rows >= 0).sum())
    split_counts.one_to_one += int((relation == NextToken.SAME).sum())
    is_later = starts[first] > windows.window_starts[owners]
    split_counts.shorter_context += int((rows[np.repeat(is_later, counts)] >= 0).sum())
    split_counts.overhanging += int((relation == NextToken.LONGER).sum())
    split_counts.forced_cuts += forced
    return {
        "token_ids": narrow(encoded.ids),
        "token_counts": narrow(counts),
        "documents": narrow(windows.documents[owners]),
        "byte_starts": torch.from_numpy(starts[first] - windows.document_starts[owners]),
        "byte_ends": torch.from_numpy(ends[stops - 1] - windows.document_starts[owners]),
        "teacher_rows": torch.from_numpy(np.where(rows < 0, -1, rows + rows_before)),
        "next_teacher_ids": narrow(np.where(rows < 0, -1, windows.ids[rows])),
        "next_tokens": torch.from_numpy(relation),
        "last_teacher_rows": torch.from_numpy(np.where(last < 0, -1, last + rows_before)),
        "last_teacher_ids": narrow(np.where(last < 0, -1, windows.ids[last])),
        "last_teacher_bytes": narrow(np.where(last < 0, 0, starts - windows.starts[last])),
    }


def _without_documents(
    encoded: Encoded,
    skipped: list[tuple[int, str, int]],
    windows: TeacherBatch,
    batch: list[Document],
    first_document: int,
    student: Encoder,
    split_counts: SplitCounts,
) -> Encoded:
    """Remove the tokens of all windows of a document where one window cannot be used, and note the document as skipped.

    Args:
        skipped: numbers of such windows, what the tokenizer cannot do, and at which byte of the window.
    """
    skipped_documents: set[int] = set()
    for window, what, offset in skipped:
        document = int(windows.documents[window])
        if document not in skipped_documents:
            where = int(windows.window_starts[window] - windows.document_starts[window]) + offset
            split_counts.skipped.append(skipped_line(student.name, batch[document - first_document], what, where))
        skipped_documents.add(document)
    return without(encoded, np.flatnonzero(np.isin(windows.documents, sorted(skipped_documents))).tolist())
