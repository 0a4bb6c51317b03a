"""Window cuts against the slow obvious version."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_distill.alignment.window_cuts import cut, split_evenly, uncuttable


@dataclass(frozen=True)
class Text:
    """The tokens of one text: whether a window may, or had better, end after each."""

    allowed: list[bool]
    preferred: list[bool]


@st.composite
def texts(draw: st.DrawFn) -> Text:
    flags = draw(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=25))
    allowed, preferred = [allowed for allowed, _ in flags], [allowed and liked for allowed, liked in flags]
    if not flags and draw(st.booleans()):
        return Text([], [])
    return Text([*allowed, True], [*preferred, True])


TEXTS = st.lists(texts(), max_size=4)


def arrays(parts: list[Text]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of each text; allowed and preferred flags of all, end to end."""
    allowed = np.array([flag for part in parts for flag in part.allowed], dtype=bool)
    preferred = np.array([flag for part in parts for flag in part.preferred], dtype=bool)
    return np.array([len(part.allowed) for part in parts], dtype=np.int64), allowed, preferred


def reach(flags: list[bool]) -> int:
    """The most tokens from one cut to the next."""
    ends = [0, *(number + 1 for number, flag in enumerate(flags) if flag)]
    return max((end - start for start, end in pairwise(ends)), default=0)


def stuck(parts: list[Text], max_tokens: int) -> list[tuple[int, int]]:
    """Numbers of the texts that no windows fit, and in each the first token of the first stretch that is too long."""
    found = []
    for number, part in enumerate(parts):
        ends = [0, *(place + 1 for place, flag in enumerate(part.allowed) if flag)]
        too_long = [start for start, end in pairwise(ends) if end - start > max_tokens]
        found += [(number, too_long[0])] if too_long else []
    return found


def fitting(parts: list[Text], max_tokens: int) -> list[Text]:
    """The texts that windows fit."""
    left_out = {number for number, _ in stuck(parts, max_tokens)}
    return [part for number, part in enumerate(parts) if number not in left_out]


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.integers(1, 9))
def test_texts_that_no_windows_fit_are_found(parts: list[Text], max_tokens: int) -> None:
    counts, allowed, _ = arrays(parts)
    texts, tokens = uncuttable(counts, allowed, max_tokens)
    before = np.cumsum(counts) - counts
    assert list(zip(texts.tolist(), (tokens - before[texts]).tolist(), strict=True)) == stuck(parts, max_tokens)


def placed(ends_of_texts: list[list[int]], parts: list[Text]) -> list[int]:
    """Ends within each text, counted over all texts."""
    before = [sum(len(part.allowed) for part in parts[:number]) for number in range(len(parts))]
    return [start + end for start, ends in zip(before, ends_of_texts, strict=True) for end in ends]


def slow_cut(may_cut: list[bool], max_tokens: int) -> list[int]:
    ends, start = [], 0
    while start < len(may_cut):
        within = [end for end in range(start + 1, start + max_tokens + 1) if end <= len(may_cut) and may_cut[end - 1]]
        start = within[-1]
        ends.append(start)
    return ends


@settings(deadline=None)
@given(TEXTS, st.integers(1, 9))
def test_cut_is_greedy(parts: list[Text], max_tokens: int) -> None:
    parts = fitting(parts, max_tokens)
    counts, allowed, _ = arrays(parts)
    expected = placed([slow_cut(part.allowed, max_tokens) for part in parts], parts)
    assert cut(counts, allowed, max_tokens).tolist() == expected


def nearest(cuts: set[int], place: float) -> int:
    """The first one of two that are equally near."""
    return min(cuts, key=lambda end: (abs(end - place), end))


def slow_split(part: Text, max_tokens: int) -> list[int]:
    """The fewest pieces for which the cuts nearest to even places leave none too long."""
    stretches, start = [], 0  # between preferred cuts
    for end in (number + 1 for number, flag in enumerate(part.preferred) if flag):
        stretches.append(range(start + 1, end + 1))
        start = end
    cuts = {0, *(stretch[-1] for stretch in stretches)}
    cuts |= {end for stretch in stretches if len(stretch) > max_tokens for end in stretch if part.allowed[end - 1]}
    n_tokens = len(part.allowed)
    for pieces in range(-(-n_tokens // max_tokens), n_tokens + 1):
        ideal = [number * n_tokens / pieces for number in range(1, pieces + 1)]
        ends = sorted({nearest(cuts, place) for place in ideal} - {0})
        if all(end - start <= max_tokens for start, end in pairwise([0, *ends])):
            return ends
    raise AssertionError("no number of pieces does")


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.integers(1, 9))
def test_split_is_the_slow_one_covers_everything_and_counts_what_it_forced(parts: list[Text], max_tokens: int) -> None:
    parts = fitting(parts, max_tokens)
    counts, allowed, preferred = arrays(parts)
    ends, forced = split_evenly(counts, preferred, allowed, max_tokens)
    assert ends.tolist() == placed([slow_split(part, max_tokens) for part in parts], parts)
    assert set(np.cumsum(counts[counts > 0])) <= set(ends.tolist())
    assert all(1 <= end - start <= max_tokens for start, end in pairwise([0, *ends]))
    assert all(allowed[end - 1] for end in ends)
    assert forced == sum(not preferred[end - 1] for end in ends)
    assert forced == 0 or any(reach(part.preferred) > max_tokens for part in parts)
    assert len(ends) <= sum(2 * count / max_tokens + 1 for count in counts)  # so few numbers of pieces are tried


@given(st.integers(1, 2000), st.integers(1, 400))
def test_free_cuts_leave_the_fewest_pieces_of_equal_length(n_tokens: int, max_tokens: int) -> None:
    anywhere = np.ones(n_tokens, dtype=bool)
    ends, forced = split_evenly(np.array([n_tokens]), anywhere, anywhere, max_tokens)
    sizes = np.diff(ends, prepend=0)
    assert len(sizes) == -(-n_tokens // max_tokens)
    assert max(sizes) - min(sizes) <= 1
    assert forced == 0
