"""Read the corpus, data/corpus/{train,validation}.parquet, and choose among documents by their hash fractions.

A hash fraction is a number of [0, 1) made of 64 bits of a hash of the document. Splits and samples are chosen by it, so
the choice for a document depends neither on the order of documents nor on other documents.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_distill.errors import DataError, restore_command

READ_BUFFER_BYTES = 1 << 20  # with pre_buffer=False; otherwise pyarrow holds the whole file in memory
SCHEMA = pa.schema([("document_id", pa.string()), ("source", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class Document:
    """A text in Unicode normal form C, and where it came from."""

    document_id: str  # SHA-256 of the text's UTF-8 bytes, in hexadecimal
    source: str  # name of the source
    text: str


def read_documents(path: Path, batch_documents: int = 64) -> Iterator[list[Document]]:
    """Yield the documents of a parquet file in order, in batches; only a batch is in memory.

    Raises:
        DataError: the file is missing, damaged, or has other columns.
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
            for batch in file.iter_batches(batch_documents, columns=SCHEMA.names, use_threads=False):
                missing_rows -= batch.num_rows
                pa.default_memory_pool().release_unused()  # it would keep more and more of what it has read
                yield [Document(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
            if missing_rows:  # pyarrow skips a page whose header is damaged
                raise pa.ArrowInvalid(f"{missing_rows:,} of {file.metadata.num_rows:,} rows are missing")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file", str(error), restore_command(path)) from error


HASH_VALUES = 2**64  # of 64 bits


def hash_fraction(document_id: str, purpose: str) -> float:
    """The hash fraction of a document for one purpose; those for different purposes are independent."""
    digest = hashlib.sha256(f"{purpose}:{document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / HASH_VALUES


def document_id(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether the document is for validation: the hash fraction of the first 64 bits of its id is below `fraction`."""
    return int(document_id[:16], 16) < fraction * HASH_VALUES


def is_kept(document_id: str, weight: float) -> bool:
    """Whether a training document is kept: the hash fraction of the next 64 bits of its id is below `weight`.

    These are not the bits of `is_validation`, where all training documents have a high fraction. A higher weight only
    adds documents.
    """
    return int(document_id[16:32], 16) < weight * HASH_VALUES
