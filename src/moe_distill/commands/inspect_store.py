"""`moe-distill inspect`: what a store holds, its fields and sizes, and one place in it in words."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from moe_distill.commands.decoded_examples import Pieces, map_example, position_example, window_example
from moe_distill.config.params import ExperimentParams
from moe_distill.errors import ConfigError, DataError
from moe_distill.replay.head import DESCRIPTION_NAME, WEIGHTS_NAME, read_head
from moe_distill.shards.format import DTYPES, INDEX_NAME, FieldSpec
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS, open_targets
from moe_distill.shards.vocabulary_store import VOCABULARY_MAP, open_vocabulary_map
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.utils.checksummed_json import read_json_object

MADE_BY = {"data/teacher_shards": "teacher", "models/teacher_head": "teacher", "data/windows": "tokenize"}
SHOWN_LENGTH = 60  # characters of a value of the metadata


def inspect(folder: Path, row: int | None, experiment: ExperimentParams) -> Iterator[str]:
    """Yield lines on each store at or below a folder, and one decoded place of the first of each format.

    Args:
        row: of a store's positions, tokens or teacher ids; None: one from the middle.
        experiment: how targets are made.

    Raises:
        ConfigError: there is no such row.
        DataError: no store is there, or one is corrupt.
    """
    indexes = sorted(Path(below, INDEX_NAME) for below, _, names in os.walk(folder) if INDEX_NAME in names)
    if (folder / DESCRIPTION_NAME).is_file():
        yield from _head(folder)
    elif not indexes:
        raise _nothing(folder)
    shown = set[str]()
    for index in indexes:
        store_format = str(read_json_object(index).get("format"))
        reader = _open(index.parent, store_format)
        yield from _summary(reader)
        if store_format not in shown:
            yield from _example(reader, row, experiment)
        shown.add(store_format)


def _open(folder: Path, store_format: str) -> ShardReader:
    if store_format == TEACHER_TARGETS:
        return open_targets(folder)
    return open_vocabulary_map(folder) if store_format == VOCABULARY_MAP else ShardReader(folder, store_format)


def _summary(reader: ShardReader) -> Iterator[str]:
    index = reader.index
    size = sum(entry.bytes for entry in index.files)
    yield f"{reader.folder}: {index.format} version {index.format_version}, {len(index.files)} files, {size:,} bytes"
    for table in sorted({spec.table for spec in index.fields.values()}):
        fields = {name: spec for name, spec in index.fields.items() if spec.table == table}
        yield f"  table {table}: {reader.rows(table):,} rows of {sum(map(_row_bytes, fields.values())):,} bytes"
        yield from (
            f"    {name:<18} {spec.dtype:<8} {list(spec.shape) or ''}".rstrip() for name, spec in fields.items()
        )
    for name, value in index.metadata.items():
        text = str(value)
        yield f"  {name}: {text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + ' …'}"


def _row_bytes(spec: FieldSpec) -> int:
    n_bytes = DTYPES[spec.dtype].itemsize
    for size in spec.shape:
        n_bytes *= size
    return n_bytes


def _example(reader: ShardReader, row: int | None, experiment: ExperimentParams) -> Iterator[str]:
    """A place in words, where the tokenizers are beside the store as the stages lay them."""
    table = {TEACHER_TARGETS: "positions", VOCABULARY_MAP: "teacher_ids"}.get(reader.index.format, "tokens")
    n_rows = reader.rows(table)
    if row is not None and not 0 <= row < n_rows:
        why = f"{reader.folder} has {n_rows:,} rows of {table}"
        raise ConfigError(f"--row is {row}", why, f"give 0 to {n_rows - 1}")
    root = next((each for each in reader.folder.resolve().parents if (each / "models/student_init").is_dir()), None)
    if root is None or not (root / "models/teacher/tokenizer.json").is_file():
        yield "  (its tokens are shown where models/teacher and models/student_init are: dvc repro models, or dvc pull)"
        return
    teacher, student = (Pieces.of(root / "models" / name) for name in ("teacher", "student_init"))
    if reader.index.format == TEACHER_TARGETS:
        yield from position_example(reader, root / "data/windows", teacher, student, row, experiment)
    elif reader.index.format == VOCABULARY_MAP:
        yield from map_example(reader, teacher, student, row)
    elif reader.index.format in (TEACHER_WINDOWS, STUDENT_WINDOWS):
        pieces = teacher if reader.index.format == TEACHER_WINDOWS else student
        yield from window_example(WindowStore(reader.folder, reader.index.format), pieces, row)


def _head(folder: Path) -> Iterator[str]:
    description, tensors = read_head(folder, torch.device("cpu"))
    size = (folder / WEIGHTS_NAME).stat().st_size
    yield f"{folder}: {description.format} version {description.format_version}, {size:,} bytes"
    for name, value in description.model_dump(mode="json").items():
        if not name.startswith("format"):
            yield f"  {name}: {json.dumps(value)}"
    for name, tensor in tensors.items():
        yield f"    {name:<24} {str(tensor.dtype).removeprefix('torch.'):<8} {list(tensor.shape)}"


def _nothing(folder: Path) -> DataError:
    if folder.is_file():
        return DataError(f"{folder} is a file", fix=f"give its folder: moe-distill inspect {folder.parent}")
    what = f"{folder} holds no store" if folder.exists() else f"{folder} does not exist"
    made_by = next((stage for name, stage in MADE_BY.items() if folder.is_relative_to(name)), "")
    return DataError(what, fix=f"run: dvc repro {made_by}" if made_by else f"give one of {', '.join(MADE_BY)}")
