"""Losses between hidden states, against loops over positions in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_distill.losses.hidden import (
    CONTRASTIVE_TEMPERATURE,
    RELATION_TEMPERATURE,
    contrastive_nll,
    cosine_distance,
    paired_layer,
    relation_kl,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES = pytest.mark.parametrize("loss", [cosine_distance, relation_kl, contrastive_nll])
MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


def pair(size: int = 12) -> tuple[Tensor, Tensor]:
    """Student and teacher states [2, 7, D]; the second run has 4 positions, padded with zeros."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 7, size, generator=generator) * MASK[..., None] for _ in range(2))
    return student, teacher


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def relation_rows(run_RD: Tensor) -> list[list[float]]:
    centred = run_RD.double() - run_RD.double().mean(0)
    rows = []
    for i in range(len(centred)):
        powers = [
            math.exp(cosine(centred[i], other) / RELATION_TEMPERATURE) if i != j else 0.0
            for j, other in enumerate(centred)
        ]
        rows.append([power / sum(powers) for power in powers])
    return rows


def brute_force(loss: Loss, student_RD: Tensor, teacher_RD: Tensor) -> list[float]:
    """The loss of each position of one unpadded run."""
    n = len(student_RD)
    if loss is cosine_distance:
        return [1.0 - cosine(student_RD[i], teacher_RD[i]) for i in range(n)]
    if loss is contrastive_nll:
        cosines = [[cosine(student_RD[i], teacher_RD[j]) / CONTRASTIVE_TEMPERATURE for j in range(n)] for i in range(n)]
        return [math.log(sum(math.exp(each - row[i]) for each in row)) for i, row in enumerate(cosines)]
    assert loss is relation_kl, f"{loss} needs a loop of its own here"
    rows = zip(relation_rows(teacher_RD), relation_rows(student_RD), strict=True)
    return [sum(q * math.log(q / p) for q, p in zip(t, s, strict=True) if q > 0) for t, s in rows]


@LOSSES
def test_r02_equals_a_loop_over_positions_and_is_zero_at_padding(loss: Loss) -> None:
    student, teacher = pair()
    value = loss(student, teacher, MASK)
    assert value.dtype == torch.float32
    assert value[0].tolist() == pytest.approx(brute_force(loss, student[0], teacher[0]), abs=1e-5)
    assert value[1, :4].tolist() == pytest.approx(brute_force(loss, student[1, :4], teacher[1, :4]), abs=1e-5)
    assert value[1, 4:].tolist() == [0.0] * 3


@LOSSES
@pytest.mark.parametrize(("student_scale", "teacher_scale"), [(1e-3, 1.0), (1e3, 1.0), (1.0, 1e4)])
def test_r02_blind_to_the_scale_of_either_side(loss: Loss, student_scale: float, teacher_scale: float) -> None:
    student, teacher = pair()
    scaled = loss(student_scale * student, teacher_scale * teacher, MASK)
    torch.testing.assert_close(scaled, loss(student, teacher, MASK), atol=1e-4, rtol=1e-4)


def test_relation_kl_is_blind_to_rotation_width_and_a_common_shift() -> None:
    student, teacher = pair()
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))
    wider = torch.nn.functional.pad(student @ rotation, (0, 5))
    shift = torch.full_like(teacher, 2.0) * MASK[..., None]
    expected = relation_kl(student, teacher, MASK)
    torch.testing.assert_close(relation_kl(wider, teacher + shift, MASK), expected, atol=1e-5, rtol=1e-4)
    assert float(expected.sum()) > 0.1


@LOSSES
def test_padding_has_no_influence_on_values_or_gradients(loss: Loss) -> None:
    student, teacher = pair()
    results = []
    for length in (4, 7):
        states = student[1:, :length].clone().requires_grad_()
        value = loss(states, teacher[1:, :length], MASK[1:, :length])
        value.sum().backward()
        assert states.grad is not None
        assert not states.grad[:, 4:].any()
        results.append((value.detach()[:, :4], states.grad[:, :4]))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


@LOSSES
def test_runs_have_no_influence_on_each_other(loss: Loss) -> None:
    student, teacher = pair()
    together = loss(student, teacher, MASK)
    alone = torch.cat([loss(student[w : w + 1], teacher[w : w + 1], MASK[w : w + 1]) for w in range(2)])
    torch.testing.assert_close(together, alone)


@LOSSES
@pytest.mark.parametrize("mask", [[[True]], [[True, False, False]], [[False, False]]])
def test_one_position_or_none_is_finite_with_finite_gradients(loss: Loss, mask: list[list[bool]]) -> None:
    mask_WR = torch.tensor(mask)
    states = torch.randn(1, mask_WR.shape[1], 5, generator=torch.Generator().manual_seed(0)) * mask_WR[..., None]
    student = states.clone().requires_grad_()
    value = loss(student, states.flip(-1), mask_WR)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    if loss is not cosine_distance or not mask_WR.any():
        assert value.abs().max() < 1e-6, "alone, a position has nothing to be told from"


@LOSSES
def test_no_runs(loss: Loss) -> None:
    assert loss(torch.zeros(0, 3, 5), torch.zeros(0, 3, 5), torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3)


@LOSSES
def test_half_precision_states_are_upcast(loss: Loss) -> None:
    student, teacher = (100 * states.half() for states in pair())
    assert torch.equal(loss(student, teacher, MASK), loss(student.float(), teacher.float(), MASK))


def test_equal_states_have_no_distance() -> None:
    student, _ = pair()
    for loss in (cosine_distance, relation_kl):
        torch.testing.assert_close(loss(student, student, MASK), torch.zeros(2, 7), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("depth", "other"), [(28, 30), (24, 30), (30, 28), (30, 24), (12, 12), (4, 6), (1, 30), (30, 1)]
)
def test_r13_layer_map_is_total_monotone_and_depth_proportional(depth: int, other: int) -> None:
    paired = [paired_layer(layer, depth, other) for layer in range(depth + 1)]
    assert paired[0] == 0
    assert paired[-1] == other
    assert paired == sorted(paired)
    for layer, each in enumerate(paired):
        assert abs(each / other - layer / depth) <= 0.5 / other + 1e-12
    if other >= depth:
        assert len(set(paired)) == depth + 1, "a deeper student gives every layer its own"


def test_r13_half_way_rounds_up() -> None:
    assert [paired_layer(layer, 4, 6) for layer in range(5)] == [0, 2, 3, 5, 6]


def test_relations_are_sharpened_by_a_temperature_of_one_fifth() -> None:
    """The teacher's three states are equally unlike one another; of the student's, the first is not like the rest."""
    teacher = torch.tensor([[[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]]])
    student = torch.tensor([[[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]]])  # cosines 0 and -sqrt(1/2)
    power = math.exp(-math.sqrt(0.5) / 0.2)
    expected = sum(0.5 * math.log(0.5 / probability) for probability in (power / (1 + power), 1 / (1 + power)))
    found = relation_kl(student, teacher, torch.ones(1, 3, dtype=torch.bool))
    assert found[0].tolist() == pytest.approx([0.0, expected, expected], abs=1e-5)


def test_the_teachers_state_is_picked_out_at_a_temperature_of_one_tenth() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]])  # cosines 1 and 0.8, 0 and 0.6
    expected = [math.log(1 + math.exp((0.8 - 1.0) / 0.1)), math.log(1 + math.exp((0.0 - 0.6) / 0.1))]
    found = contrastive_nll(student, teacher, torch.ones(1, 2, dtype=torch.bool))
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)
