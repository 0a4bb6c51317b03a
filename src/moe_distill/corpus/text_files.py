"""Read local text. A .txt file is one document; so is a .jsonl line or .parquet row, unless rows are joined."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from moe_distill.corpus.local_files import LocalFile, local_files
from moe_distill.corpus.raw import RawDocument, Skip, from_value
from moe_distill.corpus.resize import join_rows
from moe_distill.errors import DataError

BATCH_ROWS = 64  # few, since a row can be a book
SHOWN_KEYS, SHOWN_CHARACTERS = 20, 500  # of a file without the field
READ_BYTES = 2**20  # with pre_buffer=False; otherwise pyarrow holds a row group or the whole file in memory


def file_documents(
    paths: Sequence[str], field: str, join_rows_to_characters: int | None = None
) -> Iterator[RawDocument | Skip]:
    """Yield the documents of files, folders and globs, in the order of `paths`, sorted within each.

    Args:
        paths: files; folders, searched recursively; or globs such as `texts/**/*.jsonl`.
        field: the JSON key or parquet column that holds the text.
        join_rows_to_characters: length of the documents that the rows of a .jsonl or .parquet file are joined into;
            None: each row is a document.

    Raises:
        DataError: a path matches nothing, or a file cannot be read or lacks the column.
    """
    for file in local_files(paths):
        yield from read_file(file, field, join_rows_to_characters)


def read_file(file: LocalFile, field: str, join_rows_to_characters: int | None) -> Iterator[RawDocument | Skip]:
    """Yield the documents of one file; see `file_documents`."""
    try:
        rows = _rows(file, field)
        length = None if file.suffix == ".txt" else join_rows_to_characters
        yield from rows if length is None else join_rows(rows, length)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file.name} cannot be read: it is damaged, incomplete or protected",
            " ".join(str(error).split()),
            "fetch it again, or take it out of `paths` in corpus.sources",
        ) from error


def _rows(file: LocalFile, field: str) -> Iterator[RawDocument | Skip]:
    match file.suffix:
        case ".txt":
            return iter([_read_txt(file)])
        case ".jsonl":
            return _read_jsonl(file, field)
        case ".parquet":
            return _read_parquet(file, field)


def _read_txt(file: LocalFile) -> RawDocument | Skip:
    """The text of a .txt file with its own line ends, without a byte order mark."""
    content = file.path.read_bytes()
    try:
        return RawDocument(content.decode("utf-8-sig"), file.name, None)
    except UnicodeDecodeError as error:
        return Skip("invalid UTF-8", file.name, error.object.count(b"\n", 0, error.start) + 1)


def _read_jsonl(file: LocalFile, field: str) -> Iterator[RawDocument | Skip]:
    """Yield the lines of a .jsonl file as documents.

    The file is read as bytes: as text, lines would end at a carriage return too, and one bad byte would end the file.
    """
    keys: dict[str, None] = {}  # of objects without the field
    found = False
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            item = _parse_line(line, field, file.name, number, keys)
            found = found or isinstance(item, RawDocument) or item.reason == "not text"
            yield item
    if keys and not found:
        raise DataError(
            f"no line of {file.name} has the key `{field}`",
            f"their keys: {_listed(keys)}",
            "change `field` in corpus.sources, or take the file out of `paths`",
        )


def _listed(names: Iterable[str]) -> str:
    """The first of some keys or columns, on one line."""
    return " ".join(", ".join(islice(names, SHOWN_KEYS)).split())[:SHOWN_CHARACTERS]


def _parse_line(line: bytes, field: str, file: str, number: int, keys: dict[str, None]) -> RawDocument | Skip:
    """A document or a skip; the keys of an object without the field are added to `keys`."""
    if not line.strip():
        return Skip("empty", file, number)
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Skip("invalid UTF-8", file, number)
    except (ValueError, RecursionError):  # not JSON; a number of over 4,300 digits; too deep nesting
        return Skip("not a JSON object", file, number)
    if not isinstance(record, dict):
        return Skip("not a JSON object", file, number)
    if field not in record:
        if len(keys) < SHOWN_KEYS:
            keys.update(dict.fromkeys(record))
        return Skip("missing field", file, number)
    return from_value(record[field], file, number)


def _read_parquet(file: LocalFile, field: str) -> Iterator[RawDocument | Skip]:
    with pq.ParquetFile(file.path, buffer_size=READ_BYTES, pre_buffer=False) as table:
        _check_column(table.schema_arrow, file.name, field)
        number = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[field]):
            # as bytes, so that only a row that is not UTF-8 is skipped, and not the file
            for content in batch.column(field).cast(pa.large_binary()).to_pylist():
                number += 1
                yield _decode_row(content, file.name, number)


def _check_column(schema: pa.Schema, file: str, field: str) -> None:
    if field not in schema.names:
        columns = f"its columns: {_listed(schema.names)}"
        fix = "change `field` in corpus.sources, or take the file out of `paths`"
        raise DataError(f"{file} has no column `{field}`", columns, fix)
    if schema.names.count(field) > 1:
        raise DataError(f"{file} has {schema.names.count(field)} columns `{field}`", fix="give each its own name")
    kind = schema.field(field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise DataError(f"column `{field}` of {file} holds {kind}, not text", fix="change `field` in corpus.sources")


def _decode_row(content: bytes | None, file: str, number: int) -> RawDocument | Skip:
    try:
        return from_value(None if content is None else content.decode(), file, number)
    except UnicodeDecodeError:
        return Skip("invalid UTF-8", file, number)
