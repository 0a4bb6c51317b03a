"""Read a store through memory maps; every file is verified before its first value is used."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.shards.format import DTYPES, FileEntry, Index, read_index
from moe_distill.workspace import sha256_file


@dataclass(frozen=True)
class _Shard:
    path: Path
    columns: dict[str, Tensor]  # mapped from the file, not copied


class ShardReader:
    """Rows of a store by their number over all files.

    Memory stays flat: columns are mapped, and the operating system drops pages it needs elsewhere.
    """

    def __init__(self, folder: Path, expected_format: str) -> None:
        self.folder = folder
        self.index: Index = read_index(folder, expected_format)
        self._shards: dict[int, _Shard] = {}
        self._ends = {
            table: list(accumulate(entry.rows[table] for entry in self.index.files))
            for table in sorted({spec.table for spec in self.index.fields.values()})
        }

    def rows(self, table: str) -> int:
        return self.index.rows(table)

    def locate(self, table: str, row: int) -> tuple[int, int]:
        """(file number, row number inside that file) of a row of `table`."""
        ends = self._ends[table]
        number = bisect_right(ends, row)
        return number, row - (ends[number - 1] if number else 0)

    def first_row(self, table: str, file_number: int) -> int:
        """Number, over all files, of the first row of `table` in a file."""
        return self._ends[table][file_number - 1] if file_number else 0

    def column(self, field: str, file_number: int) -> Tensor:
        """All rows of one field in one file, as a read-only view of the mapped file."""
        return self._open(file_number).columns[field]

    def slice(self, field: str, start: int, stop: int) -> Tensor:
        """Rows `start:stop` of a field.

        Raises:
            ValueError: they do not lie in one file, as the rows of a window do.
        """
        number, first = self.locate(self.index.fields[field].table, start)
        rows = self.column(field, number)[first : first + stop - start]
        if len(rows) != stop - start:
            raise ValueError(f"rows {start}:{stop} of {field} do not lie in one file of {self.folder}")
        return rows

    def columns(self, field: str) -> Iterator[Tensor]:
        """The field's rows, file after file."""
        for number in range(len(self.index.files)):
            yield self.column(field, number)

    def verify(self) -> None:
        """Open, and so check, every file."""
        for number in range(len(self.index.files)):
            self._open(number)

    def _open(self, number: int) -> _Shard:
        if number not in self._shards:
            self._shards[number] = self._verified(self.index.files[number])
        return self._shards[number]

    def _verified(self, entry: FileEntry) -> _Shard:
        path = self.folder / entry.name
        if not path.is_file():
            raise DataError(f"{path} does not exist", "its index lists it", "run: dvc checkout, or dvc repro")
        found = sha256_file(path)
        if found != entry.sha256:
            raise DataError(
                f"{path} is corrupt",
                f"sha256 {found}, its index says {entry.sha256}",
                f"remove {path} from the workspace and the DVC cache, then run: dvc repro",
            )
        try:
            with safe_open(path, framework="pt") as file:
                columns = {name: file.get_tensor(name) for name in self.index.fields}
        except SafetensorError as error:
            raise DataError(f"{path} is not safetensors", str(error)) from error
        self._check_columns(path, entry, columns)
        return _Shard(path, columns)

    def _check_columns(self, path: Path, entry: FileEntry, columns: dict[str, Tensor]) -> None:
        for name, spec in self.index.fields.items():
            expected = (entry.rows[spec.table], *spec.shape)
            if (
                name not in columns
                or tuple(columns[name].shape) != expected
                or columns[name].dtype != DTYPES[spec.dtype]
            ):
                found = (columns[name].dtype, tuple(columns[name].shape)) if name in columns else "nothing"
                raise DataError(f"{path}: field {name} is {found}, its index says {spec.dtype} {expected}")
