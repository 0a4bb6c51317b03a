"""Change what a finished store says, hashes and seal included: what is then refused is the content itself."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_distill.shards.vocabulary_store import MAP_FIELDS, MERGE_IDS, VOCABULARY_MAP, open_vocabulary_map
from moe_distill.shards.writer import ShardWriter
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import Json, sha256_file


def forge_column(store: Path, file_number: int, field: str, change: Callable[[Tensor], object]) -> Path:
    """Change values of one column in place; returns the file."""
    path = store / f"shard_{file_number:05d}.safetensors"
    columns = {name: column.clone() for name, column in load_file(path).items()}
    change(columns[field])
    path.unlink()
    save_file(columns, path)
    index = _read(store)
    index["files"][file_number]["sha256"] = sha256_file(path)
    write_checksummed_json(store / "index.json", index)
    return path


def forge_metadata(store: Path, **changes: Json) -> None:
    index = _read(store)
    index["metadata"] |= changes
    write_checksummed_json(store / "index.json", index)


def forget_merges(vocabulary_map: Path) -> None:
    """As the map of a student whose tokenizer has none, or none that are known."""
    reader = open_vocabulary_map(vocabulary_map)
    columns = {name: torch.cat(list(reader.columns(name))).clone() for name in MAP_FIELDS}
    shutil.rmtree(vocabulary_map)
    writer = ShardWriter(vocabulary_map, MAP_FIELDS, "teacher_ids", 2**31)
    writer.append(columns | {name: columns[name][:0] for name in MERGE_IDS})
    writer.finish(VOCABULARY_MAP, reader.index.fingerprint, reader.index.metadata)


def _read(store: Path) -> dict[str, Any]:
    path = store / "index.json"
    return dict(verified_content(path, read_json_object(path)))
