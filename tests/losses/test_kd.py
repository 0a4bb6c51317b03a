"""Knowledge distillation by `text_loss`: the bucketed KL and its gradient, against dense float64."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from moe_distill.config.params import KdOrder, KdTail
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.token_shares import VocabularyMap
from tests.targets.reference import (
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    bucketed_kl,
    dense_target,
    identity_map,
    kd_gradient,
    kd_values,
    knowing_the_tail,
    mapped_cross_entropy,
    random_logits,
    random_map,
    rows_without_a_tail,
    target_of_all,
    teacher_rows,
)


def value_and_gradient(
    student: Tensor,
    rows: TeacherRows,
    to_student: VocabularyMap,
    temperature: float,
    order: KdOrder = "temper_then_map",
    tail: KdTail = "residual",
) -> tuple[Tensor, Tensor]:
    target = target_of_all(rows, to_student, temperature, order, tail)
    return kd_values(student, target), kd_gradient(student, target)


@pytest.mark.parametrize("order", ["temper_then_map", "map_then_temper"])
@pytest.mark.parametrize("temperature", TAIL_TEMPERATURES)
@pytest.mark.parametrize("k", [1, 8, 64])
def test_r07_truncated_kl_keeps_the_residual_as_one_bucket(order: KdOrder, temperature: float, k: int) -> None:
    teacher, to_student = random_logits(4, TEACHER_VOCABULARY, seed=1), random_map()
    student = random_logits(4, STUDENT_VOCABULARY, seed=2, scale=2.0)
    value, gradient = value_and_gradient(student, teacher_rows(teacher, k), to_student, temperature, order)
    reference = student.double().requires_grad_()
    rows = [
        bucketed_kl(reference[row], dense_target(teacher[row], to_student, k, temperature, order), temperature)
        for row in range(4)
    ]
    torch.stack(rows).sum().backward()
    assert value.tolist() == pytest.approx([row.item() for row in rows], abs=1e-5, rel=1e-5)
    torch.testing.assert_close(gradient.double(), reference.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("logit_scale", "k", "nats"), [(3.0, 8, 2e-3), (3.0, 64, 2e-3), (8.0, 64, 2e-3), (8.0, 8, 1e-2)]
)
def test_the_interpolated_tail_moves_the_kl_by_thousandths_of_a_nat(logit_scale: float, k: int, nats: float) -> None:
    """Between the recorded temperatures; logits of scale 8 are spread over 60 nats."""
    teacher = random_logits(2, 1500, seed=10, scale=logit_scale)
    teacher[1, 5] = 9.0 * logit_scale
    student, identity = random_logits(2, 1500, seed=11, scale=2.0), identity_map(1500)
    for temperature in (1.1, 1.5, 2.5, 3.5):
        value, _ = value_and_gradient(student, teacher_rows(teacher, k), identity, temperature)
        for row in range(2):
            dense = dense_target(teacher[row], identity, k, temperature, "temper_then_map")
            expected = float(bucketed_kl(student[row].double(), dense, temperature))
            assert float(value[row]) == pytest.approx(expected, abs=nats)


@pytest.mark.parametrize("logit_scale", [3.0, 8.0])
def test_storage_in_fp16_moves_the_kl_by_a_thousandth_of_a_nat(logit_scale: float) -> None:
    """At the recorded temperatures, so that nothing is interpolated."""
    teacher, student = random_logits(64, 1500, seed=12, scale=logit_scale), random_logits(64, 1500, seed=13, scale=2.0)
    teacher[:16, 5] = 9.0 * logit_scale  # certain of one token
    exact, identity = teacher_rows(teacher, 64), identity_map(1500)
    stored = replace(exact, topk_logprobs=exact.topk_logprobs.half().float())
    for temperature in TAIL_TEMPERATURES:
        value, gradient = value_and_gradient(student, exact, identity, temperature)
        stored_value, stored_gradient = value_and_gradient(student, stored, identity, temperature)
        torch.testing.assert_close(stored_value, value, atol=1e-3, rtol=0)
        torch.testing.assert_close(stored_gradient, gradient, atol=2e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_whole_vocabulary_kept_is_the_plain_kl(temperature: float) -> None:
    teacher = random_logits(4, STUDENT_VOCABULARY, seed=3)
    student = random_logits(4, STUDENT_VOCABULARY, seed=4)
    rows = rows_without_a_tail(teacher)
    value, gradient = value_and_gradient(student, rows, identity_map(STUDENT_VOCABULARY), temperature)
    reference = student.double().requires_grad_()
    q = (teacher.double() / temperature).log_softmax(-1)
    kl_N = (q.exp() * (q - (reference / temperature).log_softmax(-1))).sum(-1)
    kl_N.sum().backward()
    torch.testing.assert_close(value.double(), kl_N.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), reference.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_same_distribution_has_no_divergence_and_no_gradient(temperature: float) -> None:
    teacher = random_logits(4, STUDENT_VOCABULARY, seed=5)
    rows, identity = teacher_rows(teacher, 8), identity_map(STUDENT_VOCABULARY)
    value, gradient = value_and_gradient(teacher, rows, identity, temperature)
    torch.testing.assert_close(value, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gap", [20.0, 100.0, 250.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_tiny_student_residual_has_the_right_gradient(gap: float, temperature: float) -> None:
    """One minus the entries' sum would be all rounding here, and one over it nothing that fp32 can hold."""
    teacher = temperature * torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    student = temperature * torch.tensor([[0.0, -0.2, -gap, -gap - 0.3]])
    rest = float((student.double() / temperature).softmax(-1)[0, 2:].sum())
    assert 0.0 < rest < 2e-9
    value, gradient = value_and_gradient(student, teacher_rows(teacher, 2), identity_map(4), temperature)
    reference = student[0].double().requires_grad_()
    dense = dense_target(teacher[0], identity_map(4), 2, temperature, "temper_then_map")
    expected = bucketed_kl(reference, dense, temperature)
    expected.backward()
    assert reference.grad is not None
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient[0].double(), reference.grad, atol=1e-5, rtol=0)
    pull = float(gradient[0, 2:].sum()) * temperature
    assert pull == pytest.approx(-0.3, abs=1e-5), "the student must give the rest 0.3"


