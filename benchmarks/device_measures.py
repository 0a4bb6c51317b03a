"""Use and memory of a device; on a CPU the same functions run, and there is no memory to say."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from moe_distill.utils.device import seconds_when_done


def busy_share(work: Callable[[], None], device: torch.device) -> float:
    """Share of the time, from the first kernel of some work to its last, in which one runs."""
    seconds_when_done(device)
    with torch.profiler.profile() as profiler:
        work()
        seconds_when_done(device)
    kind = device.type.upper()
    kernels = [each for each in profiler.events() if each.device_type.name == kind and not each.is_user_annotation]
    return covered_share([(each.time_range.start, each.time_range.end) for each in kernels])


def covered_share(ranges: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first range's start to the last one's end that lies in at least one."""
    ordered, total, reached = sorted(ranges), 0.0, float("-inf")
    for start, end in ordered:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / (reached - ordered[0][0])


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """The bytes that tensors take at most inside the block: an element of the list at its end, none on a CPU."""
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found.append(torch.cuda.max_memory_allocated(device))
