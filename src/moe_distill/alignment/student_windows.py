"""The student's windows for a batch of teacher windows: its own tokens, and the teacher's rows they point at."""

import numpy as np
import torch

from moe_distill.alignment.boundaries import aligned_rows, next_token_relation
from moe_distill.alignment.encode import Encoded, Encoder, encode, without
from moe_distill.alignment.teacher_windows import TeacherBatch
from moe_distill.alignment.window_cuts import lay_out, split_evenly
from moe_distill.alignment.window_limits import SPELL, Tally, WindowLimits, lost_line, no_cut
from moe_distill.corpus.documents import Document
from moe_distill.shards.window_store import NextToken


def student_columns(
    windows: TeacherBatch,
    batch: list[Document],
    first_document: int,
    student: Encoder,
    limits: WindowLimits,
    rows_before: int,
    tally: Tally,
) -> dict[str, torch.Tensor]:
    max_tokens = limits.student_max_length - 1
    spans = zip(windows.window_starts.tolist(), windows.window_ends.tolist(), strict=True)
    encoded = encode(student, [windows.text[start:stop] for start, stop in spans])
    layout = lay_out(student, encoded, windows.text, windows.window_starts, max_tokens)
    lost = [(window, SPELL, offset) for window, offset in encoded.lost]
    lost += [(window, no_cut(max_tokens), offset) for window, offset in layout.uncut]
    if lost:
        kept = _without_documents(layout.encoded, lost, windows, batch, first_document, student, tally)
        layout = lay_out(student, kept, windows.text, windows.window_starts, max_tokens)
    encoded, starts, ends, whole = layout.encoded, layout.starts, layout.ends, layout.between_characters
    rows = aligned_rows(starts, windows.starts)
    relation = next_token_relation(ends, windows.ends, rows)
    common = np.isin(ends, windows.ends, assume_unique=True)
    stops, forced = split_evenly(encoded.counts, common & whole, whole, max_tokens)
    owners = np.searchsorted(np.cumsum(encoded.counts), stops)
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
        "next_teacher_ids": torch.from_numpy(np.where(rows < 0, -1, windows.ids[rows])).int(),
        "next_tokens": torch.from_numpy(relation),
    }


def _without_documents(
    encoded: Encoded,
    lost: list[tuple[int, str, int]],
    windows: TeacherBatch,
    batch: list[Document],
    first_document: int,
    student: Encoder,
    tally: Tally,
) -> Encoded:
    """Empty every window of a document of which some window is lost.

    Args:
        lost: numbers of windows, what cannot be done, and at which byte of the window.
    """
    lost_documents: set[int] = set()
    for window, what, offset in lost:
        document = int(windows.documents[window])
        if document not in lost_documents:
            where = int(windows.window_starts[window] - windows.document_starts[window]) + offset
            tally.lost.append(lost_line(student.name, batch[document - first_document], what, where))
        lost_documents.add(document)
    return without(encoded, np.flatnonzero(np.isin(windows.documents, sorted(lost_documents))).tolist())
