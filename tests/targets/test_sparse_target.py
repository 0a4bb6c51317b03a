"""The teacher's distribution in the student's vocabulary, against dense float64."""

from dataclasses import replace

import pytest
import torch

from moe_distill.losses.kd import forward_kl
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES
from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.canonical import merge_rules
from moe_distill.targets.sparse_target import (
    NextTokens,
    Order,
    SparseTarget,
    sparse_target,
)
from moe_distill.targets.token_shares import NextTokenCounts, counted_shares, rule_map
from tests.targets.reference import (
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    dense_target,
    identity_map,
    knowing_the_tail,
    random_logits,
    random_map,
    teacher_rows,
)

ORDERS: tuple[Order, ...] = ("temper_then_map", "map_then_temper")


def entries_of(target: SparseTarget, row: int) -> dict[int, float]:
    present = target.logprobs[row] > float("-inf")
    ids = target.ids[row][present].tolist()
    assert len(ids) == len(set(ids)), "an id stands twice in a row"
    return dict(zip(ids, target.probs[row][present].tolist(), strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", TAIL_TEMPERATURES)
@pytest.mark.parametrize("k", [1, 8, 64])
def test_r12_entries_and_residual_equal_the_dense_map(order: Order, temperature: float, k: int) -> None:
    logits, to_student = random_logits(6, TEACHER_VOCABULARY, seed=1), random_map()
    target = sparse_target(teacher_rows(logits, k), to_student, temperature, order, "residual")
    for row in range(len(logits)):
        expected = dense_target(logits[row], to_student, k, temperature, order)
        assert entries_of(target, row) == pytest.approx(expected.entries, abs=1e-6)
        assert float(target.residual[row]) == pytest.approx(expected.residual, abs=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_r07_mass_is_conserved(order: Order, temperature: float) -> None:
    logits = torch.cat([random_logits(20, TEACHER_VOCABULARY, seed=2, scale=scale) for scale in (0.1, 3.0, 20.0)])
    target = sparse_target(teacher_rows(logits, 16, 8), random_map(), temperature, order, "sampled")
    torch.testing.assert_close(target.probs.sum(-1) + target.residual, torch.ones(60), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("unmapped", [0.0, 0.3])
def test_r07_tail_samples_are_on_average_the_mapped_tail(order: Order, temperature: float, unmapped: float) -> None:
    logits = random_logits(1, TEACHER_VOCABULARY, seed=3)
    to_student = knowing_the_tail(random_map(unmapped), logits[0], 8)
    samples = 32 if order == "temper_then_map" else 512  # the tail's own mass is then the samples' word
    offsets = (torch.arange(1024) + 0.5) / 1024  # the mean over a grid of offsets is the expectation
    target = sparse_target(
        teacher_rows(logits.expand(1024, -1), 8, samples, offsets), to_student, temperature, order, "sampled"
    )
    mean = torch.zeros(STUDENT_VOCABULARY).index_add(0, target.tail_ids.flatten(), target.tail_probs.flatten() / 1024)
    expected = dense_target(logits[0], to_student, 8, temperature, order, merges_tail=True)
    assert {each: mass for each, mass in enumerate(mean.tolist()) if mass} == pytest.approx(expected.tail, abs=1e-4)
    mapped = expected.tail_mass if not unmapped else sum(expected.tail.values())
    assert float(target.tail_probs.sum(-1).mean()) == pytest.approx(mapped, rel=2e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_unmapped_ids_get_no_mass_and_exact_ones_keep_theirs(order: Order) -> None:
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]])
    to_student = rule_map(torch.tensor([3, -1, 1, -1, 2]))
    target = sparse_target(teacher_rows(probs.log(), 3, 8), to_student, 1.0, order, "sampled")
    assert entries_of(target, 0) == pytest.approx({3: 0.4, 1: 0.2})
    assert float(target.residual) == pytest.approx(0.4)
    lands = target.tail_probs[0] > 0
    assert set(target.tail_ids[0][lands].tolist()) == {2}


def test_r12_a_map_of_nothing_leaves_all_in_the_residual() -> None:
    rows = teacher_rows(random_logits(3, TEACHER_VOCABULARY, seed=4), 8, 4)
    target = sparse_target(rows, random_map(unmapped=1.0), 2.0, "temper_then_map", "sampled")
    assert (target.logprobs == float("-inf")).all()
    assert (target.tail_probs == 0).all()
    torch.testing.assert_close(target.residual, torch.ones(3))


def test_both_orders_agree_at_temperature_one_and_differ_above() -> None:
    rows, to_student = teacher_rows(random_logits(6, TEACHER_VOCABULARY, seed=5), 32, 4), random_map()
    for temperature, agree in ((1.0, True), (2.0, False)):
        first, second = (sparse_target(rows, to_student, temperature, order, "sampled") for order in ORDERS)
        assert torch.equal(first.ids, second.ids)
        assert torch.allclose(first.probs, second.probs, atol=1e-6) is agree
        assert torch.allclose(first.tail_probs, second.tail_probs, atol=1e-6) is agree


def test_both_orders_agree_where_the_map_is_one_to_one() -> None:
    rows = teacher_rows(random_logits(6, TEACHER_VOCABULARY, seed=6), 32)
    to_student = identity_map(TEACHER_VOCABULARY)
    first, second = (sparse_target(rows, to_student, 3.0, order, "residual") for order in ORDERS)
    torch.testing.assert_close(first.probs, second.probs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_the_tokenizer_would_have_joined_gets_nothing_and_the_rest_is_renormalised(
    order: Order, temperature: float
) -> None:
    """After token 0 no 1, for a merge of the two; the dense target is that of a teacher who knows it."""
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04], [0.1, 0.5, 0.2, 0.1, 0.1]])
    to_student, previous = rule_map(torch.tensor([3, 1, 1, 4, 2])), torch.tensor([0, 0])
    merges = merge_rules(Merges(torch.tensor([0]), torch.tensor([1]), torch.tensor([2]), torch.tensor([False])), 6)
    knowing = probs.clone()
    knowing[0, [1, 2]] = 0.0  # in the second row 1 follows in the text
    text = NextTokens(torch.tensor([0, 1]), torch.tensor([3, 1]))
    rows = teacher_rows(probs.log(), 3, 0, targets_N=text.teacher_ids)
    found = sparse_target(
        rows, replace(to_student, merges=merges), temperature, order, "residual", text, previous_ids_N=previous
    )
    knowing = knowing / knowing.sum(-1, keepdim=True)
    for row, pair in enumerate([(0, 3), (1, 1)]):
        expected = dense_target((knowing[row] + 1e-30).log(), to_student, 3, temperature, order, pair)
        dense = {student_id: mass for student_id, mass in expected.entries.items() if mass > 1e-6}
        assert (1 in entries_of(found, row)) is (row == 1)
        assert entries_of(found, row)[3] == pytest.approx(dense[3], abs=1e-6)
    unasked = sparse_target(rows, replace(to_student, merges=merges), temperature, order, "residual", text)
    assert 1 in entries_of(unasked, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("prob", "goes"), [(0.08, True), (2e-3, False)])
