"""The order of the windows: of like length in a batch, of no length over time, a function of seed and step."""

import torch

from moe_distill.batches.batch_order import batches_from, epoch_batches


def test_r30_batches_are_of_like_length_seeded_and_complete() -> None:
    lengths = torch.randint(10, 200, (500,), generator=torch.Generator().manual_seed(0))
    batches = epoch_batches(lengths, 8, seed=1, epoch=0)
    assert sorted(number for batch in batches for number in batch) != list(range(500))  # 500 = 62 * 8 + 4
    assert len({number for batch in batches for number in batch}) == 496
    padded = sum(8 * int(lengths[batch].max()) for batch in batches)
    assert 1 - int(sum(lengths[batch].sum() for batch in batches)) / padded < 0.1
    assert batches == epoch_batches(lengths, 8, seed=1, epoch=0)
    assert batches != epoch_batches(lengths, 8, seed=2, epoch=0)
    assert not {tuple(batch) for batch in batches} & {tuple(batch) for batch in epoch_batches(lengths, 8, 1, epoch=1)}
    means = torch.tensor([float(lengths[batch].float().mean()) for batch in batches])
    assert 0.3 < float((means.diff() >= 0).float().mean()) < 0.7, "longer as often as shorter: no order over time"


def test_r21_order_of_a_resumed_run_is_that_of_the_unbroken_one() -> None:
    lengths = torch.arange(40)
    whole = batches_from(lengths, 8, 0, 0)
    steps = [next(whole) for _ in range(13)]
    resumed = batches_from(lengths, 8, 0, 7)
    assert [next(resumed) for _ in range(6)] == steps[7:]
