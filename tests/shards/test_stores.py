"""Windows, vocabulary map and teacher rows read back."""

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.shards.targets import (
    TAIL_SAMPLE_TEMPERATURE,
    TAIL_TEMPERATURES,
    TAIL_UNIFORM_SHARE,
    TEACHER_TARGETS,
    open_targets,
    read_rows,
    tail_log_density,
    target_fields,
)
from moe_distill.shards.windows import (
    MAP_FIELDS,
    TEACHER_FIELDS,
    TEACHER_WINDOWS,
    VOCABULARY_MAP,
    WindowStore,
    read_vocabulary_map,
)
from moe_distill.shards.writer import ShardWriter

OUTPUT_ROWS = 100
COUNTS = [[3, 1], [2], [4, 2]]  # windows of each file


@pytest.fixture
def windows(tmp_path):
    writer = ShardWriter(tmp_path, TEACHER_FIELDS, "tokens", 1)
    first = 0
    for number, counts in enumerate(COUNTS):
        total = sum(counts)
        columns = {
            "token_ids": torch.arange(first, first + total).int(),
            "token_counts": torch.tensor(counts).int(),
            "documents": torch.full((len(counts),), number).int(),
            "byte_starts": torch.tensor([10 * place for place in range(len(counts))]),
            "byte_ends": torch.tensor([10 * place + 2 * count for place, count in enumerate(counts)]),
        }
        writer.append(columns, cursor=0)
        first += total
    writer.finish(TEACHER_WINDOWS, "key", {"prefix_id": 0, "max_length": 8})
    return WindowStore(tmp_path, TEACHER_WINDOWS)


def test_windows_are_numbered_over_all_files(windows):
    assert len(windows) == 5
    assert [windows.tokens("token_ids", number).tolist() for number in range(5)] == [
        [0, 1, 2],
        [3],
        [4, 5],
        [6, 7, 8, 9],
        [10, 11],
    ]
    spans = [windows.span(number) for number in range(5)]
    assert [(span.start, span.stop, span.n_bytes) for span in spans] == [
        (0, 3, 6),
        (3, 4, 2),
        (4, 6, 4),
        (6, 10, 8),
        (10, 12, 4),
    ]


def test_windows_of_the_other_kind_are_refused(windows):
    with pytest.raises(DataError, match=r"moe-distill/teacher-windows version 1, expected moe-distill/student-windows"):
        WindowStore(windows.reader.folder, "moe-distill/student-windows")


def test_vocabulary_map_round_trip(tmp_path):
    writer = ShardWriter(tmp_path, MAP_FIELDS, "teacher_ids", 4)
    writer.append({"student_ids": torch.tensor([5, -1, 0, 2]).int()}, cursor=0)
    writer.append({"student_ids": torch.tensor([-1]).int()}, cursor=0)
    writer.finish(VOCABULARY_MAP, "key", {"student_ids": 6})
    found = read_vocabulary_map(tmp_path)
    assert found.dtype == torch.int64
    assert found.tolist() == [5, -1, 0, 2, -1]


@pytest.fixture
def targets(tmp_path):
    """Seven positions in two files, three kept logits, two tail samples, no hidden states."""
    fields = target_fields(k=3, tail_samples=2, hidden_layers=1, hidden_size=4, router_layers=0, num_experts=0)
    writer = ShardWriter(tmp_path, fields, "positions", 4)
    for first, stop in ((0, 4), (4, 7)):
        row = torch.arange(first, stop)
        columns = {
            "topk_ids": (row[:, None] * 10 + torch.arange(3)).int(),
            "topk_logprobs": (-row[:, None] - torch.tensor([0.25, 1.5, 2.0])).half(),
            "tail_logsumexp": row[:, None] * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
            "tail_ids": (row[:, None] * 10 + torch.tensor([7, 8])).int(),
            "tail_logprobs": (-row[:, None] - torch.tensor([5.0, 6.0])).half(),
            "target_logprob": -row.float(),
            "hidden_rows": torch.zeros(0, dtype=torch.int64),
            "hidden": torch.zeros(0, 1, 4).half(),
            "hidden_scales": torch.zeros(0, 1),
        }
        writer.append(columns, cursor=0)
    writer.finish(TEACHER_TARGETS, "key", {"output_rows": OUTPUT_ROWS})
    return open_targets(tmp_path)


def test_r01_teacher_rows_are_upcast_where_they_are_read(targets):
    rows = read_rows(targets, [torch.tensor([0, 1])])
    assert {getattr(rows, name).dtype for name in ("topk_logprobs", "tail_logprobs", "tail_logsumexp")} == {
        torch.float32
    }
    assert {rows.topk_ids.dtype, rows.tail_ids.dtype} == {torch.int64}


def test_teacher_rows_of_windows_leave_out_what_is_not_aligned(targets):
    rows = read_rows(targets, [torch.tensor([-1, 1, -1, 3]), torch.tensor([-1, -1]), torch.tensor([4, 6, -1])])
    assert len(rows) == 4
    assert rows.topk_ids[:, 0].tolist() == [10, 30, 40, 60]
    assert rows.tail_ids.tolist() == [[17, 18], [37, 38], [47, 48], [67, 68]]
    assert rows.topk_logprobs[1].tolist() == [-3.25, -4.5, -5.0]
    assert torch.allclose(rows.tail_logsumexp[3], 6 * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert rows.tail_logprobs[2].tolist() == [-9.0, -10.0]


def test_no_aligned_row_at_all_gives_empty_columns_of_the_right_shape(targets):
    rows = read_rows(targets, [torch.tensor([-1, -1])])
    assert len(rows) == 0
    assert (rows.topk_ids.shape, rows.tail_logsumexp.shape, rows.tail_ids.shape) == ((0, 3), (0, 5), (0, 2))
    assert (rows.topk_ids.dtype, rows.tail_logprobs.dtype) == (torch.int64, torch.float32)


def test_the_density_of_tail_samples_sums_to_one_over_the_tail_and_mixes_in_the_uniform():
    logprobs = (3 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    tail = logprobs.sort(descending=True).values[:, 8:]  # top-8 left out
    nodes = torch.stack([(tail / temperature).logsumexp(-1) for temperature in TAIL_TEMPERATURES], -1)
    density = tail_log_density(tail, nodes, n_tail=42).exp()
    tempered = (tail / TAIL_SAMPLE_TEMPERATURE).softmax(-1)
    expected = (1 - TAIL_UNIFORM_SHARE) * tempered + TAIL_UNIFORM_SHARE / 42
    assert torch.allclose(density, expected, rtol=1e-4)
    assert torch.allclose(density.sum(-1), torch.ones(2), atol=1e-5)


def test_target_fields_of_a_dense_last_block_have_no_router():
    dense = target_fields(64, 16, 3, 32, router_layers=0, num_experts=0)
    moe = target_fields(64, 16, 3, 32, router_layers=1, num_experts=4)
    assert set(moe) - set(dense) == {"moe_input", "moe_input_scales", "router_logits"}
    assert moe["router_logits"].shape == (1, 4)
    assert moe["hidden"].shape == (3, 32)
    assert {name for name, spec in moe.items() if spec.table == "positions"} == {
        "topk_ids",
        "topk_logprobs",
        "tail_logsumexp",
        "tail_ids",
        "tail_logprobs",
        "target_logprob",
    }
