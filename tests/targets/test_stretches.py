"""Where the targets of a stretch lie, against looking at every one."""

import pytest
import torch

from moe_distill.targets.sparse_target import SparseTarget, sparse_target
from moe_distill.targets.stretches import Stretch, stretches
from tests.targets.reference import TEACHER_VOCABULARY, random_logits, random_map, teacher_rows


def target_of(has_target: list[bool]) -> SparseTarget:
    rows = teacher_rows(random_logits(sum(has_target), TEACHER_VOCABULARY, seed=1), 8, 4)
    return sparse_target(rows, torch.tensor(has_target), random_map(), 2.0, "temper_then_map", "sampled")


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 4, 11, 12, 13, 100])
@pytest.mark.parametrize("pattern", ["............", "xxxxxxxxxxxx", "x..........x", "..xx.x....x."])
def test_every_stretch_knows_the_entries_and_samples_of_its_positions(chunk_tokens: int, pattern: str) -> None:
    target = target_of([letter == "x" for letter in pattern])
    found = stretches(12, chunk_tokens, target)
    assert [position for each in found for position in range(each.start, each.stop)] == list(range(12))
    assert all(0 < each.stop - each.start <= chunk_tokens for each in found)
    assert len(found) == -(-12 // chunk_tokens)
    for each in found:
        for positions, bounds in (
            (target.entry_positions_Z.tolist(), each.entries),
            (target.sample_positions_Y.tolist(), each.samples),
        ):
            numbers = [number for number, position in enumerate(positions) if each.start <= position < each.stop]
            assert list(range(*bounds)) == numbers


def test_without_a_target_there_is_nothing_to_find() -> None:
    assert stretches(5, 2, None) == (Stretch(0, 2), Stretch(2, 4), Stretch(4, 5))


def test_no_positions_are_no_stretches() -> None:
    assert stretches(0, 4, None) == stretches(0, 4, target_of([])) == ()
