"""One line of the table of benchmarks, and how much is run for it."""

from dataclasses import dataclass
from enum import Enum

from interleaved import Spread


class Size(Enum):
    """How much is run: the code alone on the smallest things, `make bench`, or `make bench-full`."""

    SMALLEST = "smallest"
    SHORT = "short"
    FULL = "full"

    def pick(self, smallest: int, short: int, full: int) -> int:
        return {Size.SMALLEST: smallest, Size.SHORT: short, Size.FULL: full}[self]


@dataclass(frozen=True)
class Target:
    """What is asked of a figure."""

    value: float
    unit: str  # "x": of the ratio
    at_most: bool  # else the target is the least

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}{'' if self.unit == 'x' else ' '}{self.unit}"

    def holds(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value


@dataclass(frozen=True)
class Row:
    """A line; a figure that could not be measured, or only quoted, says so in `note`."""

    what: str
    ours: str = ""
    reference: str = ""
    ratio: Spread | None = None
    target: Target | None = None
    value: float | None = None  # what the target is asked of, in its unit, where that is not the ratio
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target holds; None where nothing is asked or nothing was measured."""
        measured = self.value if self.value is not None else self.ratio.median if self.ratio is not None else None
        return None if self.target is None or measured is None else self.target.holds(measured)


def at_most(value: float, unit: str = "x") -> Target:
    return Target(value, unit, at_most=True)


def at_least(value: float, unit: str = "x") -> Target:
    return Target(value, unit, at_most=False)


def missing(what: str, why: str, target: Target | None = None) -> Row:
    """A line without a figure."""
    return Row(what, target=target, note=f"no figure: {why}")
