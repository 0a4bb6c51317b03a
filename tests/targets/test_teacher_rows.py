"""Cached rows, read for one window's positions."""

from pathlib import Path

import pytest
import torch

from moe_distill.shards.format import DTYPES
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS, open_targets, tail_log_density, target_fields
from moe_distill.shards.writer import ShardWriter
from moe_distill.targets.teacher_rows import read_rows
from moe_distill.teacher.columns import fitted
from tests.shards.conftest import OUTPUT_ROWS


def test_r01_teacher_rows_are_upcast_where_they_are_read(targets: ShardReader) -> None:
    rows = read_rows(targets, torch.tensor([0, 1]))
    columns = rows.topk_logprobs, rows.tail_logprobs, rows.tail_logsumexp, rows.tail_log_density, rows.target_logprob
    assert {column.dtype for column in columns} == {torch.float32}
    assert {rows.topk_ids.dtype, rows.tail_ids.dtype} == {torch.int64}


@pytest.mark.parametrize("numbers", [[1, 3], [0, 1, 2, 3], [4, 6], [6]])
def test_rows_of_either_file_and_none_of_what_lies_between(targets: ShardReader, numbers: list[int]) -> None:
    rows = read_rows(targets, torch.tensor(numbers))
    assert rows.topk_ids[:, 0].tolist() == [10 * number for number in numbers]
    assert rows.tail_ids.tolist() == [[10 * number + 7, 10 * number + 8] for number in numbers]
    assert rows.topk_logprobs.tolist() == [[-number - 0.25, -number - 1.5, -number - 2.0] for number in numbers]
    assert rows.tail_logprobs.tolist() == [[-number - 5.0, -number - 6.0] for number in numbers]
    assert rows.target_logprob.tolist() == [-number for number in numbers]
    assert torch.allclose(rows.tail_logsumexp[0], numbers[0] * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    density = tail_log_density(rows.tail_logprobs, rows.tail_logsumexp, OUTPUT_ROWS - 3)
    assert torch.equal(rows.tail_log_density, density)


def test_rows_of_two_files_are_refused(targets: ShardReader) -> None:
    with pytest.raises(ValueError, match="do not lie in one file"):
        read_rows(targets, torch.tensor([3, 4]))


def test_no_aligned_row_at_all_gives_empty_columns_of_the_right_shape(targets: ShardReader) -> None:
    rows = read_rows(targets, torch.zeros(0, dtype=torch.int64))
    shapes = {name: tuple(column.shape) for name, column in vars(rows).items()}
    assert shapes == {
        "topk_ids": (0, 3),
        "topk_logprobs": (0, 3),
        "tail_logsumexp": (0, 5),
        "tail_ids": (0, 2),
        "tail_logprobs": (0, 2),
        "tail_log_density": (0, 2),
        "target_logprob": (0,),
    }
    assert (rows.topk_ids.dtype, rows.tail_logprobs.dtype) == (torch.int64, torch.float32)


def test_ids_of_a_large_vocabulary_keep_every_bit(tmp_path: Path) -> None:
    """131,072 is the first id that 17 bits do not hold; 151,935 is Qwen3's last row."""
    fields = target_fields(k=3, tail_samples=2, hidden_layers=0, hidden_size=0, router_layers=0, num_experts=0)
    columns = {name: torch.zeros(4, *spec.shape) for name, spec in fields.items() if spec.table == "positions"}
    ids = torch.tensor([[131_071, 131_072, 131_073, 2**16, 0], [151_935, 149_797, 20_863, 151_934, 131_072]])
    columns |= {"topk_ids": ids[:, :3].repeat(2, 1), "tail_ids": ids[:, 3:].repeat(2, 1)}
    columns |= {name: torch.zeros(0, *fields[name].shape) for name in fields if name not in columns}
    writer = ShardWriter(tmp_path, fields, "positions", 4)
    writer.append({name: fitted(column, DTYPES[fields[name].dtype]) for name, column in columns.items()})
    writer.finish(TEACHER_TARGETS, "key", {"output_rows": 151_936})
    rows = read_rows(open_targets(tmp_path), torch.arange(4))
    assert torch.equal(rows.topk_ids, columns["topk_ids"])
    assert torch.equal(rows.tail_ids, columns["tail_ids"])
