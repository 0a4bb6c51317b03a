"""Window cuts against the slow obvious version."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_distill.alignment.windows import cut, split_evenly
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


def slow_split(preferred: list[bool], allowed: list[bool], max_tokens: int) -> list[int]:
    """The fewest pieces for which the cuts nearest to even places leave none too long."""
    stretches, start = [], 0  # between preferred cuts
    for end in (number + 1 for number, flag in enumerate(preferred) if flag):
        stretches.append(range(start + 1, end + 1))
        start = end
    cuts = {stretch[-1] for stretch in stretches}
    cuts |= {end for stretch in stretches if len(stretch) > max_tokens for end in stretch if allowed[end - 1]}
    for pieces in range(-(-len(preferred) // max_tokens), len(preferred) + 1):
        ideal = [number * len(preferred) / pieces for number in range(1, pieces + 1)]
        ends = sorted({min(cuts, key=lambda end, place=place: (abs(end - place), end)) for place in ideal})
        if all(end - start <= max_tokens for start, end in pairwise([0, *ends])):
            return ends
    raise AssertionError("no number of pieces does")


@settings(deadline=None)
@given(FLAGS, FLAGS, st.integers(1, 9))
def test_split_is_the_slow_one_covers_everything_and_counts_what_it_forced(preferred, allowed, max_tokens):
    allowed = np.resize(allowed, len(preferred))
    allowed[-1] = True
    preferred = preferred & allowed
    if max(np.diff([-1, *np.flatnonzero(allowed)])) > max_tokens:
        with pytest.raises(DataError, match="student_max_length"):
            split_evenly(preferred, allowed, max_tokens)
        return
    ends, forced = split_evenly(preferred, allowed, max_tokens)
    assert ends.tolist() == slow_split(preferred.tolist(), allowed.tolist(), max_tokens)
    assert ends[-1] == len(preferred)
    assert 1 <= min(np.diff(ends, prepend=0)) <= max(np.diff(ends, prepend=0)) <= max_tokens
    assert all(allowed[end - 1] for end in ends)
    assert forced == sum(not preferred[end - 1] for end in ends)
    reach = max(np.diff([-1, *np.flatnonzero(preferred)]))
    assert len(ends) <= 2 * len(preferred) / max_tokens + 1  # so few numbers of pieces are tried
    assert forced == 0 or reach > max_tokens  # forced only where preferred cuts are too far apart


@given(st.integers(1, 2000), st.integers(1, 400))
def test_free_cuts_leave_the_fewest_pieces_of_equal_length(n_tokens, max_tokens):
    ends, forced = split_evenly(np.ones(n_tokens, dtype=bool), np.ones(n_tokens, dtype=bool), max_tokens)
    sizes = np.diff(ends, prepend=0)
    assert len(sizes) == -(-n_tokens // max_tokens)
    assert max(sizes) - min(sizes) <= 1
    assert forced == 0


def test_a_character_longer_than_the_window_is_refused():
    with pytest.raises(DataError, match=r"more tokens than the student's window may hold \(2\).*student_max_length"):
        split_evenly(np.array([False, False, True]), np.array([False, False, True]), 2)
