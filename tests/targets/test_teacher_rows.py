"""Cached rows, read for one window's positions."""

import pytest
import torch

from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import tail_log_density
from moe_distill.targets.teacher_rows import read_rows
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
