"""The corpus on disk, `data/corpus/{train,validation}.parquet`, and hashes that choose among documents.

One document a row, in the sources' order. A document's own hash decides its split and whether it is kept, so neither
order nor other documents can move it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_distill.errors import DataError, restore_command

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
        raise DataError(f"{path} is not a readable parquet file", str(error), restore_command(path)) from error


def hash_fraction(document_id: str, purpose: str) -> float:
    """A number of [0, 1) that depends on the document and on what it is drawn for, and on nothing else."""
    digest = hashlib.sha256(f"{purpose}:{document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


DRAWS = 2**64  # values of 64 bits


def document_id(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether the document is held out: true for `fraction` of all hashes, by their top 64 bits."""
    return int(document_id[:16], 16) < fraction * DRAWS


def is_kept(document_id: str, weight: float) -> bool:
    """Whether a training document is among the share `weight` of its source, by the next 64 bits of its hash.

    Other bits than the split's, else a low weight would keep nothing but validation documents. Raising the
    weight only adds documents.
    """
    return int(document_id[16:32], 16) < weight * DRAWS
