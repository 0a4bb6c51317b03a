"""The student-aware router over replayed experts."""

from dataclasses import replace

import pytest
import torch

from moe_distill.losses.hidden import cosine_distance
from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    expert_outputs,
    gate_logits,
    routed_hidden,
    teacher_mixture,
)
from moe_distill.training.batch import HiddenRuns
from moe_distill.training.objective import Student
from moe_distill.training.routing import RouterSettings, gate_terms, route, student_aware_logits
from tests.training.conftest import make_batch

TERMS = ("router_feature", "router_attention", "router_kd", "router_balance", "router_importance")


def make_runs(lengths: list[int]) -> tuple[HiddenRuns, torch.Tensor]:
    """Runs, the second shorter, and student states for them."""
    runs = make_batch(0, lengths).runs
    return runs, torch.randn(*runs.places_WR.shape, 16, generator=torch.Generator().manual_seed(1))


def described(head: TeacherHead, **changes: object) -> TeacherHead:
    return replace(head, description=head.description.model_copy(update=changes))


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_r15_router_starts_as_the_teachers_own_gate(
    student: Student, teacher_head: TeacherHead, experts_per_token: int, normalizes: bool
) -> None:
    head = described(teacher_head, experts_per_token=experts_per_token, normalizes_topk=normalizes)
    runs, states = make_runs([12, 9])
    routing = route(student.heads, head, states, runs, RouterSettings(1.0, experts_per_token, 0.0, 0))
    moe_input = runs.moe_input_WRD[runs.mask_WR]
    read = block_input(head, moe_input)
    own = gate_logits(head, read)
    assert torch.equal(student_aware_logits(student.heads, routing.gate), own)
    expected = routed_hidden(moe_input, expert_outputs(head, read), teacher_mixture(head, own))
    torch.testing.assert_close(routing.routed_WRT[runs.mask_WR], expected)
    assert not routing.routed_WRT[~runs.mask_WR].any()
    terms, use = gate_terms(
        student.heads, head, [routing.gate], RouterSettings(2.0, 1, 0.0, 0), dict.fromkeys(TERMS, 1.0)
    )
    assert use.divergence == pytest.approx(0.0, abs=1e-7)
    assert terms["router_importance"].raw.item() == pytest.approx(0.0, abs=1e-6)


def test_r15_gate_of_one_normalised_expert_learns_from_the_students_loss(
    student: Student, teacher_head: TeacherHead
) -> None:
    """As Huihui-MoE-1B: 3 experts, 1 per token, its weight always 1; more experts mixed as a matter of course."""
    assert (teacher_head.description.experts_per_token, teacher_head.description.normalizes_topk) == (1, True)
    runs, states = make_runs([12, 9])
    for n_experts in (1, 2, 3):
        routing = route(student.heads, teacher_head, states, runs, RouterSettings(1.0, n_experts, 0.0, 0))
        projected = student.heads.routed_projection(states)
        student.heads.zero_grad()
        cosine_distance(projected, routing.routed_WRT, runs.mask_WR).mean().backward()
        assert student.heads.gate_correction.weight.grad.abs().max() > 1e-4


def test_r28_noise_is_seeded_by_step_and_window(student: Student, teacher_head: TeacherHead) -> None:
    runs, states = make_runs([12, 12])

    def noise(runs: HiddenRuns, seed: int) -> torch.Tensor:
        settings = RouterSettings(1.0, 3, 0.5, seed)
        return route(student.heads, teacher_head, states[: len(runs.places_WR)], runs, settings).gate.noise_NE

    drawn = noise(runs, 1)
    assert torch.equal(drawn, noise(runs, 1))
    assert not torch.equal(drawn, noise(runs, 2))
    assert drawn.std() == pytest.approx(0.5, rel=0.3)
    first = replace(runs, **{name: value[:1] for name, value in vars(runs).items()})
    assert torch.equal(noise(first, 1), drawn[:8])
    assert not torch.equal(drawn[:8], drawn[8:])


@pytest.mark.parametrize("term", ["router_balance", "router_importance"])
def test_terms_of_the_gates_means_train_the_correction_alone(
    student: Student, teacher_head: TeacherHead, term: str
) -> None:
    runs, states = make_runs([12, 12])
    with torch.no_grad():
        student.heads.gate_correction.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    settings = RouterSettings(1.0, 1, 0.0, 0)
    gate = route(student.heads, teacher_head, states.requires_grad_(), runs, settings).gate.detached()
    terms, _ = gate_terms(student.heads, teacher_head, [gate], settings, dict.fromkeys(TERMS, 0.0) | {term: 2.0})
    assert terms.keys() == {term}
    assert terms[term].weighted.item() == pytest.approx(2.0 * terms[term].raw.item())
    terms[term].weighted.backward()
    assert student.heads.gate_correction.weight.grad.abs().max() > 1e-4
    assert states.grad is None