@pytest.mark.parametrize("order", ["temper_then_map", "map_then_temper"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("unmapped", [0.0, 0.15])
def test_the_sampled_gradient_is_unbiased(order: KdOrder, temperature: float, unmapped: float) -> None:
    """Its mean over a grid of the uniforms, which are all the randomness there is, is the dense gradient.

    Where the tail merges first, the samples tell its mass too, and the mean comes near with their number alone.
    """
    samples = 8 if order == "temper_then_map" else 512
    n = 1024
    teacher = random_logits(1, TEACHER_VOCABULARY, seed=6, scale=2.0)
    student = random_logits(1, STUDENT_VOCABULARY, seed=7, scale=1.0)
    rows = teacher_rows(teacher.expand(n, -1), 4, samples, (torch.arange(n) + 0.5) / n)
    to_student = knowing_the_tail(random_map(unmapped), teacher[0], 4)
    target = target_of_all(rows, to_student, temperature, order, "sampled")
    gradients = kd_gradient(student.expand(n, -1), target)
    reference = student[0].double().requires_grad_()
    dense = dense_target(teacher[0], to_student, 4, temperature, order, merges_tail=True)
    mapped_cross_entropy(reference, dense, temperature).backward()
    expected = reference.grad
    assert expected is not None
    assert float((gradients.double().mean(0) - expected).norm() / expected.norm()) < 5e-3

    truncated = kd_gradient(student, target_of_all(teacher_rows(teacher, 4), to_student, temperature, order))
    error = float((truncated[0].double() - expected).norm() / expected.norm())
    assert error > 0.05, "without samples the gradient is another: the test can tell them apart"


def test_the_sampled_gradient_of_many_seeds_points_where_the_dense_one_does() -> None:
    n = 400
    teacher = random_logits(1, TEACHER_VOCABULARY, seed=8, scale=2.0)
    student = random_logits(1, STUDENT_VOCABULARY, seed=9, scale=1.0)
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0))
    rows, to_student = teacher_rows(teacher.expand(n, -1), 4, 8, uniforms), random_map(unmapped=0.0)
    gradients = kd_gradient(student.expand(n, -1), target_of_all(rows, to_student, 2.0, tail="sampled"))
    dense = dense_target(teacher[0], to_student, 4, 2.0, "temper_then_map")
    mapped = torch.zeros(STUDENT_VOCABULARY, dtype=torch.float64)
    for part in (dense.entries, dense.tail):
        for student_id, mass in part.items():
            mapped[student_id] += mass
    expected = ((student[0].double() / 2.0).softmax(-1) - mapped) / 2.0
    assert float(torch.cosine_similarity(gradients.double().mean(0), expected, dim=0)) > 0.99
    assert float(torch.cosine_similarity(gradients[0].double(), expected, dim=0)) < 0.99, "a single one is noisy"


def test_samples_change_the_gradient_and_not_the_value() -> None:
    rows = teacher_rows(random_logits(3, TEACHER_VOCABULARY, seed=8), 8, 8)
    student = random_logits(3, STUDENT_VOCABULARY, seed=9)
    residual, sampled = (
        value_and_gradient(student, rows, random_map(), 2.0, tail=tail) for tail in get_args(KdTail)[::-1]
    )
    torch.testing.assert_close(residual[0], sampled[0], atol=1e-6, rtol=0)
    assert float((residual[1] - sampled[1]).norm()) > 0.01


@pytest.mark.parametrize("tail", ["residual", "sampled"])
def test_nothing_mapped_pulls_nowhere(tail: KdTail) -> None:
    """All mass in the bucket, and the student's bucket is its whole vocabulary."""
    rows = teacher_rows(random_logits(2, TEACHER_VOCABULARY, seed=1), 8, 4)
    student = random_logits(2, STUDENT_VOCABULARY, seed=2)
    value, gradient = value_and_gradient(student, rows, random_map(unmapped=1.0), 2.0, tail=tail)
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tail", ["residual", "sampled"])
@pytest.mark.parametrize("n", [0, 1])
def test_one_row_and_no_rows(tail: KdTail, n: int) -> None:
    rows = teacher_rows(random_logits(n, TEACHER_VOCABULARY, seed=3), 8, 4)
    student = random_logits(n, STUDENT_VOCABULARY, seed=4)
    value, gradient = value_and_gradient(student, rows, random_map(), 2.0, tail=tail)
    assert value.shape == (n,)
    assert torch.isfinite(gradient).all()
    assert bool(gradient.any()) is (n == 1)
