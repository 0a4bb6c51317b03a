"""A limit on the windows of a split: documents are left out by their draw, so that every source keeps its share."""

import math
from pathlib import Path

import numpy as np

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.teacher_windows import teacher_windows
from moe_distill.alignment.tokenize import batches
from moe_distill.alignment.window_limits import Tally, WindowLimits
from moe_distill.corpus.documents import hash_fraction, read_documents

PURPOSE = "distil"
FIRST_SHARE = 1 / 64  # of the documents that are looked at first


def limited_fraction(path: Path, fraction: float, max_windows: int, teacher: Encoder, limits: WindowLimits) -> float:
    """The draw below which the documents of a parquet file have `max_windows` teacher windows, or `fraction`.

    Corpus and teacher tokenizer alone decide; a higher limit only adds documents, and so does a higher `fraction`. Each
    pass over the file counts the windows of as many documents as all before it, from the lowest draws up, until there
    are enough: no more than about twice as many as are kept. Memory: 16 bytes for each of them.
    """
    draws, counts = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    found, low, high = 0, 0.0, fraction * FIRST_SHARE
    while low < fraction and found < max_windows:
        within = (
            [document for document in group if low <= hash_fraction(document.document_id, PURPOSE) < high]
            for group in read_documents(path)
        )
        for _, batch in batches(within):
            windows = teacher_windows(batch, 0, teacher, limits, Tally())
            draws.append(np.array([hash_fraction(document.document_id, PURPOSE) for document in batch]))
            counts.append(np.bincount(windows.documents, minlength=len(batch)))
            found += len(windows.documents)
        low, high = high, min(2 * high, fraction)
    if found < max_windows:
        return fraction
    draws_D, counts_D = np.concatenate(draws), np.concatenate(counts)
    order = np.argsort(draws_D)
    last = order[np.searchsorted(counts_D[order].cumsum(), max_windows)]
    return math.nextafter(float(draws_D[last]), 1.0)
