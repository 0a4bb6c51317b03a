"""Agreement with the mapped teacher, against sorted lists."""

import pytest
import torch
from torch import Tensor

from moe_distill.evaluation.agreement import NO_AGREEMENT, TOP, Agreement, likeliest_ids, ranking_agreement
from moe_distill.targets.sparse_target import SparseTarget, joined, sparse_target
from moe_distill.targets.token_shares import rule_map
from tests.targets.reference import entries_of, kd_values, random_logits, target_of_all, teacher_rows


def make_target(logits: Tensor, student_ids: Tensor, k: int) -> SparseTarget:
    return target_of_all(teacher_rows(logits, k, 2), rule_map(student_ids), 1.0)


def agreement(logits: Tensor, target: SparseTarget) -> Agreement:
    """Of positions that all have a target."""
    kl = float(kd_values(logits, target).sum())
    return ranking_agreement(logits, likeliest_ids(target)) + Agreement(0, 0.0, 0.0, kl)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_r20_agreement_equals_sorted_lists(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    logits, student = (3 * torch.randn(40, size, generator=generator) for size in (30, 12))
    student_ids = torch.randint(-1, 12, (30,), generator=generator)
    top1, top5, kl = 0, 0.0, 0.0
    for teacher_V, student_V in zip(logits.double(), student.double(), strict=True):
        mapped: dict[int, float] = {}
        for teacher_id in teacher_V.topk(k).indices.tolist():
            if (student_id := int(student_ids[teacher_id])) >= 0:
                mapped[student_id] = mapped.get(student_id, 0.0) + float(teacher_V.softmax(-1)[teacher_id])
        ranked = sorted(mapped, key=lambda each: -mapped[each])
        own = sorted(range(12), key=lambda each: -float(student_V[each]))
        top1 += ranked[:1] == own[:1]
        top5 += len(set(ranked[:5]) & set(own[:5])) / 5
        probs = student_V.softmax(-1)
        kl += sum(mass * (mass / probs[each]).log().item() for each, mass in mapped.items())
        residual, rest = 1.0 - sum(mapped.values()), sum(float(probs[v]) for v in range(12) if v not in mapped)
        kl += residual * (torch.tensor(residual / rest).log().item()) if rest else 0.0
    found = agreement(student, make_target(logits, student_ids, k))
    assert (found.positions, found.top1) == (40, top1)
    assert found.top5 == pytest.approx(top5)
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert 0 < found.top5 < 40


def test_r20_a_student_equal_to_the_teacher_agrees_wholly() -> None:
    logits = 3 * torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    found = agreement(logits, make_target(logits, torch.arange(20), 8))
    assert (found.positions, found.top1, found.top5) == (10, 10.0, 10.0)
    assert found.kl == pytest.approx(0.0, abs=1e-5)


def test_a_teacher_without_a_mapped_token_agrees_with_nothing() -> None:
    """Where there is no entry stands id -1, not 0, which the student may well put first."""
    logits, student = torch.randn(5, 20, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 8)
    student[:, 0] = 9.0
    found = agreement(student, make_target(logits, torch.full((20,), -1), 6))
    assert (found.top1, found.top5) == (0.0, 0.0)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_likeliest_ids_are_those_of_sorted_entries(k: int) -> None:
    """Also where some positions have no target, and where the fullest has fewer than five entries."""
    logits, generator = random_logits(20, 30, seed=k), torch.Generator().manual_seed(k)
    to_student = rule_map(torch.randint(-1, 12, (30,), generator=generator))
    has_target = torch.rand(40, generator=generator) < 0.5
    n = int(has_target.sum())
    rows = teacher_rows(logits[:1].expand(n, -1) + random_logits(n, 30, seed=7), k)
    target = sparse_target(rows, has_target, to_student, 1.0, "temper_then_map", "residual")
    for part in (target, joined([target, target])):
        found = likeliest_ids(part)
        assert found.shape[1] <= TOP
        for position, ids in enumerate(found.tolist()):
            entries = entries_of(part, position)
            ranked = sorted(entries, key=lambda each: -entries[each])[:TOP]
            assert ids == ranked + [-1] * (len(ids) - len(ranked))
            assert not ranked or part.has_target_N[position]


def test_likeliest_ids_where_no_position_has_a_target() -> None:
    nothing = sparse_target(
        teacher_rows(torch.zeros(0, 20), 6),
        torch.zeros(3, dtype=torch.bool),
        rule_map(torch.arange(20)),
        1.0,
        "temper_then_map",
        "residual",
    )
    assert (likeliest_ids(nothing) == -1).all()
    assert len(likeliest_ids(nothing)) == 3


def test_the_ranking_of_fewer_than_five_tokens() -> None:
    """Shared tokens are counted over five even where the teacher names two."""
    logits = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]] * 3)
    found = ranking_agreement(logits, torch.tensor([[0, 5], [1, 4], [-1, -1]]))
    assert found == Agreement(positions=3, top1=1.0, top5=3 / 5, kl=0.0)


def test_no_positions_and_sums() -> None:
    empty = agreement(torch.zeros(0, 8), make_target(torch.zeros(0, 20), torch.zeros(20, dtype=torch.int64), 6))
    assert empty == NO_AGREEMENT
    assert NO_AGREEMENT + Agreement(2, 1.0, 0.6, 0.5) + Agreement(1, 1.0, 0.2, 0.25) == Agreement(3, 2.0, 0.8, 0.75)
