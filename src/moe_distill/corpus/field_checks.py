"""Refuse a wrong `field` before a corpus is read: a look at the beginning of each local file."""

import json
from itertools import islice
from pathlib import Path

from moe_distill.config.corpus_keys import Files, Hub, PythonDocs
from moe_distill.corpus.local_files import LocalFile, local_files
from moe_distill.errors import DataError

LOOKED_AT = 1000  # lines of a .jsonl file, of which one must have the key
SHOWN_KEYS = 20


def check_fields(source: PythonDocs | Files | Hub) -> None:
    """Refuse a source whose `field` is no key or column of one of its files, and a parquet file that is none.

    Raises:
        DataError: naming the file, and the keys that it has.
    """
    if not isinstance(source, Files):
        return
    try:
        files = local_files(source.paths)
    except DataError:  # no such path (`missing_inputs`)
        return
    for file in files:
        keys = _keys(file, source.field)
        if keys and source.field not in keys:
            listed = ", ".join(keys[:SHOWN_KEYS])
            fix = f"set `field` of source `{source.name}` in the profile, or take the file out of its `paths`"
            raise DataError(f"no key `{source.field}` in {file.name}", f"it has {listed}", fix)


def _keys(file: LocalFile, field: str) -> list[str]:
    """The keys or columns of a file; none where it has no such thing."""
    match file.suffix:
        case ".txt":
            return []
        case ".jsonl":
            return _keys_of_lines(file.path, field)
        case ".parquet":
            return _columns(file)


def _keys_of_lines(path: Path, field: str) -> list[str]:
    """The keys of a .jsonl file's first lines, up to the first that has the field; none where no line is an object."""
    keys: dict[str, None] = {}
    try:
        with path.open("rb") as lines:
            for line in islice(lines, LOOKED_AT):
                try:
                    record = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):  # such a line is skipped, and counted
                    continue
                keys |= dict.fromkeys(map(str, record)) if isinstance(record, dict) else {}
                if field in keys:
                    break
    except OSError:  # it is named where it is read
        return []
    return list(keys)


def _columns(file: LocalFile) -> list[str]:
    import pyarrow as pa  # imported here: a corpus without such files needs none of it
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(file.path).names)
    except (OSError, pa.ArrowException) as error:
        fix = "replace it, or take it out of `paths` in corpus.sources"
        raise DataError(f"{file.name} is not a readable parquet file", str(error), fix) from error
