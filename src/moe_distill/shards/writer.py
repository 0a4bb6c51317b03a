"""Write a store from its first row to its last; a file is closed when it is full."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from moe_distill.shards.format import FieldSpec, FileEntry, Index, Metadata
from moe_distill.shards.shard_file import Rows, make_index, write_index


class ShardWriter:
    """Append rows to the tables of a store.

    Args:
        folder: where the shards are written.
        fields: every column; a call of `append` gives a tensor for each.
        main_table: the table whose rows decide when a shard is full.
        rows_per_shard: rows of the main table at which a shard is closed.
    """

    def __init__(self, folder: Path, fields: Mapping[str, FieldSpec], main_table: str, rows_per_shard: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._fields = folder, dict(fields)
        self._main_table, self._rows_per_shard = main_table, rows_per_shard
        self._files: list[FileEntry] = []
        self._pending = Rows(self._fields)

    def rows(self, table: str) -> int:
        """Rows of `table` in finished shards and pending."""
        return sum(entry.rows[table] for entry in self._files) + self._pending.count(table)

    def append(self, columns: Mapping[str, Tensor]) -> None:
        """Add rows, and close a shard where they fill it.

        Args:
            columns: a tensor [rows, ...] for each field.

        Raises:
            ValueError: a column is missing, or its dtype, row shape or row count differs from its table's.
        """
        self._pending.append(columns)
        if self._pending.count(self._main_table) >= self._rows_per_shard:
            self._flush()

    def finish(self, store_format: str, fingerprint: str, metadata: Metadata) -> Index:
        """Close the last shard and write the index."""
        if self._pending.count(self._main_table):
            self._flush()
        index = make_index(store_format, fingerprint, self._fields, self._files, metadata)
        write_index(self._folder, index)
        return index

    def _flush(self) -> None:
        self._files.append(self._pending.write(self._folder, len(self._files)))
        self._pending = Rows(self._fields)
