"""Write the windows of one split, batch by batch; a batch of documents is processed as one array of tokens."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.student_windows import student_columns
from moe_distill.alignment.teacher_windows import cut_document, narrow, teacher_columns, teacher_windows
from moe_distill.alignment.window_limits import PURPOSE, SplitCounts, WindowLimits
from moe_distill.corpus.documents import Document, hash_fraction
from moe_distill.errors import DataError
from moe_distill.shards.provenance import windows_fingerprint
from moe_distill.shards.window_store import STUDENT_FIELDS, STUDENT_WINDOWS, TEACHER_FIELDS, TEACHER_WINDOWS
from moe_distill.shards.writer import ShardWriter

BATCH_BYTES = 1 << 18  # of text, about: what a batch takes beside its text is many times that


def tokenize_split(
    documents: Iterable[list[Document]],
    teacher: Encoder,
    student: Encoder,
    limits: WindowLimits,
    teacher_output: Path,
    student_output: Path,
    teacher_key: str,
    student_key: str,
    tokenizers: tuple[str, str],
) -> SplitCounts:
    """Write the teacher's and the student's windows of one split; returns counts of the split.

    Args:
        documents: those of the split that are chosen for distillation, in groups.
        teacher_output, student_output: folders of the two stores.
        teacher_key: fingerprint of what the teacher's windows depend on.
        student_key: fingerprint of what the student's windows depend on.
        tokenizers: fingerprints of the teacher's and the student's tokenizer.json.

    Raises:
        DataError: the documents give no student window.
    """
    teacher_writer = ShardWriter(teacher_output, TEACHER_FIELDS, "tokens", limits.shard_tokens)
    student_writer = ShardWriter(student_output, STUDENT_FIELDS, "tokens", limits.shard_tokens)
    split_counts = SplitCounts()
    sources: dict[str, int] = {}  # name -> number of its first document; a source's documents are consecutive
    for first_document, batch in batches(documents):
        for number, document in enumerate(batch, start=first_document):
            sources.setdefault(document.source, number)
        windows = teacher_windows(batch, first_document, teacher, limits, split_counts)
        if limits.cut is not None:
            for number, document in enumerate(batch, start=first_document):
                if hash_fraction(document.document_id, PURPOSE) == limits.cut.hash_fraction:
                    windows = cut_document(windows, number, limits.cut.windows)
        rows_before = teacher_writer.rows("tokens")
        teacher_writer.append(teacher_columns(windows) | _vocabulary(teacher, teacher_writer))
        columns = student_columns(windows, batch, first_document, student, limits, rows_before, split_counts)
        student_writer.append(columns | _vocabulary(student, student_writer))
        split_counts.windows += len(windows.window_counts)
        split_counts.teacher_tokens += len(windows.ids)
    if not split_counts.student_windows:
        why = (
            f"of its documents {len(split_counts.skipped)} were skipped, the first: {split_counts.skipped[0]}"
            if split_counts.skipped
            else "it is empty"
        )
        raise DataError(
            f"no window came out of the split {student_output.name} of the corpus",
            why,
            "raise `windows.train_fraction` in the profile, or add to `corpus.sources`",
        )
    teacher_index = teacher_writer.finish(
        TEACHER_WINDOWS,
        teacher_key,
        {"prefix_id": teacher.prefix_id, "max_length": limits.teacher_max_length, "tokenizer": tokenizers[0]},
    )
    student_writer.finish(
        STUDENT_WINDOWS,
        student_key,
        {
            "prefix_id": student.prefix_id,
            "max_length": limits.student_max_length,
            "tokenizer": tokenizers[1],
            "teacher_windows": windows_fingerprint(teacher_index),
            "source_names": json.dumps(list(sources), ensure_ascii=False),
            "source_starts": list(sources.values()),
        },
    )
    return split_counts


def _vocabulary(encoder: Encoder, writer: ShardWriter) -> dict[str, torch.Tensor]:
    """The byte length of every id, in the first call alone; readers check with it that tokens fill their window."""
    lengths = encoder.token_bytes.lengths[: 0 if writer.rows("vocabulary") else None]
    return {"token_bytes": narrow(lengths)}


def batches(documents: Iterable[list[Document]]) -> Iterator[tuple[int, list[Document]]]:
    """Regroup documents to batches of about BATCH_BYTES; yields the number of its first document with each."""
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
