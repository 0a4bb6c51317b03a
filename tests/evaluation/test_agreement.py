"""Agreement with the mapped teacher, against sorted lists."""

import pytest
import torch

from moe_distill.evaluation.agreement import NO_AGREEMENT, Agreement, agreement
from moe_distill.shards.teacher_store import teacher_rows
from moe_distill.targets.sparse_target import SparseTarget, sparse_target
from moe_distill.targets.token_shares import rule_map
from moe_distill.teacher.sparsify import sparsify


def make_target(logits: torch.Tensor, student_ids: torch.Tensor, k: int) -> SparseTarget:
    n = len(logits)
    records = sparsify(logits, torch.zeros(n, dtype=torch.long), k, 2, torch.full((n,), 0.5))
    rows = teacher_rows(vars(records), logits.shape[1] - k)
    return sparse_target(rows, rule_map(student_ids), 1.0, "temper_then_map", "residual")


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
    """Places without an entry hold id 0, which the student may well put first."""
    logits, student = torch.randn(5, 20, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 8)
    student[:, 0] = 9.0
    found = agreement(student, make_target(logits, torch.full((20,), -1), 6))
    assert (found.top1, found.top5) == (0.0, 0.0)


def test_no_positions_and_sums() -> None:
    empty = agreement(torch.zeros(0, 8), make_target(torch.zeros(0, 20), torch.zeros(20, dtype=torch.long), 6))
    assert empty == NO_AGREEMENT
    assert NO_AGREEMENT + Agreement(2, 1.0, 0.6, 0.5) + Agreement(1, 1.0, 0.2, 0.25) == Agreement(3, 2.0, 0.8, 0.75)
