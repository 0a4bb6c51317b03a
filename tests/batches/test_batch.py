"""The counts that sums of a step are divided by."""

from moe_distill.batches.batch import Counts


def test_counts_of_a_step_are_those_of_its_parts_added_up() -> None:
    step = Counts(tokens=6, with_target=3, hidden=2, n_bytes=20, places=8) + Counts(2, 1, 0, 5, 8)
    assert step == Counts(8, 4, 2, 25, 16)
    assert step.padding_share == 0.5
    assert Counts(tokens=3, places=3).padding_share == 0.0
