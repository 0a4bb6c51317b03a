"""Cut token sequences into windows that a model can take."""

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


def cut_preferably(preferred: Flags, allowed: Flags, max_tokens: int) -> tuple[Offsets, int]:
    """Window ends at preferred cuts; at an allowed one where no preferred cut is within reach.

    Returns:
        The ends, and how many of them had to be merely allowed.

    Raises:
        DataError: not even an allowed cut is within reach (`max_tokens` is below the tokens of one character).
    """
    ends: list[int] = []
    start, forced = 0, 0
    while start < len(preferred):
        part = cut(preferred[start:], max_tokens)
        if not len(part):
            part = cut(allowed[start:], max_tokens)[:1]
            forced += 1
            if not len(part):
                raise DataError(
                    f"a character of the text has more tokens than the student's window may hold ({max_tokens})",
                    fix="raise `windows.student_max_length` in the profile",
                )
        ends.extend((part + start).tolist())
        start = ends[-1]
    return np.array(ends, dtype=np.int64), forced
