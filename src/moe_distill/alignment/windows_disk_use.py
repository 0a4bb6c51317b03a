"""Estimate the bytes of the windows of a split on disk from a sample of its documents."""

from collections.abc import Iterable
from dataclasses import dataclass

from moe_distill.alignment.encode import Encoder
from moe_distill.corpus.documents import Document, hash_fraction
from moe_distill.shards.format import store_bytes
from moe_distill.shards.window_store import STUDENT_FIELDS, TEACHER_FIELDS

SAMPLE_BYTES = 200_000  # of text, which both tokenizers encode once more


@dataclass
class _Sample:
    """Sums over the documents of the sample."""

    text_bytes: int = 0
    windows: int = 0  # of the teacher
    teacher_tokens: int = 0
    student_tokens: int = 0


def windows_bytes(
    documents: Iterable[Document],
    text_bytes: int,
    encoders: tuple[Encoder, Encoder],
    teacher_max_length: int,
    max_windows: int | None,
) -> int:
    """Estimated bytes of the teacher's and the student's windows of a split; headers and indices are not counted.

    Args:
        documents: of the split; those with a low hash fraction are the sample.
        text_bytes: of all documents.
        encoders: the teacher's and the student's.
        teacher_max_length: tokens of a teacher window, prefix token included.
        max_windows: limit on the teacher windows; None: no limit.
    """
    share = min(1.0, SAMPLE_BYTES / max(text_bytes, 1))
    sample = _Sample()
    for document in documents:
        if hash_fraction(document.document_id, "estimate") < share:
            _add(sample, document.text, encoders, teacher_max_length - 1)
    if not sample.windows:
        return 0
    scale = text_bytes / sample.text_bytes
    if max_windows is not None:
        scale = min(scale, max_windows / sample.windows)
    windows = round(sample.windows * scale)
    total = 0
    for fields, tokens, encoder in (
        (TEACHER_FIELDS, sample.teacher_tokens, encoders[0]),
        (STUDENT_FIELDS, sample.student_tokens, encoders[1]),
    ):
        vocabulary = len(encoder.token_bytes.table)
        total += store_bytes(fields, {"tokens": round(tokens * scale), "windows": windows, "vocabulary": vocabulary})
    return total


def _add(sample: _Sample, text: str, encoders: tuple[Encoder, Encoder], max_tokens: int) -> None:
    teacher, student = (len(encoder.tokenizer.encode(text, add_special_tokens=False).ids) for encoder in encoders)
    sample.text_bytes += len(text.encode())
    sample.windows += -(-teacher // max_tokens)
    sample.teacher_tokens += teacher
    sample.student_tokens += student
