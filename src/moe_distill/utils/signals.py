"""SIGTERM and Ctrl-C: they end a stage at once, or, inside a training, after the step it is in."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived."""


_EXCEPTIONS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def raise_at_once(number: int, _frame: FrameType | None) -> None:
    """A signal handler: the exception of a signal, wherever the program is."""
    raise _EXCEPTIONS[number]


class Postponed:
    """Whether a signal has arrived that waits to be obeyed."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def arrived(self) -> bool:
        return self._number is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """A signal handler: obey later; whoever sends a second signal does not want to wait."""
        self._number = number
        for each in _EXCEPTIONS:
            signal.signal(each, raise_at_once)

    def obey(self) -> None:
        """Raise the exception of the signal that arrived, if one did."""
        if self._number is not None:
            raise _EXCEPTIONS[self._number]


@contextmanager
def postponed_signals() -> Iterator[Postponed]:
    """Inside the block the first SIGTERM or Ctrl-C is only noted."""
    postponed = Postponed()
    previous = {number: signal.signal(number, postponed.note) for number in _EXCEPTIONS}
    try:
        yield postponed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
