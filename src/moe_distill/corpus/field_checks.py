"""Refuse a wrong `field` before a corpus is read: a look at the beginning of each local file."""

import json
from itertools import islice

from moe_distill.config.corpus_keys import Files, Hub, PythonDocs
from moe_distill.corpus.local_files import LocalFile, local_files
from moe_distill.errors import DataError

LOOKED_AT = 1000  # lines of a .jsonl file, of which one must have the key
SHOWN_KEYS = 20


def check_fields(source: PythonDocs | Files | Hub) -> None:
    """Refuse a source whose `field` is no key or column of one of its files, and a file that is not what its name says.

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
            return _keys_of_lines(file, field)
        case ".parquet":
            return _columns(file)


def _keys_of_lines(file: LocalFile, field: str) -> list[str]:
    """The keys of a .jsonl file's first lines, up to the first that has the field; none where all are blank."""
    keys: dict[str, None] = {}
    has_objects = has_others = False
    try:
        with file.path.open("rb") as lines:
            for line in filter(bytes.strip, islice(lines, LOOKED_AT)):
                try:
                    record = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict):
                    has_objects, keys = True, keys | dict.fromkeys(map(str, record))
                else:
                    has_others = True  # such a line is skipped, and counted
                if field in keys:
                    break
    except OSError:  # it is named where it is read
        return []
    if has_others and not has_objects:
        fix = f'write one object a line, as {{"{field}": "..."}}, or take it out of `paths` in corpus.sources'
        why = "a list, an object over several lines, or one that is not UTF-8, is none"
        raise DataError(f"no line of {file.name} is a JSON object", why, fix)
    return list(keys)


def _columns(file: LocalFile) -> list[str]:
    import pyarrow as pa  # imported here: a corpus without such files needs none of it
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(file.path).names)
    except (OSError, pa.ArrowException) as error:
        fix = "replace it, or take it out of `paths` in corpus.sources"
        raise DataError(f"{file.name} is not a readable parquet file", str(error), fix) from error