def test_what_cannot_follow_is_judged_by_its_mass_at_temperature_one(
    order: Order, temperature: float, prob: float, goes: bool
) -> None:
    """A quarter of token 1's probability goes to a student token that cannot follow: 0.02, or less than LEAST_PROB."""
    counts = NextTokenCounts(torch.tensor([1, 1]), torch.tensor([1, 4]), torch.tensor([1, 2]))
    to_student = counted_shares(torch.tensor([3, 4, 5, 3]), counts)
    merges = merge_rules(Merges(torch.tensor([0]), torch.tensor([1]), torch.tensor([2]), torch.tensor([False])), 6)
    rows = teacher_rows(torch.tensor([[0.88, prob, 0.119 - prob, 0.001]]).log(), 3, 0)
    knowing, previous = replace(to_student, merges=merges), torch.tensor([0])
    found = sparse_target(rows, knowing, temperature, order, "residual", previous_ids_N=previous)
    assert set(entries_of(found, 0)) == ({3, 4, 5} if goes else {1, 3, 4, 5})


def test_residual_mode_has_no_samples() -> None:
    rows = teacher_rows(random_logits(2, TEACHER_VOCABULARY, seed=7), 8, 4)
    assert sparse_target(rows, random_map(), 2.0, "temper_then_map", "residual").tail_ids.shape == (2, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_no_rows(order: Order) -> None:
    target = sparse_target(teacher_rows(torch.zeros(0, TEACHER_VOCABULARY), 8, 4), random_map(), 2.0, order, "sampled")
    assert (len(target.ids), len(target.residual), len(target.tail_probs)) == (0, 0, 0)
    assert forward_kl(torch.zeros(0, STUDENT_VOCABULARY), target, 2.0).shape == (0,)
