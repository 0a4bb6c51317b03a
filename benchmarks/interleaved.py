"""Kinds of work timed in turn, so that each ratio is of neighbours in time and a noisy machine does not decide."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from moe_distill.utils.device import seconds_when_done

Clock = Literal["cpu", "wall"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Spread:
    """Of some measurements of one thing: the middle, and the quartiles around it (of two or three, the ends)."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Times:
    """Seconds of each kind of work, in the order of the rounds."""

    cpu: dict[str, list[float]]  # of this process, all threads
    wall: dict[str, list[float]]

    def ratio(self, upper: str, lower: str, clock: Clock) -> Spread:
        """Of two kinds of work, round by round."""
        seconds = self._of(clock)
        return spread([above / below for above, below in zip(seconds[upper], seconds[lower], strict=True)])

    def median(self, kind: str, clock: Clock) -> float:
        return statistics.median(self._of(clock)[kind])

    def _of(self, clock: Clock) -> dict[str, list[float]]:
        return self.cpu if clock == "cpu" else self.wall


def interleave(
    works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device = CPU, warm: bool = True
) -> Times:
    """Do each kind of work once a round, after a round that does not count where `warm`."""
    times = Times({kind: [] for kind in works}, {kind: [] for kind in works})
    for number in range(rounds + warm):
        for kind, work in works.items():
            began = clocks(device)
            work()
            ended = clocks(device)
            if number >= warm:
                times.cpu[kind].append(ended[0] - began[0])
                times.wall[kind].append(ended[1] - began[1])
    return times


def spread(values: list[float]) -> Spread:
    low, high = (min(values), max(values)) if len(values) < 4 else statistics.quantiles(values, n=4)[::2]
    return Spread(statistics.median(values), low, high, len(values))


def child_clocks() -> tuple[float, float]:
    """Seconds of the processes that this one has started and that have ended, and of the wall."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def clocks(device: torch.device) -> tuple[float, float]:
    """Seconds of this process, all threads, and of the wall, read when the device has done what it was asked."""
    wall = seconds_when_done(device)
    return time.process_time(), wall
