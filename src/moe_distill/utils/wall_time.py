"""Time that a piece of work took as a person waits for it, whoever did its parts, at the same time or days apart."""

import time
from collections.abc import Iterable

Span = tuple[float, float]  # begin and end, in seconds of the clock


class Stopwatch:
    """Measures one span after the other."""

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()  # which never goes back
        self._began = time.perf_counter()

    def lap(self) -> Span:
        """The span since the last one ended; the first one begins with the watch."""
        began, self._began = self._began, time.perf_counter()
        return began + self._offset, self._began + self._offset


def covered_seconds(spans: Iterable[Span]) -> float:
    """Seconds that lie in at least one span."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total
