"""Console output: short lines on stdout, and how far long work has got.

Where stderr is a terminal there is one bar, and a line is written above it. Else there is a line at least each minute.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")
SHOWN_NAMES = 5
MESSAGE_SECONDS = 60.0


class Advance(Protocol):
    """Says that more is done."""

    def __call__(self, done: int = 1, tokens: int = 0) -> None: ...


def log(message: str) -> None:
    """Print one line without buffering, above a bar if there is one."""
    if sys.stderr.isatty():
        from tqdm import tqdm  # here and below: it takes longer to import than all else that `--help` needs

        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
    else:
        print(message, flush=True)


@contextmanager
def progress(
    total: int, label: str, unit: str = "steps", done: int = 0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Advance]:
    """Show how far work has got, how long the rest will take, and tokens per second where these are counted.

    Args:
        total: of what is counted in `unit`, what is `done` already included.
        label: name of the stage, and of its part where it has several.
        clock: seconds.

    Yields:
        A function to call when more is done: `advance(done, tokens)`.
    """
    from tqdm import tqdm

    began = said = clock()
    first, at, n_tokens = done, done, 0
    bar = tqdm(total=total, initial=done, desc=label, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False)

    def advance(done: int = 1, tokens: int = 0) -> None:
        nonlocal at, n_tokens, said
        at, n_tokens, now = at + done, n_tokens + tokens, clock()
        seconds = max(now - began, 1e-9)
        if n_tokens:
            bar.set_postfix_str(f"{n_tokens / seconds:,.0f} tokens/s", refresh=False)
        bar.update(done)
        if bar.disable and now - said >= MESSAGE_SECONDS and at < total:
            left = _duration(seconds * (total - at) / max(at - first, 1))
            speed = f", {n_tokens / seconds:,.0f} tokens/s" if n_tokens else ""
            log(f"{label}: {at:,} of {total:,} {unit}, {at / total:.0%}{speed}, {left} left")
            said = now

    try:
        yield advance
    finally:
        bar.close()


def progress_bar(
    items: Iterable[Item],
    total: int,
    label: str,
    unit: str = "batches",
    tokens: Callable[[Item], int] = lambda _item: 0,
) -> Iterator[Item]:
    """Iterate, and show how far this has got; `tokens` tells how many an item has."""
    with progress(total, label, unit) as advance:
        for item in items:
            yield item
            advance(1, tokens(item))


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def shown(names: list[str]) -> str:
    """The first names of a list and how many more there are, for a line."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
