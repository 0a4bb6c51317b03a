"""Write a store shard by shard, so that a killed writer loses one shard at most.

Beside each finished shard a progress file says what the index will hold of it and where the caller's input continues.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.shards.format import (
    DTYPES,
    FORMAT_VERSION,
    INDEX_NAME,
    FieldSpec,
    FileEntry,
    Index,
    Metadata,
    shard_name,
)
from moe_distill.shards.value_checks import is_finite
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import sha256_file, write_atomically


class _ShardProgress(BaseModel):
    """The content of a shard's progress file (docs/formats.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: FileEntry
    next_input: int  # the caller's next input after this shard
    tallies: dict[str, float]  # sums the caller keeps beside the rows


class ShardWriter:
    """Append rows to the tables of a store, or continue a store whose writer was killed, after its last whole shard.

    A caller that wants to continue appends its inputs from number `next_input` on. A finished store is continued too:
    `next_input` is then past the last input, and `finish` writes the same index.

    Args:
        folder: where the shards are written.
        fields: every column; a call of `append` gives a tensor for each.
        main_table: the table whose rows decide when a shard is full.
        rows_per_shard: rows of the main table at which a shard is closed.
        progress_folder: where the progress files are; None: the store is written without them, and not continued.
    """

    def __init__(
        self,
        folder: Path,
        fields: Mapping[str, FieldSpec],
        main_table: str,
        rows_per_shard: int,
        progress_folder: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        self._folder, self._fields, self._progress_folder = folder, dict(fields), progress_folder
        self._main_table, self._rows_per_shard = main_table, rows_per_shard
        self._progress = [] if progress_folder is None else _finished_shards(folder, progress_folder)
        self._pending_next_input = 0
        self._pending: dict[str, list[Tensor]] = {name: [] for name in fields}
        self._pending_tallies: Counter[str] = Counter()

    @property
    def next_input(self) -> int:
        """Number of the caller's first input that no finished shard holds; 0 where there is no shard."""
        return self._progress[-1].next_input if self._progress else 0

    def rows(self, table: str) -> int:
        """Rows of `table` in finished shards and pending."""
        return sum(shard.entry.rows[table] for shard in self._progress) + self._pending_rows(table)

    def tally(self, name: str) -> float:
        """Sum of a tally over all rows appended, those of a killed process before this one included."""
        return sum(shard.tallies.get(name, 0.0) for shard in self._progress) + self._pending_tallies[name]

    def append(
        self, columns: Mapping[str, Tensor], next_input: int, tallies: Mapping[str, float] | None = None
    ) -> None:
        """Add rows, and close a shard where they fill it.

        Args:
            columns: a tensor [rows, ...] for each field.
            next_input: number of the caller's input that follows these rows.
            tallies: numbers to add to sums that are kept with the shard, and so survive a kill.

        Raises:
            ValueError: a column is missing, or its dtype, row shape or row count differs from its table's.
        """
        self._check(columns)
        for name, column in columns.items():
            self._pending[name].append(column.detach().cpu().contiguous())
        self._pending_tallies.update(tallies or {})
        self._pending_next_input = next_input
        if self._pending_rows(self._main_table) >= self._rows_per_shard:
            self._flush()

    def finish(self, store_format: str, fingerprint: str, metadata: Metadata) -> Index:
        """Close the last shard and write the index."""
        if self._pending_rows(self._main_table):
            self._flush()
        index = Index(
            format=store_format,
            format_version=FORMAT_VERSION,
            fingerprint=fingerprint,
            fields=self._fields,
            files=[shard.entry for shard in self._progress],
            metadata=metadata,
        )
        write_checksummed_json(self._folder / INDEX_NAME, index.to_json())
        return index

    def _pending_rows(self, table: str) -> int:
        field = next(name for name, spec in self._fields.items() if spec.table == table)
        return sum(len(part) for part in self._pending[field])

    def _check(self, columns: Mapping[str, Tensor]) -> None:
        if set(columns) != set(self._fields):
            raise ValueError(f"columns {sorted(columns)} given, {sorted(self._fields)} expected")
        rows: dict[str, int] = {}
        for name, column in columns.items():
            spec = self._fields[name]
            if column.dtype != DTYPES[spec.dtype] or tuple(column.shape[1:]) != spec.shape:
                found = f"{column.dtype} {tuple(column.shape[1:])}"
                raise ValueError(f"{name}: {found}, expected {spec.dtype} {spec.shape}")
            if rows.setdefault(spec.table, len(column)) != len(column):
                raise ValueError(f"{name}: {len(column)} rows, table {spec.table} has {rows[spec.table]}")
            if not is_finite(column):
                raise ValueError(f"{name}: a non-finite value is never written")

    def _flush(self) -> None:
        columns = {name: torch.cat(parts) for name, parts in self._pending.items()}
        rows = {spec.table: len(columns[name]) for name, spec in self._fields.items()}
        path = self._folder / shard_name(len(self._progress))
        write_atomically(path, save(columns))
        entry = FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path), rows=rows)
        progress = _ShardProgress(entry=entry, next_input=self._pending_next_input, tallies=dict(self._pending_tallies))
        if self._progress_folder is not None:
            write_checksummed_json(_progress_path(self._progress_folder, path.name), progress.model_dump(mode="json"))
        self._progress.append(progress)
        self._pending_tallies = Counter()
        self._pending = {name: [] for name in self._fields}


def _progress_path(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.json"


def _finished_shards(folder: Path, progress_folder: Path) -> list[_ShardProgress]:
    """Progress of the leading shards that are whole on the disk; the list ends before the first broken one."""
    shards: list[_ShardProgress] = []
    while (path := _progress_path(progress_folder, name := shard_name(len(shards)))).is_file():
        shard = folder / name
        try:
            progress = _ShardProgress.model_validate(verified_content(path, read_json_object(path)))
        except (DataError, ValidationError):
            break
        if not shard.is_file() or sha256_file(shard) != progress.entry.sha256:
            break
        shards.append(progress)
    return shards
