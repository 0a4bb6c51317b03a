"""One objective for training and validation: every term once, with its raw value and its part of the total.

A term of weight 0 is not computed, but for KD, which is measured wherever there is a target. Sums are divided by the
counts of the whole optimizer step (or validation set), so that parts of a batch add up to the batch: the gradient does
not depend on how a step is split.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.batches.batch import Batch, Counts, HiddenRuns
from moe_distill.losses.hidden import contrastive_nll, cosine_distance, relation_kl
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTED_STATE_TERMS, ROUTER_TERMS, LossTerm, Terms, total_of
from moe_distill.losses.text_loss import TextLoss, text_loss
from moe_distill.models.decoder import Decoder, find_decoder
from moe_distill.replay.block import TeacherHead
from moe_distill.training.routing import GateInputs, RouterSettings, read_gate, route, routed_state_terms
from moe_distill.training.student import Heads, StudentStates, gather_runs, run_student


@dataclass(frozen=True)
class Objective:
    """What is asked of the student at one moment of training.

    `weights` holds the present weight of every hidden-state and router term.
    """

    kd_weight: float  # of KD at positions that have a target; LM keeps the rest there, and all elsewhere
    weights: dict[str, float]
    router: RouterSettings


@dataclass(frozen=True)
class Student:
    """The trained modules and the fixed ones they are trained against."""

    model: PreTrainedModel
    heads: Heads | None  # None in the first phase
    teacher_head: TeacherHead | None  # for the router; None where nothing can be replayed

    @cached_property
    def decoder(self) -> Decoder:
        """The model's parts."""
        return find_decoder(self.model)


@dataclass(frozen=True)
class LossOutput:
    """The losses of a batch."""

    loss: Tensor  # what the gradient is of
    terms: Terms  # detached
    nll_sum: Tensor  # nats over the batch's tokens, for bits per byte
    nll_N: Tensor  # of each token
    gate: GateInputs | None  # what the router's gate has read, detached; None where no expert was asked


def evaluate_objective(
    student: Student,
    batch: Batch,
    objective: Objective,
    counts: Counts,
    autocast: torch.dtype | None,
) -> LossOutput:
    """Compute every term of weight above 0 on one batch, but for those of the gate's means (`gate_terms`).

    Args:
        counts: of the whole optimizer step or validation set that the batch is part of.
        autocast: reduced precision of the student's layers and of the product with its output matrix, None for fp32;
            losses are fp32 in any case.
    """
    runs = batch.runs if any(objective.weights.values()) else None
    wanted = student.heads.pairs if runs is not None and student.heads is not None else ()
    with torch.autocast(batch.input_ids_BL.device.type, dtype=autocast, enabled=autocast is not None):
        states = run_student(student.decoder, batch.input_ids_BL, wanted)
    loss, terms, text = _text_terms(student.decoder.head, states, batch, objective, counts, autocast)
    gate = None
    if runs is not None and student.heads is not None:
        state_terms = _hidden_terms(student.heads, states, runs, objective, counts)
        if student.teacher_head is not None and any(objective.weights[name] for name in ROUTER_TERMS):
            student_WPD = gather_runs(states.final_BLD, runs)
            gate = read_gate(student_WPD, runs, objective.router)
            if any(objective.weights[name] for name in ROUTED_STATE_TERMS):
                routed_WPT = route(student.heads, student.teacher_head, gate, runs, objective.router)
                state_terms |= routed_state_terms(
                    student.heads, routed_WPT, student_WPD, runs, objective.weights, counts.hidden
                )
            gate = gate.detached()
        if state_terms:
            loss = loss + total_of(state_terms)
            terms |= {name: term.detached() for name, term in state_terms.items()}
    return LossOutput(loss, terms, text.nll, text.nll_N, gate)


def _text_terms(
    head: OutputHead,
    states: StudentStates,
    batch: Batch,
    objective: Objective,
    counts: Counts,
    autocast: torch.dtype | None,
) -> tuple[Tensor, Terms, TextLoss]:
    """The loss of the text per token, its terms `lm` and `kd`, and the sums they are made of."""
    hidden_ND = states.final_BLD.flatten(0, 1).index_select(0, batch.places_N)
    found = text_loss(hidden_ND, head, batch.text, objective.kd_weight, autocast or torch.float32)
    terms = {"lm": LossTerm(found.nll / counts.tokens, found.weighted_nll / counts.tokens)}
    if batch.text.target is not None and found.kl is not None:
        factor = objective.kd_weight * batch.text.target.temperature**2 / counts.tokens
        terms["kd"] = LossTerm(found.kl / max(counts.with_target, 1), factor * found.kl)
    return found.loss / counts.tokens, terms, found


def _hidden_terms(heads: Heads, states: StudentStates, runs: HiddenRuns, objective: Objective, counts: Counts) -> Terms:
    """Terms against captured states: `layerwise` at all pairs of layers but the last, the others at that."""
    weights = {name: objective.weights[name] for name in HIDDEN_TERMS if objective.weights[name] > 0}
    last = len(heads.pairs) - 1
    values: dict[str, Tensor] = {}
    if weights.keys() - {"layerwise"}:
        student_WPD = gather_runs(states.layers[heads.pairs[last]], runs)
        teacher_WPT = runs.states_WPST[:, :, last]
        if "attention" in weights:
            values["attention"] = relation_kl(student_WPD, teacher_WPT, runs.mask_WP)
        if weights.keys() - {"layerwise", "attention"}:
            projected_WPT = heads.projections[last](student_WPD)
        if "feature" in weights:
            values["feature"] = cosine_distance(projected_WPT, teacher_WPT, runs.mask_WP)
        if "contrastive" in weights:
            values["contrastive"] = contrastive_nll(projected_WPT, teacher_WPT, runs.mask_WP)
    if "layerwise" in weights and last > 0:
        distances = [
            cosine_distance(
                heads.projections[number](gather_runs(states.layers[pair], runs)),
                runs.states_WPST[:, :, number],
                runs.mask_WP,
            )
            for number, pair in enumerate(heads.pairs[:last])
        ]
        values["layerwise"] = torch.stack(distances).mean(0)
    return {name: LossTerm(raw := value.sum() / counts.hidden, weights[name] * raw) for name, value in values.items()}
