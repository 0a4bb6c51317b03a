"""What is drawn by chance, the tail samples and the runs of states: by seed and window alone."""

import pytest
import torch
from torch import Tensor

from moe_distill.losses.output_head import OutputHead
from moe_distill.teacher.columns import Batch, position_columns, run_of
from moe_distill.teacher.forward import States
from tests.teacher.conftest import VOCABULARY
from tests.teacher.test_capture import params


def tail_ids(window: int, seed: int) -> Tensor:
    """Of a window whose teacher says the same whatever its number is."""
    generator = torch.Generator().manual_seed(0)
    final_BLT = torch.randn(1, 6, 8, generator=generator)
    head = OutputHead(torch.randn(VOCABULARY, 8, generator=generator))
    ids = torch.arange(6)
    batch = Batch(range(window, window + 1), ids[None], [ids])
    states = States(final_BLT, final_BLT[:, :, None], None, None)
    columns, _ = position_columns(batch, states, head, torch.tensor([0]), params(batch_windows=1), seed)
    return columns["tail_ids"]


def test_equal_windows_have_tail_samples_of_their_own() -> None:
    assert torch.equal(tail_ids(window=3, seed=0), tail_ids(window=3, seed=0))
    assert not torch.equal(tail_ids(window=3, seed=0), tail_ids(window=4, seed=0))
    assert not torch.equal(tail_ids(window=3, seed=0), tail_ids(window=3, seed=1))


def test_another_seed_keeps_other_runs_of_other_windows() -> None:
    by_seed = [[run_of(window, 100, params(hidden_fraction=0.5), seed) for window in range(100)] for seed in (0, 1)]
    assert len({tuple(run is None for run in runs) for runs in by_seed}) == 2
    both = [(one, other) for one, other in zip(*by_seed, strict=True) if one is not None and other is not None]
    assert any(one != other for one, other in both)


@pytest.mark.parametrize(("length", "kept"), [(63, None), (64, range(64))])
def test_a_window_as_long_as_a_run_is_kept_whole_and_a_shorter_one_not_at_all(length: int, kept: range | None) -> None:
    assert {run_of(window, length, params(hidden_fraction=1.0), seed=0) for window in range(20)} == {kept}
