"""Estimate the bytes of the corpus on disk from the sizes of its sources and the compression of a sample."""

import hashlib
import io
import math
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from moe_distill.config.corpus_keys import Corpus, Files, Hub, PythonDocs, Source
from moe_distill.corpus.documents import Document, document_id
from moe_distill.corpus.hub_datasets import split_bytes
from moe_distill.corpus.local_files import SUFFIXES, LocalFile, local_files
from moe_distill.corpus.parquet_writer import DocumentWriter, parquet_writer
from moe_distill.corpus.python_docs import library_modules, topic_documents
from moe_distill.corpus.raw import RawDocument, Skip, examine
from moe_distill.corpus.sources import read_source
from moe_distill.corpus.text_files import read_file

SAMPLE_BYTES = 2**21  # sample of a source's files of one kind, or of a dataset's first documents
FILE_SHARE = 4  # a file of many documents gives at most this part of the sample: a quarter
TRIPLE_QUOTED = re.compile(rb'"""(.*?)"""', re.DOTALL)
DOCUMENTED_SHARE = 0.86  # text of docstrings and signatures over all triple-quoted text of the standard library


@dataclass
class _Sample:
    """Documents of a source, and the bytes of its files that they were read from."""

    input_bytes: float = 0.0
    texts: list[str] = field(default_factory=list)


def corpus_bytes(params: Corpus) -> int:
    """Estimated bytes of both splits. Duplicates are not known, and are counted as if they were kept; but for
    rows of a parquet file that its dictionary holds once.

    Raises:
        DataError: a path matches nothing, a file of the sample cannot be read, or a dataset cannot be reached.
    """
    return round(sum(_source_bytes(each) * _kept_share(each, params.validation_fraction) for each in params.sources))


def _kept_share(source: Source, validation_fraction: float) -> float:
    """Share of a source's documents that is written: all for validation, and `weight` of the others."""
    return validation_fraction + (1 - validation_fraction) * source.weight


def _source_bytes(source: Source) -> float:
    if isinstance(source, PythonDocs):
        return _python_docs_bytes(Path(sysconfig.get_path("stdlib")))
    return _hub_bytes(source) if isinstance(source, Hub) else _files_bytes(source)


def _python_docs_bytes(library: Path) -> float:
    """Compress the topics of `help()`, and take docstrings to compress alike: parsing those is slow."""
    topics = [document.text for document in topic_documents()]
    topic_bytes = sum(len(text.encode()) for text in topics)
    quoted = (TRIPLE_QUOTED.findall(path.read_bytes()) for path in library_modules(library))
    docstring_bytes = DOCUMENTED_SHARE * sum(len(text) for texts in quoted for text in texts)
    return written_bytes(topics) * (1 + docstring_bytes / topic_bytes)


def _hub_bytes(source: Hub) -> float:
    """Compress the first documents of the stream, and take the others to be like them."""
    texts: list[str] = []
    size = 0
    for item in read_source(source):
        if isinstance(item, RawDocument):
            texts.append(item.text)
            size += len(item.text.encode())
        if size >= SAMPLE_BYTES:
            most = len(texts) * (split_bytes(source) or math.inf) / size
            return written_bytes(texts) * min(source.max_documents, most) / len(texts)
    return written_bytes(texts)


def _files_bytes(source: Files) -> float:
    """A sample for each kind of file: JSON and text shrink when they are written, parquet does not."""
    files = list(local_files(source.paths))
    documents = total = 0.0
    for suffix in SUFFIXES:
        kind = [file for file in files if file.suffix == suffix]
        sample = _sampled(kind, source.field)
        if sample.texts:
            scale = sum(file.path.stat().st_size for file in kind) / sample.input_bytes
            joined = source.join_rows_to_characters
            documents += scale * (sum(map(len, sample.texts)) / joined if joined else len(sample.texts))
            total += scale * written_bytes(sample.texts)
    return total if source.max_documents is None else total * min(1.0, source.max_documents / max(documents, 1.0))


def _sampled(files: Iterable[LocalFile], field: str) -> _Sample:
    """Documents from the beginnings of files, in the order of the hashes of their names, which is as good as random."""
    sample = _Sample()
    for file in sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest()):
        if sample.input_bytes >= SAMPLE_BYTES:
            break
        line = size = 0
        for item in read_file(file, field, None):
            line = item.line or 0
            checked = examine(item) if isinstance(item, RawDocument) else item
            if not isinstance(checked, Skip):
                sample.texts.append(checked.text)
                size += len(checked.text.encode())
            if size >= SAMPLE_BYTES // FILE_SHARE:
                break
        sample.input_bytes += _read_bytes(file, field, line, size)
    return sample


def _read_bytes(file: LocalFile, field: str, lines: int, text_bytes: int) -> float:
    """Bytes of a file that hold its first `lines` lines or rows; all bytes of a .txt file, which is one document.

    Args:
        text_bytes: of the texts in these lines.
    """
    match file.suffix:
        case ".txt":
            return file.path.stat().st_size
        case ".jsonl":
            with file.path.open("rb") as opened:
                return sum(len(line) for line in islice(opened, lines))
        case ".parquet":
            return file.path.stat().st_size * _read_share(pq.read_metadata(file.path), field, lines, text_bytes)


def _read_share(metadata: pq.FileMetaData, field: str, rows: int, text_bytes: int) -> float:
    """Share of a parquet file's column in its first rows: of its rows or of its bytes, whichever is more.

    Where rows are sorted by length, or most are null, the first ones may be far longer than the others.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    column_bytes = sum(int(column.total_uncompressed_size) for column in columns if column.path_in_schema == field)
    return max(rows / max(int(metadata.num_rows), 1), min(1.0, text_bytes / max(column_bytes, 1)))


def written_bytes(texts: Iterable[str]) -> int:
    """Bytes of a parquet file of these texts, which is made in memory."""
    buffer = io.BytesIO()
    with parquet_writer(buffer) as file:
        writer = DocumentWriter(file)
        for text in texts:
            writer.append(Document(document_id(text), "sample", text))
        writer.flush()
    return buffer.tell()
