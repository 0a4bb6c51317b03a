"""SIGTERM and Ctrl-C: they end a stage at once, or a training after its current step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived."""


_EXCEPTIONS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def raise_at_once(number: int, _frame: FrameType | None) -> None:
    """A signal handler that raises the signal's exception wherever the program is."""
    raise _EXCEPTIONS[number]


class Postponed:
    """A signal that has arrived inside a block of `postponed_signals`, if any."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def arrived(self) -> bool:
        return self._number is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """A signal handler that only remembers the signal; a second signal raises its exception at once."""
        self._number = number
        for each in _EXCEPTIONS:
            signal.signal(each, raise_at_once)

    def obey(self) -> None:
        """Raise the exception of the signal that has arrived, if any."""
        if self._number is not None:
            raise _EXCEPTIONS[self._number]


@contextmanager
def postponed_signals() -> Iterator[Postponed]:
    """Inside the block the first SIGTERM or Ctrl-C is only remembered; the caller asks for it between two steps."""
    postponed = Postponed()
    previous = {number: signal.signal(number, postponed.note) for number in _EXCEPTIONS}
    try:
        yield postponed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
