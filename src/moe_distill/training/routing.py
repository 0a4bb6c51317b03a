"""The student-aware router: a gate over the teacher's replayed experts that sees the student's state.

Gate logits are the teacher's own plus a correction from the student's last state, zero at the start; the routed
knowledge is the teacher's last block under that gate. N counts the real positions of all runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.batches.batch import HiddenRuns
from moe_distill.losses.hidden import cosine_distance, relation_kl
from moe_distill.losses.registry import LossTerm, Terms
from moe_distill.losses.router import gate_divergence, importance_kl, load_balancing_loss
from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    expert_outputs,
    routed_hidden,
    selection_bias,
    shared_output,
)
from moe_distill.replay.router_rule import gate_logprobs, mixture
from moe_distill.training.student import Heads


@dataclass(frozen=True)
class RouterSettings:
    """The router's schedules at one step."""

    temperature: float
    n_experts: int  # experts mixed
    noise: float  # standard deviation of the exploration noise on the gate


@dataclass(frozen=True)
class GateInputs:
    """What the gate reads, fp32."""

    student_ND: Tensor  # the student's last states
    teacher_logits_NE: Tensor
    noise_NE: Tensor

    def detached(self) -> "GateInputs":
        return GateInputs(self.student_ND.detach(), self.teacher_logits_NE, self.noise_NE)


@dataclass(frozen=True)
class ExpertUse:
    """How a whole step (or validation set) uses the experts."""

    share_E: Tensor  # of the mixtures' weight
    divergence: Tensor  # mean KL(student-aware gate || teacher's gate) in nats, without temperature or noise; scalar


def read_gate(student_WPD: Tensor, runs: HiddenRuns, settings: RouterSettings) -> GateInputs:
    """What the student-aware gate reads at the runs' positions."""
    assert runs.router_logits_NE is not None
    assert runs.gate_noise_NE is not None
    return GateInputs(runs.packed(student_WPD), runs.router_logits_NE, settings.noise * runs.gate_noise_NE)


def route(
    heads: Heads, teacher_head: TeacherHead, gate: GateInputs, runs: HiddenRuns, settings: RouterSettings
) -> Tensor:
    """Ask every expert and mix the answers under the student-aware gate.

    Returns:
        The residual stream after the block, [W, P, T]; 0 where padded.
    """
    assert runs.moe_input_WPT is not None
    moe_input_NT = runs.packed(runs.moe_input_WPT)
    with torch.no_grad():
        read_NT = block_input(teacher_head, moe_input_NT)
        outputs_NET = expert_outputs(teacher_head, read_NT)
        unrouted_NT = moe_input_NT + shared_output(teacher_head, read_NT)
    return runs.padded(routed_hidden(unrouted_NT, outputs_NET, _mixture(heads, teacher_head, gate, settings)))


def student_aware_logits(heads: Heads, gate: GateInputs) -> Tensor:
    """The teacher's gate logits, corrected from the student's states, [N, E]; without noise."""
    return gate.teacher_logits_NE + heads.gate_correction(gate.student_ND)


def _mixture(heads: Heads, teacher_head: TeacherHead, gate: GateInputs, settings: RouterSettings) -> Tensor:
    n_experts = min(settings.n_experts, teacher_head.num_experts)
    logits_NE = student_aware_logits(heads, gate) + gate.noise_NE
    bias_E = selection_bias(teacher_head)
    return mixture(teacher_head.router, logits_NE, bias_E, settings.temperature, n_experts)


def routed_state_terms(
    heads: Heads,
    routed_WPT: Tensor,
    student_WPD: Tensor,
    runs: HiddenRuns,
    weights: Mapping[str, float],
    positions: int,
) -> Terms:
    """`router_feature` and `router_attention`, where their weight is above 0: the student against routed knowledge.

    Args:
        routed_WPT: see `route`.
        positions: of the whole step or validation set.
    """
    values: dict[str, Tensor] = {}
    if weights["router_feature"] > 0:
        projected_WPT = heads.routed_projection(student_WPD)
        values["router_feature"] = cosine_distance(projected_WPT, routed_WPT, runs.mask_WP)
    if weights["router_attention"] > 0:
        values["router_attention"] = relation_kl(student_WPD, routed_WPT, runs.mask_WP)
    return {name: LossTerm(raw := value.sum() / positions, weights[name] * raw) for name, value in values.items()}


def gate_terms(
    heads: Heads,
    teacher_head: TeacherHead,
    gate: GateInputs,
    settings: RouterSettings,
    weights: Mapping[str, float],
) -> tuple[Terms, ExpertUse]:
    """`router_balance` and `router_importance`, where their weight is above 0, and the use of the experts.

    Both are of means over a whole step, so they are computed once all its parts are known, from detached states: they
    train the correction alone, and do not depend on how the step was split.

    Args:
        gate: what it has read in all parts, detached.
    """
    with torch.no_grad():
        weight_E = _mixture(heads, teacher_head, gate, settings).sum(0)
        divergence_N = gate_divergence(
            *(
                gate_logprobs(teacher_head.router, logits_NE, 1.0)
                for logits_NE in (student_aware_logits(heads, gate), gate.teacher_logits_NE)
            )
        )
    use = ExpertUse(weight_E / weight_E.sum(), divergence_N.mean())
    values: dict[str, Tensor] = {}
    if weights["router_balance"] > 0 or weights["router_importance"] > 0:
        mean_probs_E, teacher_probs_E = (
            gate_logprobs(teacher_head.router, logits_NE, settings.temperature).exp().mean(0)
            for logits_NE in (student_aware_logits(heads, gate) + gate.noise_NE, gate.teacher_logits_NE)
        )
        if weights["router_balance"] > 0:
            values["router_balance"] = load_balancing_loss(use.share_E, mean_probs_E)
        if weights["router_importance"] > 0:
            values["router_importance"] = importance_kl(mean_probs_E, teacher_probs_E)
    return {name: LossTerm(raw, weights[name] * raw) for name, raw in values.items()}, use
