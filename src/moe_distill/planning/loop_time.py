"""Time the turns of a loop on a device, and the memory that they take at most."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from moe_distill.utils.device import seconds_when_done


@dataclass(frozen=True)
class LoopTime:
    """What a turn takes."""

    seconds: float
    peak_bytes: float | None  # None: on a CPU it is not known


def time_loop(run: Callable[[], object], device: torch.device, seconds: float) -> LoopTime:
    """Mean of the turns of some seconds, the first one left out; where that took all the time, it is the measure."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    spent, turns, first = 0.0, 0, _turn(run, device)
    while first < seconds and spent < seconds:
        spent += _turn(run, device)
        turns += 1
    peak = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
    return LoopTime(spent / turns if turns else first, peak)


def _turn(run: Callable[[], object], device: torch.device) -> float:
    began = seconds_when_done(device)
    run()
    return seconds_when_done(device) - began
