"""How a teacher token's probability is handed out, against counting by hand."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from moe_distill.config.params import KdOrder
from moe_distill.targets.sparse_target import NextTokens
from moe_distill.targets.token_shares import (
    MAX_STUDENT_TOKENS,
    RULE_COUNT,
    NextTokenCounts,
    VocabularyMap,
    counted_shares,
    rule_map,
)
from tests.targets.reference import (
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    dense_target,
    entries_of,
    knowing_the_tail,
    random_logits,
    rows_without_a_tail,
    target_of_all,
    teacher_rows,
)

RULE = torch.tensor([3, -1, 1, 2])


def continuations(pairs: list[tuple[int, int, int]]) -> NextTokenCounts:
    columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3)
    return NextTokenCounts(*columns.unbind(1))


def shares(found: VocabularyMap, teacher_id: int) -> dict[int, float]:
    present = found.log_shares[teacher_id] > float("-inf")
    ids = found.student_ids[teacher_id][present].tolist()
    return dict(zip(ids, found.log_shares[teacher_id][present].exp().tolist(), strict=True))


def random_continuations() -> VocabularyMap:
    generator = torch.Generator().manual_seed(1)
    rule = torch.randint(-1, STUDENT_VOCABULARY, (TEACHER_VOCABULARY,), generator=generator)
    pairs = torch.stack(
        [
            torch.randint(TEACHER_VOCABULARY, (500,), generator=generator),
            torch.randint(STUDENT_VOCABULARY, (500,), generator=generator),
        ],
        dim=1,
    ).unique(dim=0)
    counts = torch.randint(1, 50, (len(pairs),), generator=generator)
    return counted_shares(rule, NextTokenCounts(pairs[:, 0], pairs[:, 1], counts))


def test_without_text_the_rule_decides() -> None:
    for found in (rule_map(RULE), counted_shares(RULE, continuations([]))):
        assert [shares(found, teacher_id) for teacher_id in range(4)] == [{3: 1.0}, {}, {1: 1.0}, {2: 1.0}]
        assert found.likeliest.tolist() == [3, -1, 1, 2]


def test_the_students_first_id_is_one_as_any_other() -> None:
    """Of GPT-2's vocabulary it is "!"."""
    rule, text = torch.tensor([0, -1]), continuations([(0, 0, 2), (1, 0, 5)])
    for found in (rule_map(rule), counted_shares(rule, text)):
        assert found.likeliest.tolist() == [0, -1]
        assert (shares(found, 0), shares(found, 1)) == ({0: 1.0}, {})


def test_counts_of_the_text_and_the_rule_as_one_observation() -> None:
    found = counted_shares(RULE, continuations([(0, 3, 4), (0, 2, 15), (1, 2, 9), (2, 3, 1)]))
    total = 4 + RULE_COUNT + 15
    assert shares(found, 0) == pytest.approx({3: (4 + RULE_COUNT) / total, 2: 15 / total})
    assert shares(found, 1) == {}, "an id without a student token keeps mapping to nothing"
    assert shares(found, 2) == pytest.approx({1: 0.5, 3: 0.5})
    assert found.likeliest[0] == 2


def test_frequencies_are_those_of_the_text_and_the_rule_handed_out_by_the_shares() -> None:
    found = counted_shares(RULE, continuations([(0, 3, 3), (0, 1, 1), (1, 2, 9)]))
    assert found.frequencies.tolist() == pytest.approx([5 / 7, 0, 1 / 7, 1 / 7])
    by_hand = [0.0] * 4
    for teacher_id in range(4):
        for student_id, share in shares(found, teacher_id).items():
            by_hand[student_id] += float(found.frequencies[teacher_id]) * share
    assert by_hand == pytest.approx([0, 1 / 7 + 1 / 7, 1 / 7, 4 / 7])
    assert found.student_frequencies.tolist() == pytest.approx(by_hand)


def test_a_frequent_teacher_token_counts_in_full_however_many_student_tokens_follow() -> None:
    """One more than are kept: what is left out is of no share, but the teacher's token was met."""
    pairs = [(0, student_id, 2) for student_id in range(10, 11 + MAX_STUDENT_TOKENS)]
    found = counted_shares(RULE, continuations(pairs))
    met = [2 * len(pairs) + RULE_COUNT, 0, RULE_COUNT, RULE_COUNT]
    assert found.frequencies.tolist() == pytest.approx([each / sum(met) for each in met])
    assert float(found.student_frequencies.sum()) == pytest.approx(1.0)


