"""The teacher's distribution in the student's vocabulary, against dense float64."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from moe_distill.config.params import KdOrder
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES
from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.canonical import merge_rules
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, joined, sparse_target
from moe_distill.targets.token_shares import NextTokenCounts, counted_shares, rule_map
from tests.targets.reference import (
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    dense_target,
    entries_of,
    identity_map,
    kd_gradient,
    kd_values,
    knowing_the_tail,
    random_logits,
    random_map,
    target_of_all,
    teacher_rows,
)

ORDERS: tuple[KdOrder, ...] = get_args(KdOrder)


def entry_mass(target: SparseTarget) -> torch.Tensor:
    return torch.zeros(len(target)).index_add(0, target.entry_positions_Z, target.entry_probs_Z)


def sample_mass(target: SparseTarget) -> torch.Tensor:
    return torch.zeros(len(target)).index_add(0, target.sample_positions_Y, target.sample_probs_Y)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", TAIL_TEMPERATURES)
@pytest.mark.parametrize("k", [1, 8, 64])
def test_r12_entries_and_residual_equal_the_dense_map(order: KdOrder, temperature: float, k: int) -> None:
    logits, to_student = random_logits(6, TEACHER_VOCABULARY, seed=1), random_map()
    target = target_of_all(teacher_rows(logits, k), to_student, temperature, order)
    for row in range(len(logits)):
        expected = dense_target(logits[row], to_student, k, temperature, order)
        assert entries_of(target, row) == pytest.approx(expected.entries, abs=1e-6)
        assert float(target.residual_N[row]) == pytest.approx(expected.residual, abs=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_r07_mass_is_conserved(order: KdOrder, temperature: float) -> None:
    logits = torch.cat([random_logits(20, TEACHER_VOCABULARY, seed=2, scale=scale) for scale in (0.1, 3.0, 20.0)])
    target = target_of_all(teacher_rows(logits, 16, 8), random_map(), temperature, order, "sampled")
    torch.testing.assert_close(entry_mass(target) + target.residual_N, torch.ones(60), atol=1e-6, rtol=0)
    listed = entry_mass(target) + sample_mass(target)
    torch.testing.assert_close(target.listed_mass_N, listed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("unmapped", [0.0, 0.3])
def test_r07_tail_samples_are_on_average_the_mapped_tail(order: KdOrder, temperature: float, unmapped: float) -> None:
    logits = random_logits(1, TEACHER_VOCABULARY, seed=3)
    to_student = knowing_the_tail(random_map(unmapped), logits[0], 8)
    samples = 32 if order == "temper_then_map" else 512  # the tail's own mass is then the samples' word
    offsets = (torch.arange(1024) + 0.5) / 1024  # the mean over a grid of offsets is the expectation
    rows = teacher_rows(logits.expand(1024, -1), 8, samples, offsets)
    target = target_of_all(rows, to_student, temperature, order, "sampled")
    mean = torch.zeros(STUDENT_VOCABULARY).index_add(0, target.sample_ids_Y, target.sample_probs_Y / 1024)
    expected = dense_target(logits[0], to_student, 8, temperature, order, merges_tail=True)
    assert {each: mass for each, mass in enumerate(mean.tolist()) if mass} == pytest.approx(expected.tail, abs=1e-4)
    mapped = expected.tail_mass if not unmapped else sum(expected.tail.values())
    assert float(sample_mass(target).mean()) == pytest.approx(mapped, rel=2e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_unmapped_ids_get_no_mass_and_exact_ones_keep_theirs(order: KdOrder) -> None:
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]])
    to_student = rule_map(torch.tensor([3, -1, 1, -1, 2]))
    target = target_of_all(teacher_rows(probs.log(), 3, 8), to_student, 1.0, order, "sampled")
    assert entries_of(target, 0) == pytest.approx({3: 0.4, 1: 0.2})
    assert float(target.residual_N) == pytest.approx(0.4)
    assert set(target.sample_ids_Y.tolist()) == {2}
    assert (target.sample_probs_Y > 0).all()


def test_r12_a_map_of_nothing_leaves_all_in_the_residual() -> None:
    rows = teacher_rows(random_logits(3, TEACHER_VOCABULARY, seed=4), 8, 4)
    target = target_of_all(rows, random_map(unmapped=1.0), 2.0, tail="sampled")
    assert (len(target.entry_probs_Z), len(target.sample_probs_Y)) == (0, 0)
    torch.testing.assert_close(target.residual_N, torch.ones(3))
    assert target.listed_mass_N.tolist() == [0.0] * 3


def test_both_orders_agree_at_temperature_one_and_differ_above() -> None:
    rows, to_student = teacher_rows(random_logits(6, TEACHER_VOCABULARY, seed=5), 32, 4), random_map()
    for temperature, agree in ((1.0, True), (2.0, False)):
        first, second = (target_of_all(rows, to_student, temperature, order, "sampled") for order in ORDERS)
        assert torch.equal(first.entry_positions_Z, second.entry_positions_Z)
        assert torch.equal(first.entry_ids_Z, second.entry_ids_Z)
        assert torch.allclose(first.entry_probs_Z, second.entry_probs_Z, atol=1e-6) is agree
        assert torch.allclose(first.sample_probs_Y, second.sample_probs_Y, atol=1e-6) is agree


def test_both_orders_agree_where_the_map_is_one_to_one() -> None:
    rows = teacher_rows(random_logits(6, TEACHER_VOCABULARY, seed=6), 32)
    to_student = identity_map(TEACHER_VOCABULARY)
    first, second = (target_of_all(rows, to_student, 3.0, order) for order in ORDERS)
    assert torch.equal(first.entry_ids_Z, second.entry_ids_Z)
    torch.testing.assert_close(first.entry_probs_Z, second.entry_probs_Z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_the_tokenizer_would_have_joined_gets_nothing_and_the_rest_is_renormalised(
    order: KdOrder, temperature: float
) -> None:
    """After token 0 no 1, for a merge of the two; the dense target is that of a teacher who knows it."""
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04], [0.1, 0.5, 0.2, 0.1, 0.1]])
    to_student, previous = rule_map(torch.tensor([3, 1, 1, 4, 2])), torch.tensor([0, 0])
    merges = merge_rules(Merges(torch.tensor([0]), torch.tensor([1]), torch.tensor([2])), 6)
    knowing = probs.clone()
    knowing[0, [1, 2]] = 0.0  # in the second row 1 follows in the text
    text = NextTokens(torch.tensor([0, 1]), torch.tensor([3, 1]))
    rows = teacher_rows(probs.log(), 3, 0, targets_N=text.teacher_ids)
    asked = replace(to_student, merges=merges)
    found = target_of_all(rows, asked, temperature, order, text=text, previous_ids_N=previous)
    knowing = knowing / knowing.sum(-1, keepdim=True)
    for row, pair in enumerate([(0, 3), (1, 1)]):
        expected = dense_target((knowing[row] + 1e-30).log(), to_student, 3, temperature, order, pair)
        dense = {student_id: mass for student_id, mass in expected.entries.items() if mass > 1e-6}
        assert (1 in entries_of(found, row)) is (row == 1)
        assert entries_of(found, row)[3] == pytest.approx(dense[3], abs=1e-6)
    unasked = target_of_all(rows, asked, temperature, order, text=text)
    assert 1 in entries_of(unasked, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("prob", "goes"), [(0.08, True), (2e-3, False)])
def test_what_cannot_follow_is_judged_by_its_mass_at_temperature_one(
    order: KdOrder, temperature: float, prob: float, goes: bool
) -> None:
    """A quarter of token 1's probability goes to a student token that cannot follow: 0.02, or less than LEAST_PROB."""
    counts = NextTokenCounts(torch.tensor([1, 1]), torch.tensor([1, 4]), torch.tensor([1, 2]))
    to_student = counted_shares(torch.tensor([3, 4, 5, 3]), counts)
    merges = merge_rules(Merges(torch.tensor([0]), torch.tensor([1]), torch.tensor([2])), 6)
    rows = teacher_rows(torch.tensor([[0.88, prob, 0.119 - prob, 0.001]]).log(), 3, 0)
    knowing, previous = replace(to_student, merges=merges), torch.tensor([0])
    found = target_of_all(rows, knowing, temperature, order, previous_ids_N=previous)
    assert set(entries_of(found, 0)) == ({3, 4, 5} if goes else {1, 3, 4, 5})


