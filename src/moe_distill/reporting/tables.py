"""A table of a report, and how numbers are written in it."""

from dataclasses import dataclass

UNKNOWN = "not known"
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Table:
    """A table with a header; the first column names a row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def told_bytes(n_bytes: float) -> str:
    """A number of bytes in the largest unit that leaves a whole one."""
    for unit, size in UNITS:
        if n_bytes >= 0.99995 * size:  # 1.0 MB, not 1000.0 kB
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def told_seconds(seconds: float) -> str:
    """A time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def told_count(value: float) -> str:
    """A whole number, its thousands set apart."""
    return f"{value:,.0f}"
