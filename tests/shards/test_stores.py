"""Windows and vocabulary map read back; the columns of teacher targets."""

from pathlib import Path

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.shards.teacher_store import (
    TAIL_SAMPLE_TEMPERATURE,
    TAIL_TEMPERATURES,
    TAIL_UNIFORM_SHARE,
    tail_log_density,
    target_fields,
)
from moe_distill.shards.vocabulary_store import read_vocabulary_map
from moe_distill.shards.window_store import WindowStore


def test_windows_are_numbered_over_all_files(windows: WindowStore) -> None:
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


def test_windows_of_the_other_kind_are_refused(windows: WindowStore) -> None:
    with pytest.raises(DataError, match=r"moe-distill/teacher-windows version 6, expected moe-distill/student-windows"):
        WindowStore(windows.reader.folder, "moe-distill/student-windows")


def test_vocabulary_map_round_trip(vocabulary_map: Path) -> None:
    found = read_vocabulary_map(vocabulary_map)
    assert found.dtype == torch.int64
    assert found.tolist() == [5, -1, 0, 2, -1]


def test_the_density_of_tail_samples_sums_to_one_over_the_tail_and_mixes_in_the_uniform() -> None:
    logprobs = (3 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    tail = logprobs.sort(descending=True).values[:, 8:]  # top-8 left out
    nodes = torch.stack([(tail / temperature).logsumexp(-1) for temperature in TAIL_TEMPERATURES], -1)
    density = tail_log_density(tail, nodes, n_tail=42).exp()
    tempered = (tail / TAIL_SAMPLE_TEMPERATURE).softmax(-1)
    expected = (1 - TAIL_UNIFORM_SHARE) * tempered + TAIL_UNIFORM_SHARE / 42
    assert torch.allclose(density, expected, rtol=1e-4)
    assert torch.allclose(density.sum(-1), torch.ones(2), atol=1e-5)


def test_target_fields_of_a_dense_last_block_have_no_router() -> None:
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
