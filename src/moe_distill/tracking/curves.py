"""Curves as tab-separated files, which plots and MLflow are made from. They hold no times, so equal runs are equal."""

from collections.abc import Mapping
from pathlib import Path

from moe_distill.utils.files import write_atomically

CURVE_NAME, VALIDATION_CURVE_NAME = "curve.tsv", "validation.tsv"  # in a work folder


class Curve:
    """A growing table with fixed columns, `step` first; a missing value is an empty cell.

    Rows after `last_step` are dropped on opening: a run that resumes there writes them again.
    """

    def __init__(self, path: Path, columns: list[str], last_step: int) -> None:
        self._path, self._columns = path, ["step", *columns]
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        rows = text.split("\n")[1:-1]  # what no newline ends was cut off as it was written: its step may be too
        kept = [row for row in rows if int(row.partition("\t")[0] or 0) <= last_step]
        write_atomically(path, ("\n".join(["\t".join(self._columns), *kept]) + "\n").encode())

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row; numbers get nine significant digits."""
        cells = [str(step), *(f"{values[name]:.9g}" if name in values else "" for name in self._columns[1:])]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\t".join(cells) + "\n")

    def publish(self, path: Path) -> None:
        """Copy the table to where DVC and MLflow read it."""
        write_atomically(path, self._path.read_bytes())
