"""The teacher's windows of a batch of documents; they depend on text and teacher tokenizer alone."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from moe_distill.alignment.boundaries import Offsets
from moe_distill.alignment.encode import Encoder, encode
from moe_distill.alignment.window_cuts import cut, lay_out
from moe_distill.alignment.window_limits import SPELL, SplitCounts, WindowLimits, no_cut, skipped_line
from moe_distill.corpus.documents import Document


@dataclass(frozen=True)
class TeacherBatch:
    """The teacher windows of a batch of documents; offsets count bytes of `text`."""

    text: bytes  # all documents joined
    ids: NDArray[np.int64]  # [tokens]
    starts: Offsets  # [tokens]
    ends: Offsets  # [tokens]
    window_counts: Offsets  # [windows] tokens
    window_starts: Offsets  # [windows] bytes
    window_ends: Offsets  # [windows] bytes
    documents: Offsets  # [windows] number of the document among those chosen of its split
    document_starts: Offsets  # [windows] byte at which that document begins in `text`


def teacher_windows(
    batch: list[Document], first_document: int, teacher: Encoder, limits: WindowLimits, split_counts: SplitCounts
) -> TeacherBatch:
    """Tokenize documents and cut them into windows of at most `limits.teacher_max_length` tokens.

    Args:
        first_document: number of the first document of `batch`.
        split_counts: counts of the split; documents that are skipped are added to it.
    """
    texts, max_tokens = [document.text.encode() for document in batch], limits.teacher_max_length - 1
    text, text_starts = b"".join(texts), _starts([len(text) for text in texts])
    encoded = encode(teacher, texts)
    split_counts.skipped.extend(
        skipped_line(teacher.name, batch[number], SPELL, offset) for number, offset in encoded.misspelled
    )
    layout = lay_out(teacher, encoded, text, text_starts, max_tokens)
    split_counts.skipped.extend(
        skipped_line(teacher.name, batch[number], no_cut(max_tokens), offset) for number, offset in layout.uncut
    )
    encoded, starts, ends = layout.encoded, layout.starts, layout.ends
    stops = cut(encoded.counts, layout.between_characters, max_tokens)
    owners = np.searchsorted(np.cumsum(encoded.counts), stops)
    counts = np.diff(stops, prepend=0)
    return TeacherBatch(
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


def cut_document(windows: TeacherBatch, document: int, n_windows: int) -> TeacherBatch:
    """The windows of a batch, but of the document of this number no more than the first `n_windows`."""
    keep = np.ones(len(windows.documents), dtype=np.bool_)
    keep[np.flatnonzero(windows.documents == document)[n_windows:]] = False
    keep_tokens = np.repeat(keep, windows.window_counts)
    per_token = {name: getattr(windows, name)[keep_tokens] for name in ("ids", "starts", "ends")}
    names = ("window_counts", "window_starts", "window_ends", "documents", "document_starts")
    return replace(windows, **per_token, **{name: getattr(windows, name)[keep] for name in names})


def teacher_columns(windows: TeacherBatch) -> dict[str, torch.Tensor]:
    """The columns of a batch (TEACHER_FIELDS but `token_bytes`)."""
    return {
        "token_ids": narrow(windows.ids),
        "token_counts": narrow(windows.window_counts),
        "documents": narrow(windows.documents),
        "byte_starts": torch.from_numpy(windows.window_starts - windows.document_starts),
        "byte_ends": torch.from_numpy(windows.window_ends - windows.document_starts),
    }


def narrow(values: NDArray[np.int64]) -> torch.Tensor:
    """A column of int32, cast by numpy: torch's threads would wait for more work beside those of the tokenizers."""
    return torch.from_numpy(values.astype(np.int32))


def _starts(lengths: list[int]) -> Offsets:
    sizes = np.array(lengths, dtype=np.int64)
    starts: Offsets = np.cumsum(sizes) - sizes
    return starts
