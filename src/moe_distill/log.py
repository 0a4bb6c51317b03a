"""Console output: short lines on stdout, and a progress bar where stderr is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SHOWN_NAMES = 5


def log(message: str) -> None:
    """Print one line without buffering."""
    print(message, flush=True)


def progress_bar(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Iterate with a progress bar on a terminal; silent where stderr is a file or a pipe."""
    yield from tqdm(items, total=total, desc=label, disable=not sys.stderr.isatty(), leave=False)


def shown(names: list[str]) -> str:
    """The first names of a list and how many more there are, for a line."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
