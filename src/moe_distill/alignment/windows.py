"""Cut token sequences into windows that a model can take."""

from itertools import count

import numpy as np

from moe_distill.alignment.boundaries import Flags, Offsets
from moe_distill.errors import DataError


def cut(may_cut: Flags, max_tokens: int) -> Offsets:
    """Greedy window ends: each window takes as many tokens as it may hold and ends where a cut is allowed.

    Args:
        may_cut: [tokens]; True where a window may end after this token; the last one is True.
        max_tokens: tokens a window may hold.

    Returns:
        int64 [windows]: numbers of the tokens after which the windows end (half-open). Where no cut is
        allowed within reach, the result ends there, before the text does.
    """
    latest = np.maximum.accumulate(np.where(may_cut, np.arange(len(may_cut)), -1))
    ends: list[int] = []
    start = 0
    while start < len(may_cut):
        end = int(latest[min(start + max_tokens, len(may_cut)) - 1]) + 1
        if end <= start:
            break
        ends.append(end)
        start = end
    return np.array(ends, dtype=np.int64)


def split_evenly(preferred: Flags, allowed: Flags, max_tokens: int) -> tuple[Offsets, int]:
    """Cut a text into few pieces of nearly equal length, each cut at the preferred place nearest to its ideal one.

    Where two preferred cuts lie further apart than a piece may be long, the allowed ones between them serve too.

    Args:
        preferred, allowed: [tokens]; whether a piece may end after this token; preferred ones are allowed, and
            the last token is both.
        max_tokens: tokens a piece may hold.

    Returns:
        Numbers of the tokens after which the pieces end, and how many of them are merely allowed.

    Raises:
        DataError: not even an allowed cut is within reach (`max_tokens` is below the tokens of one character).
    """
    n_tokens = len(preferred)
    distances = np.diff(np.flatnonzero(preferred), prepend=-1)
    out_of_reach = np.repeat(distances > max_tokens, distances)
    cuts = np.flatnonzero(preferred | (allowed & out_of_reach)) + 1
    if np.diff(cuts, prepend=0).max() > max_tokens:
        raise DataError(
            f"a character of the text has more tokens than the student's window may hold ({max_tokens})",
            fix="raise `windows.student_max_length` in the profile",
        )
    midpoints = (cuts[1:] + cuts[:-1]) / 2
    # Ends at the latest where ideal places are max_tokens / 2 apart: no cut that is needed is passed over then.
    for pieces in count(-(-n_tokens // max_tokens)):
        ideal = np.arange(1, pieces + 1) * n_tokens / pieces
        ends = np.unique(cuts[np.searchsorted(midpoints, ideal)])
        if np.diff(ends, prepend=0).max() <= max_tokens:
            break
    return ends, int((~preferred[ends - 1]).sum())
