"""The student-aware router over replayed experts."""

import math
from dataclasses import replace

import pytest
import torch

from moe_distill.batches.batch import HiddenRuns
from moe_distill.losses.hidden import cosine_distance
from moe_distill.losses.registry import ROUTER_TERMS
from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    expert_outputs,
    gate_logits,
    routed_hidden,
    teacher_mixture,
)
from moe_distill.replay.router_rule import RouterRule
from moe_distill.training.objective import Student
from moe_distill.training.routing import RouterSettings, gate_terms, read_gate, route, student_aware_logits
from tests.training.conftest import heads_of, make_batch, runs_of


def runs_and_states(lengths: list[int]) -> tuple[HiddenRuns, torch.Tensor]:
    """Runs, and student states for them."""
    runs = runs_of(make_batch(0, lengths))
    return runs, torch.randn(*runs.places_WP.shape, 16, generator=torch.Generator().manual_seed(1))


def moe_inputs(runs: HiddenRuns) -> torch.Tensor:
    assert runs.moe_input_WPT is not None
    return runs.moe_input_WPT[runs.mask_WP]


def described(head: TeacherHead, experts_per_token: int, normalizes: bool) -> TeacherHead:
    rule = RouterRule(score="softmax", experts_per_token=experts_per_token, normalizes=normalizes)
    return replace(head, description=head.description.model_copy(update={"router": rule}))


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_r15_router_starts_as_the_teachers_own_gate(
    student: Student, teacher_head: TeacherHead, experts_per_token: int, normalizes: bool
) -> None:
    head = described(teacher_head, experts_per_token, normalizes)
    runs, states = runs_and_states([12, 9])
    moe_input = moe_inputs(runs)
    read = block_input(head, moe_input)
    stored = gate_logits(head, read).half().float()  # as shards hold them
    runs = replace(runs, router_logits_NE=stored)
    settings = RouterSettings(1.0, experts_per_token, 0.0)
    gate = read_gate(states, runs, settings)
    routed_WPT = route(heads_of(student), head, gate, runs, settings)
    assert torch.equal(student_aware_logits(heads_of(student), gate), stored)
    expected = routed_hidden(moe_input, expert_outputs(head, read), teacher_mixture(head, stored))
    torch.testing.assert_close(routed_WPT[runs.mask_WP], expected)
    assert not routed_WPT[~runs.mask_WP].any()
    settings, weights = RouterSettings(2.0, 1, 0.0), dict.fromkeys(ROUTER_TERMS, 1.0)
    terms, use = gate_terms(heads_of(student), head, gate, settings, weights)
    assert use.divergence.item() == pytest.approx(0.0, abs=1e-7)
    assert terms["router_importance"].raw.item() == pytest.approx(0.0, abs=1e-6)


def test_r15_gate_of_one_normalised_expert_learns_from_the_students_loss(
    student: Student, teacher_head: TeacherHead
) -> None:
    """As Huihui-MoE-1B: 3 experts, 1 per token, its weight always 1; more experts mixed as a matter of course."""
    assert (teacher_head.router.experts_per_token, teacher_head.router.normalizes) == (1, True)
    runs, states = runs_and_states([12, 9])
    for n_experts in (1, 2, 3):
        settings = RouterSettings(1.0, n_experts, 0.0)
        routed_WPT = route(heads_of(student), teacher_head, read_gate(states, runs, settings), runs, settings)
        projected = heads_of(student).routed_projection(states)
        heads_of(student).zero_grad()
        cosine_distance(projected, routed_WPT, runs.mask_WP).mean().backward()
        gradient = heads_of(student).gate_weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 1e-4


def test_r28_noise_on_the_gate_is_what_was_drawn_for_the_step(student: Student, teacher_head: TeacherHead) -> None:
    """Scaled by the schedule; without it the mixture is another."""
    runs, states = runs_and_states([12, 9])
    assert runs.gate_noise_NE is not None
    settings = [RouterSettings(1.0, 3, noise) for noise in (0.5, 0.0)]
    gates = [read_gate(states, runs, each) for each in settings]
    assert torch.equal(gates[0].noise_NE, 0.5 * runs.gate_noise_NE)
    assert not gates[1].noise_NE.any()
    noisy_WPT, quiet_WPT = (
        route(heads_of(student), teacher_head, gate, runs, each) for gate, each in zip(gates, settings, strict=True)
    )
    assert (noisy_WPT - quiet_WPT).abs().max() > 1e-2


@pytest.mark.parametrize("term", ["router_balance", "router_importance"])
def test_terms_of_the_gates_means_train_the_correction_alone(
    student: Student, teacher_head: TeacherHead, term: str
) -> None:
    runs, states = runs_and_states([12, 12])
    with torch.no_grad():
        heads_of(student).gate_bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    settings = RouterSettings(1.0, 1, 0.0)
    gate = read_gate(states.requires_grad_(), runs, settings).detached()
    weights = dict.fromkeys(ROUTER_TERMS, 0.0) | {term: 2.0}
    terms, _ = gate_terms(heads_of(student), teacher_head, gate, settings, weights)
    assert terms.keys() == {term}
    assert terms[term].weighted.item() == pytest.approx(2.0 * terms[term].raw.item())
    terms[term].weighted.backward()
    gradient = heads_of(student).gate_weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 1e-4
    assert states.grad is None


def test_the_gates_means_are_of_its_noisy_logits(student: Student, teacher_head: TeacherHead) -> None:
    """Against loops: the mixtures and the gate's probabilities both have the noise; the teacher's gate has none."""
    runs, states = runs_and_states([12, 9])
    with torch.no_grad():
        heads_of(student).gate_bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    settings, weights = RouterSettings(2.0, 1, 1.5), dict.fromkeys(ROUTER_TERMS, 1.0)
    gate = read_gate(states, runs, settings).detached()
    terms, use = gate_terms(heads_of(student), teacher_head, gate, settings, weights)

    assert runs.router_logits_NE is not None
    assert runs.gate_noise_NE is not None
    n = len(runs.router_logits_NE)
    shares, means, of_teacher = [0.0] * 3, [0.0] * 3, [0.0] * 3
    for logits, noise in zip(runs.router_logits_NE.tolist(), runs.gate_noise_NE.tolist(), strict=True):
        noisy = [logits[e] + (0.5, 0.0, -0.5)[e] + 1.5 * noise[e] for e in range(3)]
        shares[noisy.index(max(noisy))] += 1 / n
        for sums, row in ((means, noisy), (of_teacher, logits)):
            powers = [math.exp(each / 2.0) for each in row]
            for e in range(3):
                sums[e] += powers[e] / sum(powers) / n
    assert use.share_E.tolist() == pytest.approx(shares)
    balance = 3 * sum(share * mean for share, mean in zip(shares, means, strict=True)) - 1
    assert terms["router_balance"].raw.item() == pytest.approx(balance, abs=1e-5)
    importance = sum(mean * math.log(mean / other) for mean, other in zip(means, of_teacher, strict=True))
    assert terms["router_importance"].raw.item() == pytest.approx(importance, abs=1e-5)
