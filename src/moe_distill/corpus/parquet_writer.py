"""Write documents to a parquet file in row groups of bounded size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from moe_distill.corpus.documents import SCHEMA, Document
from moe_distill.utils.files import sync

GROUP_DOCUMENTS = 512
GROUP_CHARACTERS = 2**19  # a row group ends at either limit; who writes or reads it holds it many times as large


def parquet_writer(where: Path | BinaryIO) -> pq.ParquetWriter:
    """Open a parquet file for documents; each of its pages gets a CRC-32, which `read_documents` checks."""
    return pq.ParquetWriter(where, SCHEMA, compression="zstd", write_page_checksum=True)


@contextmanager
def open_writer(path: Path) -> Iterator["DocumentWriter"]:
    """A writer of `path`, which has a temporary name until the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")  # without a pid: a rerun overwrites the file of a killed run
    try:
        with parquet_writer(temporary) as file:
            writer = DocumentWriter(file)
            yield writer
            writer.flush()
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class DocumentWriter:
    """Collects documents and writes them in row groups."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._pending: list[Document] = []
        self._characters = 0

    def append(self, document: Document) -> None:
        """Add a document, and write a row group if it is full."""
        self._pending.append(document)
        self._characters += len(document.text)
        if len(self._pending) >= GROUP_DOCUMENTS or self._characters >= GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write the collected documents as a row group."""
        if self._pending:
            columns = {name: [getattr(document, name) for document in self._pending] for name in SCHEMA.names}
            self._file.write_table(pa.Table.from_pydict(columns, schema=SCHEMA))
        self._pending, self._characters = [], 0