def test_residual_mode_has_no_samples() -> None:
    rows = teacher_rows(random_logits(2, TEACHER_VOCABULARY, seed=7), 8, 4)
    found = target_of_all(rows, random_map(), 2.0, tail="residual")
    assert found.has_bucket_N.all()
    assert not len(found.sample_probs_Y)


def test_rows_without_samples_have_the_residual_alone() -> None:
    rows = teacher_rows(random_logits(2, TEACHER_VOCABULARY, seed=7), 8, 0)
    assert target_of_all(rows, random_map(), 2.0, tail="sampled").has_bucket_N.all()


@pytest.mark.parametrize("order", ORDERS)
def test_positions_without_a_cached_row_have_nothing(order: KdOrder) -> None:
    """The others have what they have alone, in their places."""
    rows = teacher_rows(random_logits(4, TEACHER_VOCABULARY, seed=9), 8, 4)
    text = NextTokens(torch.arange(4), torch.arange(4, 8))
    has_target = torch.tensor([False, True, True, False, False, True, False, True, False])
    found = sparse_target(rows, has_target, random_map(), 2.0, order, "sampled", text)
    alone = target_of_all(rows, random_map(), 2.0, order, "sampled", text)
    places = has_target.nonzero().squeeze(1)
    assert len(found) == 9
    assert torch.equal(found.has_target_N, has_target)
    assert torch.equal(found.entry_positions_Z.long(), places[alone.entry_positions_Z])
    assert torch.equal(found.sample_positions_Y.long(), places[alone.sample_positions_Y])
    for name in ("entry_ids_Z", "entry_probs_Z", "sample_ids_Y", "sample_probs_Y"):
        assert torch.equal(getattr(found, name), getattr(alone, name)), name
    for name in ("residual_N", "listed_mass_N"):
        assert torch.equal(getattr(found, name)[has_target], getattr(alone, name)), name
        assert getattr(found, name)[~has_target].tolist() == [0.0] * 5, name


