"""Read a store through memory maps. The hash and the values of a file are verified before its first value is used."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_distill.errors import DataError, restore_command
from moe_distill.shards.format import DTYPES, FileEntry, Index, command_to_write, read_index
from moe_distill.shards.value_checks import check_finite, check_range
from moe_distill.utils.files import sha256_file


@dataclass(frozen=True)
class _Shard:
    path: Path
    columns: dict[str, Tensor]  # mapped from the file, not copied


class ShardReader:
    """The rows of a store, by their number over all files.

    Columns are mapped into memory, not copied, so a store may be larger than the memory.

    Args:
        folder: of the store.
        expected_format: its `format`, such as `moe-distill/teacher-targets`.

    Raises:
        DataError: the index is missing, corrupt, or of another format or version; or, when a file is first used, the
            file is missing or corrupt, or differs from its index in dtypes, shapes or values.
    """

    def __init__(self, folder: Path, expected_format: str) -> None:
        self.folder = folder
        self.index: Index = read_index(folder, expected_format)
        self._shards: dict[int, _Shard] = {}
        self._ranges: dict[str, range] = {}
        self._ends = {
            table: list(accumulate(entry.rows[table] for entry in self.index.files))
            for table in sorted({spec.table for spec in self.index.fields.values()})
        }

    def expect(self, field: str, allowed: range) -> None:
        """Refuse every file, open or opened later, in which the integer field `field` has a value outside `allowed`."""
        self._ranges[field] = allowed
        for number, shard in self._shards.items():
            self._check_range(field, number, shard.columns[field])

    @property
    def fix(self) -> str:
        """The command that writes the store again, as the `fix` of an error."""
        return command_to_write(self.index.format)

    def path(self, file_number: int) -> Path:
        """Path of a file."""
        return self.folder / self.index.files[file_number].name

    def rows(self, table: str) -> int:
        """Rows of `table` over all files."""
        return self.index.rows(table)

    def locate(self, table: str, row: int) -> tuple[int, int]:
        """File number of a row of `table`, and its row number inside that file."""
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
        """Rows `start:stop` of a field, which must lie in one file, as all rows of a window do.

        Raises:
            ValueError: they lie in several files.
        """
        number, first = self.locate(self.index.fields[field].table, start)
        rows = self.column(field, number)[first : first + stop - start]
        if len(rows) != stop - start:
            raise ValueError(f"rows {start}:{stop} of {field} do not lie in one file of {self.folder}")
        return rows

    def columns(self, field: str) -> Iterator[Tensor]:
        """Yield the field's rows, one tensor for each file."""
        for number in range(len(self.index.files)):
            yield self.column(field, number)

    def verify(self) -> None:
        """Verify every file."""
        for number in range(len(self.index.files)):
            self.verify_file(number)

    def verify_file(self, number: int) -> None:
        """Verify one file."""
        self._open(number)

    def _open(self, number: int) -> _Shard:
        if number not in self._shards:
            self._shards[number] = self._verified(number)
        return self._shards[number]

    def _verified(self, number: int) -> _Shard:
        entry, path = self.index.files[number], self.path(number)
        if not path.is_file():
            raise DataError(f"{path} does not exist", "its index lists it", "run: dvc checkout, or dvc repro")
        found = sha256_file(path)
        if found != entry.sha256:
            raise DataError(
                f"{path} is corrupt", f"sha256 {found}, its index says {entry.sha256}", restore_command(path)
            )
        try:
            with safe_open(path, framework="pt") as file:
                columns = {name: file.get_tensor(name) for name in self.index.fields}
        except SafetensorError as error:
            raise DataError(f"{path} is not safetensors", str(error), self.fix) from error
        self._check_columns(path, entry, columns)
        self._check_values(number, columns)
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
                raise DataError(
                    f"{path}: field {name} is {found}, its index says {spec.dtype} {expected}", fix=self.fix
                )

    def _check_values(self, number: int, columns: dict[str, Tensor]) -> None:
        for name, spec in self.index.fields.items():
            if columns[name].is_floating_point():
                check_finite(self._place(name, number), columns[name], self.first_row(spec.table, number), self.fix)
        for name in self._ranges:
            self._check_range(name, number, columns[name])

    def _check_range(self, field: str, number: int, column: Tensor) -> None:
        first = self.first_row(self.index.fields[field].table, number)
        check_range(self._place(field, number), column, first, self._ranges[field], self.fix)

    def _place(self, field: str, number: int) -> str:
        return f"{self.path(number)}: field {field}"
