"""A small store of two tables."""

from pathlib import Path

import torch
from torch import Tensor

from moe_distill.shards.format import FieldSpec, Index
from moe_distill.shards.writer import ShardWriter

FORMAT = "moe-distill/test"
FIELDS = {
    "ids": FieldSpec(table="tokens", dtype="int32"),
    "values": FieldSpec(table="tokens", dtype="float16", shape=(3,)),
    "flags": FieldSpec(table="tokens", dtype="int8"),
    "starts": FieldSpec(table="windows", dtype="int64"),
    "scales": FieldSpec(table="windows", dtype="float32", shape=(2, 2)),
}
TOKENS_OF_PARTS = (3, 5, 2, 4, 1)  # one window a part


def part(number: int, tokens: int | None = None) -> dict[str, Tensor]:
    """Columns of one call of `append`; every value tells where it comes from."""
    tokens = TOKENS_OF_PARTS[number] if tokens is None else tokens
    base = 100 * number + torch.arange(tokens)
    return {
        "ids": base.int(),
        "values": torch.stack([base / 4, -base.float(), base.float()], 1).half(),
        "flags": (base % 100).to(torch.int8),
        "starts": torch.tensor([number]) * 2**40,
        "scales": torch.full((1, 2, 2), number + 0.125),
    }


def new_writer(folder: Path, rows_per_shard: int = 4) -> ShardWriter:
    return ShardWriter(folder, FIELDS, "tokens", rows_per_shard)


def write_store(folder: Path, rows_per_shard: int = 4, parts: int = 5) -> Index:
    """With 4 rows a shard the parts end up in three files: 0 and 1, 2 and 3, 4."""
    writer = new_writer(folder, rows_per_shard)
    for number in range(parts):
        writer.append(part(number))
    return writer.finish(FORMAT, "key", {"name": "toy", "sizes": [1, 2]})


def expected(field: str) -> Tensor:
    return torch.cat([part(number)[field] for number in range(5)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
