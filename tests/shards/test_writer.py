"""What a writer accepts, and what stands in a finished store."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_distill.shards.format import FORMAT_VERSION
from moe_distill.shards.reader import ShardReader
from moe_distill.utils.files import sha256_file

from .toy import FIELDS, FORMAT, contents, new_writer, part, write_store


def test_index_is_complete(tmp_path: Path) -> None:
    index = write_store(tmp_path)
    described = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert set(described) == {"format", "format_version", "fingerprint", "fields", "files", "metadata", "sha256"}
    assert (described["format"], described["format_version"], described["fingerprint"]) == (FORMAT, 6, "key")
    assert FORMAT_VERSION == 6
    assert described["metadata"] == {"name": "toy", "sizes": [1, 2]}
    assert described["fields"]["scales"] == {"table": "windows", "dtype": "float32", "shape": [2, 2]}
    assert described["files"] == [
        {
            "name": f"shard_{number:05d}.safetensors",
            "bytes": (tmp_path / f"shard_{number:05d}.safetensors").stat().st_size,
            "sha256": sha256_file(tmp_path / f"shard_{number:05d}.safetensors"),
            "rows": rows,
        }
        for number, rows in enumerate(
            [{"tokens": 8, "windows": 2}, {"tokens": 6, "windows": 2}, {"tokens": 1, "windows": 1}]
        )
    ]
    assert (index.rows("tokens"), index.rows("windows")) == (15, 5)


def test_a_finished_store_holds_safetensors_and_json_alone(tmp_path: Path) -> None:
    write_store(tmp_path)
    assert sorted(contents(tmp_path)) == ["index.json", *(f"shard_{number:05d}.safetensors" for number in range(3))]
    for name, content in contents(tmp_path).items():
        header = content[8:] if name.startswith("shard") else content
        assert header.startswith(b"{")
        assert b"pickle" not in content
        assert not content.startswith((b"\x80", b"PK"))


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("ids", torch.zeros(3, dtype=torch.int64), r"ids: torch.int64 \(\), expected int32 \(\)"),
        ("values", torch.zeros(3, 3), r"values: torch.float32 \(3,\), expected float16 \(3,\)"),
        ("values", torch.zeros(3, 4, dtype=torch.float16), r"values: torch.float16 \(4,\), expected float16 \(3,\)"),
        ("values", torch.zeros(4, 3, dtype=torch.float16), "values: 4 rows, table tokens has 3"),
        ("scales", torch.zeros(2, 2, 2), "scales: 2 rows, table windows has 1"),
        ("scales", torch.full((1, 2, 2), float("nan")), "scales: a non-finite value is never written"),
        ("scales", torch.full((1, 2, 2), float("-inf")), "scales: a non-finite value is never written"),
        ("values", torch.full((3, 3), 7e4).half(), "values: a non-finite value is never written"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path: Path, field: str, wrong: Tensor, message: str) -> None:
    writer = new_writer(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer.append(part(0) | {field: wrong})
    assert writer.rows("tokens") == 0
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unknown_columns_are_refused(tmp_path: Path, change: str) -> None:
    columns = part(0)
    if change == "missing":
        del columns["flags"]
    else:
        columns["other"] = columns["ids"]
    with pytest.raises(ValueError, match=r"columns .* given, .* expected"):
        new_writer(tmp_path).append(columns)


def test_rows_count_finished_and_pending(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    writer.append(part(0))
    assert (writer.rows("tokens"), writer.rows("windows")) == (3, 1)
    writer.append(part(1))
    writer.append(part(2))
    assert (writer.rows("tokens"), writer.rows("windows")) == (10, 3)


def test_an_unfinished_store_has_no_index(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    for number in range(4):
        writer.append(part(number))
    assert not (tmp_path / "index.json").exists()


def test_appended_tensors_may_be_views_and_need_no_gradient(tmp_path: Path) -> None:
    columns = part(0)
    columns["values"] = columns["values"].T.contiguous().T  # not contiguous
    columns["scales"] = columns["scales"].requires_grad_()
    writer = new_writer(tmp_path)
    writer.append(columns)
    writer.finish(FORMAT, "key", {})
    assert torch.equal(ShardReader(tmp_path, FORMAT).column("values", 0), part(0)["values"])


def test_a_store_may_have_no_rows(tmp_path: Path) -> None:
    index = new_writer(tmp_path).finish(FORMAT, "key", {})
    assert index.files == []
    assert ShardReader(tmp_path, FORMAT).rows("tokens") == 0
    assert set(index.fields) == set(FIELDS)
