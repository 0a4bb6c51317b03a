"""Window cuts against the slow obvious version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_distill.alignment.windows import cut, cut_preferably
from moe_distill.errors import DataError

FLAGS = st.lists(st.booleans(), max_size=25).map(lambda flags: np.array([*flags, True]))


def slow_cut(may_cut: list[bool], max_tokens: int) -> list[int]:
    ends, start = [], 0
    while start < len(may_cut):
        within = [end for end in range(start + 1, start + max_tokens + 1) if end <= len(may_cut) and may_cut[end - 1]]
        if not within:
            break
        start = within[-1]
        ends.append(start)
    return ends


@settings(deadline=None)
@given(FLAGS, st.integers(1, 9))
def test_cut_is_greedy(may_cut, max_tokens):
    assert cut(may_cut, max_tokens).tolist() == slow_cut(may_cut.tolist(), max_tokens)


def test_cut_of_nothing_is_nothing():
    assert cut(np.zeros(0, dtype=bool), 4).tolist() == []


def test_cut_stops_where_no_cut_is_within_reach():
    assert cut(np.array([True, False, False, False, True]), 3).tolist() == [1]


@settings(deadline=None)
@given(FLAGS, FLAGS, st.integers(1, 9))
def test_cut_preferably_covers_everything_and_counts_what_it_forced(preferred, allowed, max_tokens):
    allowed = np.resize(allowed, len(preferred))
    allowed[-1] = True
    preferred = preferred & allowed
    try:
        ends, forced = cut_preferably(preferred, allowed, max_tokens)
    except DataError:
        longest = max(np.diff([-1, *np.flatnonzero(allowed)]))
        assert longest > max_tokens
        return
    assert ends[-1] == len(preferred)
    assert max(np.diff(ends, prepend=0)) <= max_tokens
    assert all(allowed[end - 1] for end in ends)
    assert forced == sum(not preferred[end - 1] for end in ends)
    for start, end in zip([0, *ends[:-1]], ends, strict=True):  # forced only where there was no preferred cut
        assert preferred[end - 1] or not preferred[start : start + max_tokens].any()


def test_a_character_longer_than_the_window_is_refused():
    with pytest.raises(DataError, match=r"more tokens than the student's window may hold \(2\).*student_max_length"):
        cut_preferably(np.array([False, False, True]), np.array([False, False, True]), 2)
