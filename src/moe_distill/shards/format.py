"""The index of a store, `index.json`, which is written last (docs/formats.md).

A store is a folder of `shard_00000.safetensors`, `shard_00001.safetensors`, … Each file holds the next rows of one or
more tables. A field is a column of a table, so the fields of one table have equal row counts in a file.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_distill.errors import DataError
from moe_distill.utils.checksummed_json import read_json_object, verified_content
from moe_distill.utils.files import Json

FORMAT_VERSION = 6
LATER_VERSIONS = {"moe-distill/student-windows": 7, "moe-distill/vocabulary-map": 7}  # of formats that changed since
WRITTEN_BY = {"moe-distill/teacher-targets": "teacher"}  # format -> stage; all other formats: tokenize
INDEX_NAME = "index.json"
DTYPES = {
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
}

Count = Annotated[int, Field(ge=0)]
Metadata = dict[str, str | int | float | list[int] | None]


class FieldSpec(BaseModel):
    """One column: its table, its dtype, and the shape of one row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    dtype: Literal["int8", "int32", "int64", "float16", "float32"]
    shape: tuple[Count, ...] = ()


class FileEntry(BaseModel):
    """One shard file: its name, size and SHA-256, and the rows of each table in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bytes: Count
    sha256: str
    rows: dict[str, Count]


class _Header(BaseModel):
    """The keys that an index of any version has."""

    format: str
    format_version: int


class Index(BaseModel):
    """The content of `index.json`, its checksum aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: int
    fingerprint: str  # of everything that determines the content
    fields: dict[str, FieldSpec]
    files: list[FileEntry]
    metadata: Metadata

    def rows(self, table: str) -> int:
        """Rows of `table` over all files."""
        return sum(entry.rows[table] for entry in self.files)

    def to_json(self) -> dict[str, Json]:
        """The content as JSON values."""
        dumped: dict[str, Json] = self.model_dump(mode="json")
        return dumped


def row_bytes(fields: Mapping[str, FieldSpec]) -> dict[str, int]:
    """Bytes of one row of each table."""
    sizes = dict.fromkeys((spec.table for spec in fields.values()), 0)
    for spec in fields.values():
        sizes[spec.table] += math.prod(spec.shape) * DTYPES[spec.dtype].itemsize
    return sizes


def store_bytes(fields: Mapping[str, FieldSpec], rows: Mapping[str, int]) -> int:
    """Bytes of the columns of a store with these numbers of rows, by table; headers and index are not counted."""
    return sum(rows[table] * size for table, size in row_bytes(fields).items())


def command_to_write(store_format: str) -> str:
    """The command that writes a store of this format again."""
    return f"run: dvc repro -f {WRITTEN_BY.get(store_format, 'tokenize')}"


def version_of(store_format: str) -> int:
    """The version in which a store of this format is written and read."""
    return LATER_VERSIONS.get(store_format, FORMAT_VERSION)


def shard_name(number: int) -> str:
    """File name of a shard, by its number from 0."""
    return f"shard_{number:05d}.safetensors"


def read_index(folder: Path, expected_format: str) -> Index:
    """Read `folder/index.json` and check that it is a store of `expected_format` in this version.

    Raises:
        DataError: missing, unreadable, corrupt, or of another format or version; names both values.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise DataError(f"{path} does not exist", "the store is missing or unfinished", "run: dvc repro")
    content = read_json_object(path)
    try:
        header = _Header.model_validate(content)
        found, expected = (header.format, header.format_version), (expected_format, version_of(expected_format))
        if found != expected:
            what = f"{path} is {found[0]} version {found[1]}, expected {expected[0]} version {expected[1]}"
            raise DataError(what, "another release of moe-distill wrote it", command_to_write(expected_format))
        return Index.model_validate(verified_content(path, content))
    except ValidationError as error:
        raise DataError(f"{path} is not an index", why=f"{error.errors()[0]['msg']}", fix="run: dvc repro") from error
