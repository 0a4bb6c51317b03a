"""Turn a limit on the windows of a split into a hash fraction, so that every source keeps its share of them."""

import math
from pathlib import Path

import numpy as np

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.teacher_windows import teacher_windows
from moe_distill.alignment.tokenize import batches
from moe_distill.alignment.window_limits import PURPOSE, Cut, SplitCounts, WindowLimits
from moe_distill.corpus.documents import hash_fraction, read_documents

FIRST_SHARE = 1 / 64  # share of the documents that the first pass counts


def limited_fraction(
    path: Path, fraction: float, max_windows: int, teacher: Encoder, limits: WindowLimits
) -> tuple[float, Cut | None]:
    """The hash fraction below which documents of a parquet file have `max_windows` teacher windows; at most `fraction`.

    Only corpus and teacher tokenizer decide, and a higher `max_windows` or `fraction` only adds windows. Each pass
    over the file counts the windows of as many documents as all passes before it, from the lowest hash fractions up,
    until there are enough. So at most about twice as many documents are tokenized as are kept. Memory: 16 bytes for
    each.

    Args:
        path: of the split's documents.
        fraction: hash fraction below which documents are kept if there is no limit.
        max_windows: the limit, of teacher windows.

    Returns:
        The fraction, and where the limit ends in the document that is highest below it; None: it is not reached.
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
        return fraction, None
    document_fractions, document_windows = np.concatenate(fractions), np.concatenate(counts)
    order = np.argsort(document_fractions)
    windows_up_to = document_windows[order].cumsum()
    place = np.searchsorted(windows_up_to, max_windows)
    last, too_many = order[place], int(windows_up_to[place]) - max_windows
    cut = Cut(float(document_fractions[last]), int(document_windows[last]) - too_many)
    return math.nextafter(cut.hash_fraction, 1.0), cut
