"""How long a turn of a loop takes, by a clock that a test moves."""

import pytest
import torch

from moe_distill.planning import loop_time


@pytest.mark.parametrize(
    ("turns", "seconds", "mean", "done"),
    [
        ([9.0, 1.0, 3.0], 4.0, 9.0, 1),  # the first has taken all the time there is
        ([2.0, 1.0, 3.0, 5.0], 4.0, 2.0, 3),
        ([3.0], 0.0, 3.0, 1),
    ],
)
def test_the_first_turn_counts_only_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch, turns: list[float], seconds: float, mean: float, done: int
) -> None:
    now, taken = [0.0], iter(turns)
    monkeypatch.setattr(loop_time, "seconds_when_done", lambda _device: now[0])
    ran: list[float] = []

    def turn() -> None:
        ran.append(next(taken))
        now[0] += ran[-1]

    assert loop_time.time_loop(turn, torch.device("cpu"), seconds) == loop_time.LoopTime(mean, None)
    assert len(ran) == done
