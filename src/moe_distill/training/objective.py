"""One objective for training and validation: every term once, with its raw value and its part of the total.

A term of weight 0 is not computed. Sums are divided by the counts of the whole
optimizer step (or validation set), so that parts of a batch add up to the batch: the gradient does not depend on how
a step is split. Legend: see training/batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.losses.hidden import contrastive_nll, cosine_distance, relation_kl
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS, LossTerm, Terms
from moe_distill.replay.block import TeacherHead
from moe_distill.targets.inside import InsidePlaces
from moe_distill.targets.token_shares import VocabularyMap
from moe_distill.training.batch import Batch, Counts, HiddenRuns
from moe_distill.training.routed_kd import routed_kd, routed_text
from moe_distill.training.routing import GateInputs, RouterSettings, route, routed_state_terms
from moe_distill.training.student import Heads, StudentStates, gather_runs, run_student
from moe_distill.training.text_terms import KdSettings, text_targets, text_terms


@dataclass(frozen=True)
class Objective:
    """What is asked of the student at one moment of training.

    `weights` holds the present weight of every hidden-state and router term.
    """

    kd: KdSettings | None  # None: LM alone
    weights: dict[str, float]
    router: RouterSettings
    chunk_tokens: int


@dataclass(frozen=True)
class Student:
    """The trained modules and the fixed things they are trained against."""

    model: PreTrainedModel
    heads: Heads | None  # None in the first phase
    teacher_head: TeacherHead | None  # for the router; None where the teacher's last block is dense
    vocabulary_map: VocabularyMap | None  # None: LM alone
    inside_places: InsidePlaces | None  # for `kd_inside`; None where it is not asked for


@dataclass(frozen=True)
class LossOutput:
    """The terms of a batch, and what else one wants to know of it."""

    terms: Terms
    nll_sum: Tensor  # nats over the batch's tokens, for bits per byte
    gate: GateInputs | None  # what the router's gate has read, detached; None where no expert was asked


def evaluate_objective(
    student: Student, batch: Batch, objective: Objective, counts: Counts, autocast: torch.dtype | None
) -> LossOutput:
    """Compute every term of weight above 0 on one batch, but for those of the gate's means (`gate_terms`).

    Args:
        counts: of the whole optimizer step or validation set that the batch is part of.
        autocast: reduced precision of the student's layers, None for fp32; losses are fp32 in any case.
    """
    runs = batch.runs if any(objective.weights.values()) else None
    with torch.autocast(batch.input_ids_BL.device.type, dtype=autocast, enabled=autocast is not None):
        states = run_student(student.model, batch.input_ids_BL, with_layers=runs is not None)
    hidden_ND, weight_VD = states.final_BLD.flatten(0, 1)[batch.places_N], student.model.get_output_embeddings().weight
    targets = text_targets(batch, objective.kd, student.vocabulary_map, student.inside_places)
    terms, nll_sum = text_terms(hidden_ND, weight_VD, batch, targets, objective.kd, objective.chunk_tokens, counts)
    gate = None
    if runs is not None and student.heads is not None:
        terms |= _hidden_terms(student.heads, states, runs, objective, counts)
        if student.teacher_head is not None and any(objective.weights[name] for name in ROUTER_TERMS):
            routed, gate = _routed_terms(student, states, batch, runs, objective, counts)
            terms |= routed
    return LossOutput(terms, nll_sum, gate)


def _routed_terms(
    student: Student, states: StudentStates, batch: Batch, runs: HiddenRuns, objective: Objective, counts: Counts
) -> tuple[Terms, GateInputs]:
    """The student against the replayed block, and what the gate has read."""
    assert student.heads is not None
    assert student.teacher_head is not None
    student_WRD = gather_runs(states.final_BLD, runs)
    routing = route(student.heads, student.teacher_head, student_WRD, runs, objective.router)
    terms = routed_state_terms(student.heads, routing, student_WRD, runs, objective.weights, counts.hidden)
    if objective.weights["router_kd"] > 0 and objective.kd is not None and student.vocabulary_map is not None:
        value_N = routed_kd(
            routed_text(batch, runs, student_WRD, routing.routed_WRT),
            student.model.get_output_embeddings().weight,
            student.teacher_head,
            student.vocabulary_map,
            objective.kd.temperature,
            objective.kd.order,
            objective.chunk_tokens,
        )
        raw = value_N.sum() / counts.hidden
        terms["router_kd"] = LossTerm(raw, objective.weights["router_kd"] * raw)
    return terms, routing.gate.detached()


def _hidden_terms(heads: Heads, states: StudentStates, runs: HiddenRuns, objective: Objective, counts: Counts) -> Terms:
    """Terms against captured states: `feature` and `contrastive` at the last layer, `layerwise` at the others."""
    weights = {name: objective.weights[name] for name in HIDDEN_TERMS if objective.weights[name] > 0}
    last = len(heads.pairs) - 1
    values: dict[str, Tensor] = {}
    if weights.keys() & {"feature", "contrastive"}:
        projected = heads.projections[last](gather_runs(states.layers[heads.pairs[last]], runs))
        teacher = runs.states_WRSD[:, :, last]
        if "feature" in weights:
            values["feature"] = cosine_distance(projected, teacher, runs.mask_WR)
        if "contrastive" in weights:
            values["contrastive"] = contrastive_nll(projected, teacher, runs.mask_WR)
    if "attention" in weights:
        student = gather_runs(states.layers[heads.pairs[last]], runs)
        values["attention"] = relation_kl(student, runs.states_WRSD[:, :, last], runs.mask_WR)
    if "layerwise" in weights and last > 0:
        distances = [
            cosine_distance(
                heads.projections[number](gather_runs(states.layers[pair], runs)),
                runs.states_WRSD[:, :, number],
                runs.mask_WR,
            )
            for number, pair in enumerate(heads.pairs[:last])
        ]
        values["layerwise"] = torch.stack(distances).mean(0)
    return {name: LossTerm(raw := value.sum() / counts.hidden, weights[name] * raw) for name, value in values.items()}
