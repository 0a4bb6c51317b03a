"""Checks of the values of a column when its file is opened: a hash cannot tell that a wrong value was written."""

import torch
from torch import Tensor

from moe_distill.errors import DataError


def is_finite(values: Tensor) -> bool:
    """Whether there is neither a NaN nor an infinity among the values."""
    # one pass without a temporary; a NaN is both the least and the greatest value
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def check_finite(place: str, column: Tensor, first_row: int, fix: str) -> None:
    """Refuse a column of floating-point numbers that holds a NaN or an infinity.

    Args:
        place: file and field, for the error.
        column: [rows, ...].
        first_row: number of its first row over all files.
        fix: the command that writes the store again.

    Raises:
        DataError: there is one; names the row and the value.
    """
    if is_finite(column):
        return
    row, value = _first(column, ~torch.isfinite(column))
    raise DataError(f"{place}, row {first_row + row} is {value}", "every stored number is finite", fix)


def check_range(place: str, column: Tensor, first_row: int, allowed: range, fix: str) -> None:
    """Refuse a column of integers that holds one outside `allowed`; see `check_finite` for the other arguments.

    Raises:
        DataError: there is one; names the row, the value and the bounds.
    """
    if not column.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(column))
    if low >= allowed.start and high < allowed.stop:
        return
    wide = column.long()  # a bound may be more than the column's dtype holds
    row, value = _first(column, (wide < allowed.start) | (wide >= allowed.stop))
    bounds = f"it must be from {allowed.start} to {allowed.stop - 1}"
    raise DataError(f"{place}, row {first_row + row} is {value:.0f}", bounds, fix)


def _first(column: Tensor, is_wrong: Tensor) -> tuple[int, float]:
    """Row and value of the first wrong entry."""
    place = is_wrong.nonzero()[0]
    return int(place[0]), float(column[tuple(place)])
