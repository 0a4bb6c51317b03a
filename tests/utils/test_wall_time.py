"""The time that a person has waited, from spans of several processes and runs."""

import random
import time

import pytest

from moe_distill.utils.wall_time import Stopwatch, covered_seconds


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(5, 8)], 3),
        ([(5, 8), (8, 9)], 4),
        ([(5, 8), (5, 8)], 3),  # two processes side by side
        ([(5, 8), (6, 10)], 5),
        ([(5, 10), (6, 7), (8, 9)], 5),
        ([(100, 102), (5, 8)], 5),  # another run, days later
    ],
)
def test_what_several_spans_cover_is_counted_once(spans: list[tuple[float, float]], seconds: float) -> None:
    assert covered_seconds(spans) == seconds


def test_as_the_seconds_counted_one_by_one() -> None:
    generator = random.Random(0)
    for _ in range(200):
        starts = [generator.randrange(50) for _ in range(generator.randrange(1, 8))]
        spans = [(start, start + generator.randrange(1, 20)) for start in starts]
        assert covered_seconds(spans) == len({second for began, ended in spans for second in range(began, ended)})


def test_laps_follow_each_other_also_where_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    stopwatch = Stopwatch()
    monkeypatch.setattr(time, "time", lambda: before - 1000)
    laps = [stopwatch.lap(), stopwatch.lap()]
    monkeypatch.undo()
    assert before <= laps[0][0] <= laps[0][1] == laps[1][0] <= laps[1][1] <= time.time() + 1e-3
