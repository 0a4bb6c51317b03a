"""Cut token sequences into windows that a model can take.

Texts lie one after the other: `counts` holds the tokens of each, 0 for one that was lost. Cuts are given and returned
as numbers of tokens, counted over all texts: a window [start, end) ends after token `end - 1`.
"""

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.boundaries import Flags, Offsets
from moe_distill.errors import DataError


def cut(counts: Offsets, may_cut: Flags, max_tokens: int) -> Offsets:
    """Greedy window ends: each window takes as many tokens as it may hold and ends where a cut is allowed.

    Args:
        counts: [texts] tokens of each text.
        may_cut: [tokens]; True where a window may end after this token; True for the last one of each text.
        max_tokens: tokens a window may hold.

    Returns:
        int64 [windows]: where the windows end.

    Raises:
        DataError: no cut is within reach (`max_tokens` is below the tokens of one character).
    """
    latest = np.maximum.accumulate(np.where(may_cut, np.arange(1, len(may_cut) + 1), 0))
    ends: list[int] = []
    start = 0
    for stop in np.cumsum(counts).tolist():
        while start < stop:
            end = int(latest[min(start + max_tokens, stop) - 1])
            if end <= start:
                raise DataError(
                    f"a character of the text has more tokens than the teacher's window may hold ({max_tokens})",
                    fix="raise `windows.teacher_max_length` in the profile",
                )
            ends.append(end)
            start = end
    return np.array(ends, dtype=np.int64)


def split_evenly(counts: Offsets, preferred: Flags, allowed: Flags, max_tokens: int) -> tuple[Offsets, int]:
    """Cut each text into few windows of nearly equal length, each cut at the preferred place nearest to its ideal one.

    Where two preferred cuts lie further apart than a window may be long, the allowed ones between them serve too.

    Args:
        counts: [texts] tokens of each text.
        preferred, allowed: [tokens]; whether a window may end after this token; preferred ones are allowed, and
            the last token of each text is both.
        max_tokens: tokens a window may hold.

    Returns:
        int64 [windows]: where the windows end, and how many of these cuts are merely allowed.

    Raises:
        DataError: not even an allowed cut is within reach (`max_tokens` is below the tokens of one character).
    """
    distances = np.diff(np.flatnonzero(preferred), prepend=-1)
    out_of_reach = np.repeat(distances > max_tokens, distances)
    cuts = np.flatnonzero(np.append(True, preferred | (allowed & out_of_reach)))
    if (np.diff(cuts) > max_tokens).any():
        raise DataError(
            f"a character of the text has more tokens than the student's window may hold ({max_tokens})",
            fix="raise `windows.student_max_length` in the profile",
        )
    midpoints = (cuts[1:] + cuts[:-1]) / 2
    stops = np.cumsum(counts)
    pieces = -(-counts // max_tokens)
    # Ends at the latest where ideal places are max_tokens / 2 apart: no cut that is needed is passed over then.
    while True:
        ends = np.unique(cuts[np.searchsorted(midpoints, _even_places(counts, pieces))])
        too_long = ends[np.diff(ends, prepend=0) > max_tokens]
        if not len(too_long):
            break
        pieces[np.unique(np.searchsorted(stops, too_long))] += 1
    ends = ends[ends > 0]  # 0 is the cut before the first text
    return ends, int((~preferred[ends - 1]).sum())


def _even_places(counts: Offsets, pieces: Offsets) -> NDArray[np.float64]:
    """Where the pieces of each text would end if tokens could be cut, [sum of pieces]."""
    owners = np.repeat(np.arange(len(counts)), pieces)
    number = np.arange(1, len(owners) + 1) - (np.cumsum(pieces) - pieces)[owners]
    starts = (np.cumsum(counts) - counts)[owners]
    places: NDArray[np.float64] = starts + number * counts[owners] / pieces[owners]
    return places
