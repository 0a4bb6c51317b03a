"""What merging makes of a tail sample, against the formula in float64, one sample at a time."""

from dataclasses import replace

import pytest
import torch

from moe_distill.targets.sparse_rows import Entries, merged
from moe_distill.targets.tail import tail_logsumexp_at
from moe_distill.targets.tail_merging import merged_tail_ratio, merging_factors
from tests.targets.reference import (
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    knowing_the_tail,
    random_logits,
    random_map,
    teacher_rows,
)

K = 4


@pytest.mark.parametrize("temperature", [1.5, 4.0])
@pytest.mark.parametrize("kept", [0.9, 1e-3, 0.0])  # much more than what is added; less; nothing
def test_the_factor_of_each_sample(temperature: float, kept: float) -> None:
    logits = random_logits(1, TEACHER_VOCABULARY, seed=1)
    rows, to_student = teacher_rows(logits, K, 16), knowing_the_tail(random_map(unmapped=0.0), logits[0], K)
    met = int(to_student.student_ids[rows.tail_ids[0, 0], 0])
    entries = merged(torch.tensor([0, 0]), torch.tensor([met + 1, met]), torch.tensor([0.05, kept]).log())
    samples = to_student.mapped_to_student(rows.tail_ids.flatten())
    found = merging_factors(rows, samples, to_student, temperature, entries)

    probs, tail = logits[0].double().softmax(-1), set(range(TEACHER_VOCABULARY)) - set(rows.topk_ids[0].tolist())
    becomes = to_student.student_ids[:, 0].tolist()
    for sample, teacher_id in enumerate(rows.tail_ids[0].tolist()):
        student_id = becomes[teacher_id]
        a = {met: kept, met + 1: 0.05}.get(student_id, 0.0)
        b = float(sum(probs[each] for each in tail if becomes[each] == student_id))
        alone = ((a + b) ** (1 / temperature) - a ** (1 / temperature)) / b * float(probs[teacher_id])
        expected = alone / float(probs[teacher_id]) ** (1 / temperature)
        assert float(found[sample]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_where_the_text_has_other_proportions_too_little_merges_in_rather_than_too_much(temperature: float) -> None:
    """The tail's mass against the dense one; tempered one by one it would be too much."""
    logits = random_logits(400, TEACHER_VOCABULARY, seed=4, scale=2.0)
    rows, to_student = teacher_rows(logits, K, 512), random_map(unmapped=0.0)
    handed, numbers = to_student.mapped_to_student(rows.topk_ids.flatten()), torch.arange(400).repeat_interleave(K)
    entries = merged(numbers, handed.student_ids, rows.topk_logprobs.flatten())
    samples = to_student.mapped_to_student(rows.tail_ids.flatten())
    factors = merging_factors(rows, samples, to_student, temperature, entries)
    found = merged_tail_ratio(rows, samples, temperature, factors)

    mapped = torch.zeros(400, STUDENT_VOCABULARY).index_add(1, to_student.student_ids[:, 0], logits.softmax(-1))
    kept = torch.zeros(400, STUDENT_VOCABULARY).index_put((entries.rows, entries.ids), entries.logprobs.exp())
    dense = (mapped ** (1 / temperature) - kept ** (1 / temperature)).sum(-1)
    expected = dense / tail_logsumexp_at(rows, temperature).exp()
    error = float((found / expected).mean())
    assert 0.7 < error < 1.0
    assert float((1.0 / expected).mean()) > 1.3


def test_little_that_is_added_to_much_is_not_lost_in_rounding() -> None:
    logits = random_logits(1, TEACHER_VOCABULARY, seed=2)
    rows = teacher_rows(logits, K, 1)
    to_student = random_map(unmapped=0.0)
    alone = replace(to_student, student_frequencies=to_student.frequencies.max().expand(STUDENT_VOCABULARY))
    rows = replace(rows, tail_logprobs=torch.full((1, 1), -25.0))  # 1e-11
    samples = alone.mapped_to_student(rows.tail_ids.flatten())
    entries = Entries(torch.tensor([0]), samples.student_ids, torch.zeros(1))  # probability 1
    found = merging_factors(rows, samples, alone, 2.0, entries)
    assert float(found) == pytest.approx(0.5 * float(torch.tensor(-12.5).exp()), rel=1e-4)  # b / 2 over b^(1/2)


def test_without_samples_the_tail_keeps_its_mass() -> None:
    rows = teacher_rows(random_logits(3, TEACHER_VOCABULARY, seed=3), K, 8)
    samples, nowhere = (random_map(unmapped).mapped_to_student(rows.tail_ids.flatten()) for unmapped in (0.0, 1.0))
    no_tail = replace(rows, tail_logprobs=torch.full((3, 8), float("-inf")))
    assert merged_tail_ratio(no_tail, samples, 2.0, torch.full((24,), 0.3)).tolist() == [1.0] * 3
    assert merged_tail_ratio(rows, nowhere, 2.0, torch.zeros(0)).tolist() == [1.0] * 3