def test_lists_are_small_and_ascending() -> None:
    """int32 and fp32; the lists of a window are what is kept of it, and hold on to nothing else."""
    rows = teacher_rows(random_logits(4, TEACHER_VOCABULARY, seed=9), 8, 4)
    found = target_of_all(rows, random_map(), 2.0, tail="sampled")
    lists = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert {each.dtype for each in lists} == {torch.bool, torch.int32, torch.float32}
    assert sum(each.untyped_storage().nbytes() for each in lists) == found.nbytes
    entries, samples = len(found.entry_ids_Z), len(found.sample_ids_Y)
    assert found.nbytes == 4 * (1 + 1 + 4 + 4) + 12 * (entries + samples)
    for positions in (found.entry_positions_Z, found.sample_positions_Y):
        assert (positions.diff() >= 0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("counts", [(6,), (1, 5), (2, 0, 3, 1), (0, 0, 6), (6, 0)])
def test_joined_targets_are_the_target_of_all_their_positions(order: KdOrder, counts: tuple[int, ...]) -> None:
    logits = random_logits(6, TEACHER_VOCABULARY, seed=10)
    whole = target_of_all(teacher_rows(logits, 8, 4), random_map(), 2.0, order, "sampled")
    parts = [teacher_rows(part, 8, 4) for part in logits.split(list(counts))]
    found = joined([target_of_all(part, random_map(), 2.0, order, "sampled") for part in parts])
    assert (found.temperature, found.has_bucket_N.any().item(), len(found)) == (2.0, False, 6)
    for name, expected in vars(whole).items():
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(getattr(found, name), expected, msg=name)


@pytest.mark.parametrize("order", ORDERS)
def test_no_rows(order: KdOrder) -> None:
    target = target_of_all(teacher_rows(torch.zeros(0, TEACHER_VOCABULARY), 8, 4), random_map(), 2.0, order, "sampled")
    assert (len(target), len(target.entry_ids_Z), len(target.residual_N), len(target.sample_probs_Y)) == (0, 0, 0, 0)
    nothing = torch.zeros(0, STUDENT_VOCABULARY)
    assert kd_values(nothing, target).shape == (0,)
    assert kd_gradient(nothing, target).shape == (0, STUDENT_VOCABULARY)


def test_positions_without_any_row() -> None:
    rows = teacher_rows(torch.zeros(0, TEACHER_VOCABULARY), 8, 4)
    found = sparse_target(rows, torch.zeros(3, dtype=torch.bool), random_map(), 2.0, "temper_then_map", "sampled")
    assert (len(found), len(found.entry_ids_Z), found.residual_N.tolist()) == (3, 0, [0.0] * 3)
