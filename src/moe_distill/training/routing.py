"""The student-aware router: a gate over the teacher's replayed experts that sees the student's state.

Gate logits are the teacher's own plus a correction from the student's last state, zero at the start; the routed
knowledge is the teacher's last block under that gate. Legend: see training/batch; N = all real positions of the runs,
T teacher's hidden size, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.losses.hidden import cosine_distance, relation_kl
from moe_distill.losses.registry import ROUTER_TERMS, LossTerm, Terms
from moe_distill.losses.router import importance_kl, load_balancing_loss, mixture
from moe_distill.replay.block import TeacherHead, block_input, expert_outputs, gate_logits, routed_hidden
from moe_distill.training.batch import Counts, HiddenRuns
from moe_distill.training.student import Heads


@dataclass(frozen=True)
class RouterSettings:
    """The router's schedules at one step."""

    temperature: float
    n_experts: int  # experts mixed
    noise: float  # standard deviation of the exploration noise on the gate
    noise_seed: int


@dataclass(frozen=True)
class Routing:
    """The gate at the runs' positions."""

    probs_NE: Tensor  # student-aware, at the routing temperature
    teacher_probs_NE: Tensor
    mixture_NE: Tensor
    routed_WRT: Tensor  # residual stream after the block under the mixture; 0 where padded


def route(
    heads: Heads, teacher_head: TeacherHead, student_WRD: Tensor, runs: HiddenRuns, settings: RouterSettings
) -> Routing:
    """Ask every expert and mix the answers under the student-aware gate."""
    assert runs.moe_input_WRD is not None
    moe_input_NT = runs.moe_input_WRD[runs.mask_WR]
    with torch.no_grad():
        read_NT = block_input(teacher_head, moe_input_NT)
        teacher_logits_NE = gate_logits(teacher_head, read_NT)
        outputs_NET = expert_outputs(teacher_head, read_NT)
    logits_NE = teacher_logits_NE + heads.gate_correction(student_WRD[runs.mask_WR])
    if settings.noise > 0:
        generator = torch.Generator().manual_seed(settings.noise_seed)
        noise_NE = torch.randn(logits_NE.shape, generator=generator).to(logits_NE.device)
        logits_NE = logits_NE + settings.noise * noise_NE
    mixture_NE = mixture(logits_NE, settings.temperature, min(settings.n_experts, teacher_head.num_experts))
    routed_NT = routed_hidden(moe_input_NT, outputs_NET, mixture_NE)
    return Routing(
        probs_NE=(logits_NE / settings.temperature).softmax(-1),
        teacher_probs_NE=teacher_logits_NE.softmax(-1),
        mixture_NE=mixture_NE,
        routed_WRT=torch.zeros_like(runs.moe_input_WRD).masked_scatter(runs.mask_WR[..., None], routed_NT),
    )


def router_terms(
    heads: Heads,
    teacher_head: TeacherHead,
    student_WRD: Tensor,
    runs: HiddenRuns,
    weights: Mapping[str, float],
    settings: RouterSettings,
    counts: Counts,
) -> tuple[Terms, Tensor]:
    """The router's terms of weight above 0, and the summed mixture weight of each expert [E].

    Balance and importance are of means over the positions given; a part of a step counts by its share of positions.
    """
    routing = route(heads, teacher_head, student_WRD, runs, settings)
    sums = {name: _term_sum(name, heads, routing, student_WRD, runs) for name in ROUTER_TERMS if weights[name] > 0}
    terms = {name: LossTerm(raw := total / counts.hidden, weights[name] * raw) for name, total in sums.items()}
    return terms, routing.mixture_NE.detach().sum(0)


def _term_sum(name: str, heads: Heads, routing: Routing, student_WRD: Tensor, runs: HiddenRuns) -> Tensor:
    """A router term summed over the runs' positions."""
    n_positions = len(routing.mixture_NE)
    if name == "router_feature":
        projected_WRT = heads.routed_projection(student_WRD)
        return cosine_distance(projected_WRT, routing.routed_WRT, runs.mask_WR).sum()
    if name == "router_attention":
        return relation_kl(student_WRD, routing.routed_WRT, runs.mask_WR).sum()
    mean_probs_E = routing.probs_NE.mean(0)
    if name == "router_balance":
        return load_balancing_loss(routing.mixture_NE.mean(0), mean_probs_E) * n_positions
    return importance_kl(mean_probs_E, routing.teacher_probs_NE.mean(0)) * n_positions