def test_every_mapped_row_hands_out_all_of_its_mass_to_the_most_frequent() -> None:
    pairs = [(0, student_id, 100 + student_id) for student_id in range(10, 10 + 3 * MAX_STUDENT_TOKENS)]
    found = shares(counted_shares(RULE, continuations(pairs)), 0)
    assert set(found) == {student_id for _, student_id, _ in pairs[-MAX_STUDENT_TOKENS:]}
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-6)
    mapped = random_continuations()
    sums = mapped.log_shares.exp().sum(-1)
    torch.testing.assert_close(sums, (mapped.likeliest >= 0).float(), atol=1e-6, rtol=0)


def test_a_teacher_id_has_sixteen_student_tokens_at_most() -> None:
    pairs = [(0, 3, 20), *((0, student_id, 10) for student_id in range(10, 25)), (0, 30, 9)]
    found = shares(counted_shares(RULE, continuations(pairs)), 0)
    assert len(pairs) == 17
    assert found == pytest.approx({3: 21 / 171} | dict.fromkeys(range(10, 25), 10 / 171))


@pytest.mark.parametrize("order", ["temper_then_map", "map_then_temper"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("with_text", [False, True])
def test_r12_shares_and_the_text_against_the_dense_target(order: KdOrder, temperature: float, with_text: bool) -> None:
    """The next token kept, in the tail, and without a student token."""
    logits, found = random_logits(12, TEACHER_VOCABULARY, seed=3), random_continuations()
    following = logits.argsort(-1, descending=True)[torch.arange(12), torch.arange(12) * 5]
    text = NextTokens(following, (torch.arange(12) * 7) % STUDENT_VOCABULARY) if with_text else None
    rows = teacher_rows(logits, 16, 0, targets_N=following)
    target = target_of_all(rows, found, temperature, order, text=text)
    for row in range(12):
        pair = (int(text.teacher_ids[row]), int(text.student_ids[row])) if text else None
        expected = dense_target(logits[row], found, 16, temperature, order, pair)
        entries = {student_id: mass for student_id, mass in expected.entries.items() if mass}
        assert entries_of(target, row) == pytest.approx(entries, abs=1e-6)
        assert float(target.residual_N[row]) == pytest.approx(expected.residual, abs=1e-6)


@pytest.mark.parametrize("order", ["temper_then_map", "map_then_temper"])
@pytest.mark.parametrize("with_text", [False, True])
def test_tail_samples_are_on_average_the_mapped_tail(order: KdOrder, with_text: bool) -> None:
    """The next token lies in the tail; it is an entry, and its samples count no more."""
    logits, n = random_logits(1, TEACHER_VOCABULARY, seed=3), 1024
    following = logits.argsort(-1, descending=True)[:, 9]
    found = knowing_the_tail(random_continuations(), logits[0], 8, int(following) if with_text else None)
    samples = 32 if order == "temper_then_map" else 512  # the tail's own mass is then the samples' word
    offsets = (torch.arange(n) + 0.5) / n
    rows = teacher_rows(logits.expand(n, -1), 8, samples, offsets, following.expand(n))
    text = NextTokens(following.expand(n), torch.full((n,), 5)) if with_text else None
    target = target_of_all(rows, found, 2.0, order, "sampled", text)
    mean: Counter[int] = Counter()
    for student_id, mass in zip(target.sample_ids_Y.tolist(), (target.sample_probs_Y / n).tolist(), strict=True):
        mean[student_id] += mass
    assert (target.sample_probs_Y > 0).all()
    pair = (int(following), 5) if with_text else None
    expected = dense_target(logits[0], found, 8, 2.0, order, pair, merges_tail=True)
    assert dict(mean) == pytest.approx(expected.tail, abs=2e-4)
    assert float(target.residual_N.mean()) == pytest.approx(expected.residual, abs=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_whole_vocabulary_kept_leaves_no_tail_to_take_the_next_token_from(temperature: float) -> None:
    logits, found = random_logits(3, TEACHER_VOCABULARY, seed=4), random_continuations()
    text = NextTokens(torch.tensor([0, 5, 9]), torch.tensor([1, 2, 3]))
    rows = rows_without_a_tail(logits)
    rows = replace(rows, target_logprob=logits.log_softmax(-1)[torch.arange(3), text.teacher_ids])
    target = target_of_all(rows, found, temperature, text=text)
    for row in range(3):
        pair = (int(text.teacher_ids[row]), int(text.student_ids[row]))
        expected = dense_target(logits[row], found, TEACHER_VOCABULARY, temperature, "temper_then_map", pair)
        assert float(target.residual_N[row]) == pytest.approx(expected.residual, abs=1e-5)
        assert sum(entries_of(target, row).values()) == pytest.approx(sum(expected.entries.values()), abs=1e-5)
