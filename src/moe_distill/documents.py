"""The corpus on disk: `data/corpus/{train,validation}.parquet`, one document a row, in the sources' order."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_distill.errors import DataError, repair

READ_BUFFER_BYTES = 1 << 20  # with pre-buffering off: else pyarrow holds the whole file
SCHEMA = pa.schema([("document_id", pa.string()), ("source", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class Document:
    """A text in Unicode normal form C, and where it came from."""

    document_id: str  # SHA-256 of the text's UTF-8 bytes, in hexadecimal
    source: str
    text: str


def read_documents(path: Path, batch_documents: int = 256) -> Iterator[list[Document]]:
    """Yield the documents of a parquet file in order, in batches; memory stays flat.

    Raises:
        DataError: the file is missing or is not such a parquet file.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", fix="run: dvc repro corpus")
    try:
        with pq.ParquetFile(
            path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES, page_checksum_verification=True
        ) as file:
            if missing := set(SCHEMA.names) - set(file.schema_arrow.names):
                raise DataError(f"{path} has no column {', '.join(sorted(missing))}", fix="run: dvc repro corpus")
            missing_rows = file.metadata.num_rows
            for batch in file.iter_batches(batch_documents, columns=SCHEMA.names):
                missing_rows -= batch.num_rows
                yield [Document(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
            if missing_rows:  # a damaged page header can hide its page
                raise pa.ArrowInvalid(f"{missing_rows:,} of {file.metadata.num_rows:,} rows are missing")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file", str(error), repair(path)) from error


def draw(document_id: str, purpose: str) -> float:
    """A number of [0, 1) that depends on the document and on what it is drawn for, and on nothing else."""
    digest = hashlib.sha256(f"{purpose}:{document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
