"""Local text: a .txt file is one document; a .jsonl line or a .parquet row is one, or several are joined into one."""

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_distill.corpus.join import join_rows
from moe_distill.corpus.raw import RawDocument, Skip, from_value
from moe_distill.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".parquet")
BATCH_ROWS = 64  # rows can be books
READ_BYTES = 2**20  # else, and without pre_buffer=False, parquet holds a row group, or the whole file, at once


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
    for file in text_files(paths):
        yield from read_file(file, field, join_rows_to_characters)


def text_files(paths: Sequence[str]) -> list[Path]:
    """The files that `paths` name, each once, in order; see `file_documents`."""
    return list(dict.fromkeys(file for path in paths for file in _expand(path)))


def _expand(path: str) -> list[Path]:
    # Path.glob refuses absolute patterns
    matches = [path] if path and Path(path).exists() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    files: list[Path] = []
    for match in map(Path, matches):
        files += sorted(match.rglob("*")) if match.is_dir() else [match]
    files = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"`{path}` matches no {', '.join(SUFFIXES)} file", fix="change `paths` in corpus.sources")
    return files


def read_file(file: Path, field: str, join_rows_to_characters: int | None = None) -> Iterator[RawDocument | Skip]:
    """Yield the documents of one file; see `file_documents`."""
    try:
        yield from _read(file, field, join_rows_to_characters)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file} cannot be read: it is damaged, incomplete or protected",
            " ".join(str(error).split()),
            "fetch it again, or take it out of `paths` in corpus.sources",
        ) from error


def _read(file: Path, field: str, characters: int | None) -> Iterator[RawDocument | Skip]:
    if file.suffix.lower() == ".txt":
        return iter([_read_txt(file)])
    rows = _read_jsonl(file, field) if file.suffix.lower() == ".jsonl" else _read_parquet(file, field)
    return rows if characters is None else join_rows(rows, characters)


def _read_txt(file: Path) -> RawDocument | Skip:
    """The file's text with its own line ends, without the byte order mark some editors put before it."""
    content = file.read_bytes()
    try:
        return RawDocument(content.decode("utf-8-sig"), str(file), None)
    except UnicodeDecodeError as error:
        return Skip("invalid UTF-8", str(file), error.object.count(b"\n", 0, error.start) + 1)


def _read_jsonl(file: Path, field: str) -> Iterator[RawDocument | Skip]:
    """Read in binary: a text file's lines would also end at a carriage return, and one bad byte would end it all."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield _parse_line(line, field, str(file), number)


def _parse_line(line: bytes, field: str, file: str, number: int) -> RawDocument | Skip:
    if not line.strip():
        return Skip("empty", file, number)
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Skip("invalid UTF-8", file, number)
    except (ValueError, RecursionError):  # not JSON; a number of more than 4,300 digits; nesting beyond all use
        return Skip("not a JSON object", file, number)
    if not isinstance(record, dict):
        return Skip("not a JSON object", file, number)
    if field not in record:
        return Skip("missing field", file, number)
    return from_value(record[field], file, number)


def _read_parquet(file: Path, field: str) -> Iterator[RawDocument | Skip]:
    with pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as table:
        _check_column(table.schema_arrow, file, field)
        number = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[field]):
            # as bytes: whether they are UTF-8 is each row's own affair
            for content in batch.column(0).cast(pa.large_binary()).to_pylist():
                number += 1
                yield _decode_row(content, str(file), number)


def _check_column(schema: pa.Schema, file: Path, field: str) -> None:
    if field not in schema.names:
        columns = f"its columns: {', '.join(schema.names)}"
        raise DataError(f"{file} has no column `{field}`", columns, "change `field` in corpus.sources")
    kind = schema.field(field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise DataError(f"column `{field}` of {file} holds {kind}, not text", fix="change `field` in corpus.sources")


def _decode_row(content: bytes | None, file: str, number: int) -> RawDocument | Skip:
    try:
        return from_value(None if content is None else content.decode(), file, number)
    except UnicodeDecodeError:
        return Skip("invalid UTF-8", file, number)
