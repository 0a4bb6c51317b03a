"""Small stores of the kinds the pipeline has."""

from pathlib import Path

import pytest
import torch

from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS, open_targets, target_fields
from moe_distill.shards.vocabulary_store import MAP_FIELDS, MERGE_IDS, VOCABULARY_MAP
from moe_distill.shards.window_store import TEACHER_FIELDS, TEACHER_WINDOWS, WindowStore
from moe_distill.shards.writer import ShardWriter

OUTPUT_ROWS = 100
COUNTS = [[3, 1], [2], [4, 2]]  # windows of each file


@pytest.fixture
def windows(tmp_path: Path) -> WindowStore:
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
            "token_bytes": torch.full((0 if number else 12,), 2).int(),
        }
        writer.append(columns)
        first += total
    writer.finish(TEACHER_WINDOWS, "key", {"prefix_id": 0, "max_length": 8})
    return WindowStore(tmp_path, TEACHER_WINDOWS)


@pytest.fixture
def targets(tmp_path: Path) -> ShardReader:
    """Seven positions in two files, three kept logits, two tail samples; a state of the first position of each."""
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
            "hidden_rows": row[:1],
            "hidden": torch.zeros(1, 1, 4).half(),
            "hidden_scales": torch.ones(1, 1),
        }
        writer.append(columns)
    writer.finish(TEACHER_TARGETS, "key", {"output_rows": OUTPUT_ROWS})
    return open_targets(tmp_path)


@pytest.fixture
def vocabulary_map(tmp_path: Path) -> Path:
    """Five teacher ids, six student ids: five of one byte, and one that stands for no text."""
    tokenizer = {
        "student_bytes": torch.tensor([1, 1, 0, 1, 1, 1]).int(),
        "student_spelling": torch.tensor([97, 98, 99, 100, -61], dtype=torch.int8),
        "student_tokenizer": torch.tensor([123, 125], dtype=torch.int8),
        "teacher_bytes": torch.tensor([2, 0, 3, 2]).int(),  # ab, nothing, abc, ac
        "token_rests": torch.tensor([-1, -1, -1, 2]).int(),
        "beginnings": torch.tensor([0, 1, 0, 1, 2, 0, 3]).int(),
        "rests": torch.tensor([0, -1, 1, 2, -1, 2, -1]).int(),
        "rest_student_ids": torch.tensor([1, 1, 3]).int(),
    }
    writer = ShardWriter(tmp_path / "map", MAP_FIELDS, "teacher_ids", 4)
    for student_ids in ([5, -1, 0, 2], [-1]):
        merges = {name: torch.tensor([3, 1]).int() for name in MERGE_IDS}
        writer.append({"student_ids": torch.tensor(student_ids).int(), **merges, **tokenizer})
        tokenizer = {name: column[:0] for name, column in tokenizer.items()}
    writer.finish(VOCABULARY_MAP, "key", {"student_ids": 6})
    return tmp_path / "map"
