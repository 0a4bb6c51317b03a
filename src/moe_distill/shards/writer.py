"""Write a store shard by shard, so that a killed writer loses one shard at most."""

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
    """Of each finished shard: what the index will say, and where the caller's input continues."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: FileEntry
    cursor: int  # where the caller's input continues after this shard
    tallies: dict[str, float]  # sums the caller keeps beside the rows


class ShardWriter:
    """Append rows to the tables of a store; resume after the last finished shard, also of a finished store.

    Args:
        folder: where the shards are written.
        receipts: folder of what a killed writer's successor needs to know; None: the store is written in one go.
        fields: every column; a call of `append` gives a tensor for each.
        main_table: the table whose rows decide when a shard is full.
        rows_per_shard: rows of the main table at which a shard is closed.
    """

    def __init__(
        self,
        folder: Path,
        fields: Mapping[str, FieldSpec],
        main_table: str,
        rows_per_shard: int,
        receipts: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        self._folder, self._fields, self._progress_folder = folder, dict(fields), receipts
        self._main_table, self._rows_per_shard = main_table, rows_per_shard
        self._progress = [] if receipts is None else _valid_progress(folder, receipts)
        self._pending_cursor = 0
        self._pending: dict[str, list[Tensor]] = {name: [] for name in fields}
        self._pending_tallies: Counter[str] = Counter()

    @property
    def cursor(self) -> int:
        """The cursor of the last finished shard; 0 where there is none."""
        return self._progress[-1].cursor if self._progress else 0

    def rows(self, table: str) -> int:
        """Rows of `table` in finished shards and pending."""
        return sum(receipt.entry.rows[table] for receipt in self._progress) + self._pending_rows(table)

    def tally(self, name: str) -> float:
        """Sum of a tally over all rows appended, those of an earlier, killed process included."""
        return sum(receipt.tallies.get(name, 0.0) for receipt in self._progress) + self._pending_tallies[name]

    def append(self, columns: Mapping[str, Tensor], cursor: int, tallies: Mapping[str, float] | None = None) -> None:
        """Add rows; `cursor` says where the caller's input continues after them.

        `tallies` are sums kept with the shard, so that a resumed writer knows those of its forerunner.

        Raises:
            ValueError: a column is missing, or its dtype, row shape or row count differs from its table's.
        """
        self._check(columns)
        for name, column in columns.items():
            self._pending[name].append(column.detach().cpu().contiguous())
        self._pending_tallies.update(tallies or {})
        self._pending_cursor = cursor
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
            files=[receipt.entry for receipt in self._progress],
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
        receipt = _ShardProgress(entry=entry, cursor=self._pending_cursor, tallies=dict(self._pending_tallies))
        if self._progress_folder is not None:
            write_checksummed_json(_progress_path(self._progress_folder, path.name), receipt.model_dump(mode="json"))
        self._progress.append(receipt)
        self._pending_tallies = Counter()
        self._pending = {name: [] for name in self._fields}


def _progress_path(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.json"


def _valid_progress(folder: Path, receipt_folder: Path) -> list[_ShardProgress]:
    """Receipts of the leading shards that are whole on the disk; a broken one ends the list."""
    receipts: list[_ShardProgress] = []
    while (path := _progress_path(receipt_folder, name := shard_name(len(receipts)))).is_file():
        shard = folder / name
        try:
            receipt = _ShardProgress.model_validate(verified_content(path, read_json_object(path)))
        except (DataError, ValidationError):
            break
        if not shard.is_file() or sha256_file(shard) != receipt.entry.sha256:
            break
        receipts.append(receipt)
    return receipts
