"""Console output: short lines on stdout, and a progress bar where stderr is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def log(message: str) -> None:
    """Print one line without buffering."""
    print(message, flush=True)


def progress_bar(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Iterate with a progress bar on a terminal; silent where stderr is a file or a pipe."""
    yield from tqdm(items, total=total, desc=label, disable=not sys.stderr.isatty(), leave=False)
