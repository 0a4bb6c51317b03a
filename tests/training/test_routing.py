"""The student-aware router over replayed experts."""

import torch

from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    expert_outputs,
    gate_logits,
    routed_hidden,
    teacher_mixture,
)
from moe_distill.training.objective import Student
from moe_distill.training.routing import RouterSettings, route
from tests.training.conftest import make_batch


def test_r15_router_starts_as_the_teachers_own_gate(student: Student, teacher_head: TeacherHead) -> None:
    runs = make_batch(0, [12, 12]).runs
    states = torch.randn(2, 8, 16)
    routing = route(student.heads, teacher_head, states, runs, RouterSettings(1.0, 1, 0.0, 0))
    moe_input = runs.moe_input_WRD[runs.mask_WR]
    read = block_input(teacher_head, moe_input)
    own = teacher_mixture(teacher_head, gate_logits(teacher_head, read))
    torch.testing.assert_close(routing.mixture_NE, own)
    torch.testing.assert_close(routing.probs_NE, routing.teacher_probs_NE)
    expected = routed_hidden(moe_input, expert_outputs(teacher_head, read), own)
    torch.testing.assert_close(routing.routed_WRT[runs.mask_WR], expected)


def test_r15_gate_gets_a_gradient_even_with_one_expert(student: Student, teacher_head: TeacherHead) -> None:
    runs = make_batch(0, [12]).runs
    for n_experts in (1, 2, 3):
        routing = route(
            student.heads, teacher_head, torch.randn(1, 8, 16), runs, RouterSettings(1.0, n_experts, 0.0, 0)
        )
        student.heads.zero_grad()
        routing.routed_WRT.square().sum().backward()
        assert student.heads.gate_correction.weight.grad.abs().max() > 1e-4


def test_r28_noise_is_seeded(student: Student, teacher_head: TeacherHead) -> None:
    runs, states = make_batch(0, [12]).runs, torch.randn(1, 8, 16)
    mixtures = [
        route(student.heads, teacher_head, states, runs, RouterSettings(1.0, 3, 0.5, seed)).mixture_NE
        for seed in (1, 1, 2)
    ]
    assert torch.equal(mixtures[0], mixtures[1])
    assert not torch.equal(mixtures[0], mixtures[2])
