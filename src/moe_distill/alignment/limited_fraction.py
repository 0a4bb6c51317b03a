"""Turn a limit on the windows of a split into a hash fraction, so that every source keeps its share of them."""

import math
from pathlib import Path

import numpy as np

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.teacher_windows import teacher_windows
from moe_distill.alignment.tokenize import batches
from moe_distill.alignment.window_limits import SplitCounts, WindowLimits
from moe_distill.corpus.documents import hash_fraction, read_documents

PURPOSE = "distil"  # of the hash fraction that chooses documents for distillation
FIRST_SHARE = 1 / 64  # share of the documents that the first pass counts


def limited_fraction(path: Path, fraction: float, max_windows: int, teacher: Encoder, limits: WindowLimits) -> float:
    """The hash fraction below which documents of a parquet file have `max_windows` teacher windows; at most `fraction`.

    Only corpus and teacher tokenizer decide, and a higher `max_windows` or `fraction` only adds documents. Each pass
    over the file counts the windows of as many documents as all passes before it, from the lowest hash fractions up,
    until there are enough. So at most about twice as many documents are tokenized as are kept. Memory: 16 bytes for
    each.

    Args:
        path: of the split's documents.
        fraction: hash fraction below which documents are kept if there is no limit.
        max_windows: the limit, of teacher windows.
    """
    fractions, counts = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    found, low, high = 0, 0.0, fraction * FIRST_SHARE
    while low < fraction and found < max_windows:
        within = (
            [document for document in group if low <= hash_fraction(document.document_id, PURPOSE) < high]
            for group in read_documents(path)
        )
        for _, batch in batches(within):
            windows = teacher_windows(batch, 0, teacher, limits, SplitCounts())
            fractions.append(np.array([hash_fraction(document.document_id, PURPOSE) for document in batch]))
            counts.append(np.bincount(windows.documents, minlength=len(batch)))
            found += len(windows.documents)
        low, high = high, min(2 * high, fraction)
    if found < max_windows:
        return fraction
    document_fractions, document_windows = np.concatenate(fractions), np.concatenate(counts)
    order = np.argsort(document_fractions)
    last = order[np.searchsorted(document_windows[order].cumsum(), max_windows)]
    return math.nextafter(float(document_fractions[last]), 1.0)
