"""One file of a store: its rows, checked as they come, and the file that holds them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from moe_distill.shards.format import (
    DTYPES,
    INDEX_NAME,
    FieldSpec,
    FileEntry,
    Index,
    Metadata,
    shard_name,
    version_of,
)
from moe_distill.shards.value_checks import is_finite
from moe_distill.utils.checksummed_json import write_checksummed_json
from moe_distill.utils.files import write_atomically


class Rows:
    """Rows of the tables of a store, collected for one file.

    Args:
        fields: every column of the store.
    """

    def __init__(self, fields: Mapping[str, FieldSpec]) -> None:
        self._fields = fields
        self._parts: dict[str, list[Tensor]] = {name: [] for name in fields}

    def append(self, columns: Mapping[str, Tensor]) -> None:
        """Add a tensor [rows, ...] for each field.

        Raises:
            ValueError: a column is missing, or its dtype, row shape or row count differs from its table's.
        """
        self._check(columns)
        for name, column in columns.items():
            self._parts[name].append(column.detach().cpu().contiguous())

    def count(self, table: str) -> int:
        """Rows of a table."""
        field = next(name for name, spec in self._fields.items() if spec.table == table)
        return sum(len(part) for part in self._parts[field])

    def write(self, folder: Path, file_number: int) -> FileEntry:
        """Write the file of this number; it is complete or absent."""
        # numpy's copy takes one thread; torch's would go on waiting for work, on a core of the tokenizers
        columns = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in self._parts.items()}
        content = save(columns)
        path = folder / shard_name(file_number)
        write_atomically(path, content)
        rows = {table: self.count(table) for table in {spec.table: None for spec in self._fields.values()}}
        return FileEntry(name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), rows=rows)

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
            if column.is_floating_point() and not is_finite(column):
                raise ValueError(f"{name}: a non-finite value is never written")


def make_index(
    store_format: str, fingerprint: str, fields: Mapping[str, FieldSpec], files: list[FileEntry], metadata: Metadata
) -> Index:
    """The index of a store in this version."""
    return Index(
        format=store_format,
        format_version=version_of(store_format),
        fingerprint=fingerprint,
        fields=dict(fields),
        files=files,
        metadata=metadata,
    )


def write_index(folder: Path, index: Index) -> None:
    """Write the index, with which a store is finished."""
    write_checksummed_json(folder / INDEX_NAME, index.to_json())
