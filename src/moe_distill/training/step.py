"""One optimizer step, and one validation: the same objective over the parts of a whole (R5, R24)."""

import math
from dataclasses import dataclass, replace

import torch

from moe_distill.losses.registry import LossTerm, Terms, total_of
from moe_distill.training.batch import NO_COUNTS, Batch, Counts
from moe_distill.training.data import BatchFields, Split, read_batch
from moe_distill.training.objective import LossOutput, Objective, Student, evaluate_objective
from moe_distill.training.routing import ExpertUse, gate_terms
from moe_distill.utils.device import Runtime
from moe_distill.utils.tensors import to_device

MINIMUM_LOSS_SCALE = 1.0  # below it gradients underflow, and a scale of 0 would never grow again


@dataclass(frozen=True)
class StepMetrics:
    """The terms of a whole step or validation set."""

    terms: Terms
    nll_sum: float  # nats
    counts: Counts
    experts: ExpertUse | None  # None where no expert was asked
    padding_share: float

    @property
    def total(self) -> float:
        return float(total_of(self.terms))

    @property
    def bits_per_byte(self) -> float:
        return self.nll_sum / math.log(2) / self.counts.n_bytes


@dataclass(frozen=True)
class Update:
    """What became of an optimizer step."""

    outcome: StepMetrics
    gradient_norm: float
    applied: bool  # False: a loss or gradient was not finite, and the weights are as before
    loss_scale: float  # under which the gradient was computed; 1 without a scaler


def read_parts(split: Split, numbers: list[int], part_windows: int, wanted: BatchFields) -> list[Batch]:
    """Read a batch in parts of at most `part_windows` windows."""
    parts = [numbers[start : start + part_windows] for start in range(0, len(numbers), part_windows)]
    return [read_batch(split, part, wanted) for part in parts]


def optimizer_step(
    student: Student,
    parts: list[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    runtime: Runtime,
    gradient_clip: float,
) -> Update:
    """Accumulate the gradient over the parts, clip it, and step unless something is not finite (R22)."""
    counts = sum((part.counts for part in parts), NO_COUNTS)
    optimizer.zero_grad(set_to_none=True)
    loss_scale = scaler.get_scale()
    evaluated = []
    for part in parts:
        moved = to_device(part, runtime.device)
        result = evaluate_objective(student, moved, objective, counts, runtime.dtype if runtime.autocast else None)
        scaler.scale(total_of(result.terms)).backward()
        evaluated.append(replace(result, terms=_detached(result.terms)))
    of_gate, experts = _gate_terms(student, evaluated, objective)
    if of_gate:
        scaler.scale(total_of(of_gate)).backward()
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, gradient_clip))
    outcome = _combined(evaluated, of_gate, experts, parts, counts)
    applied = math.isfinite(norm) and math.isfinite(outcome.total)
    if applied:
        scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() < MINIMUM_LOSS_SCALE:
        scaler.update(MINIMUM_LOSS_SCALE)
    return Update(outcome, norm, applied, loss_scale)


@torch.no_grad()
def validate(student: Student, parts: list[Batch], objective: Objective, runtime: Runtime) -> StepMetrics:
    """The objective over fixed windows, in evaluation mode, without autocast and exploration noise (R1, R5)."""
    objective = replace(objective, router=replace(objective.router, noise=0.0))
    counts = sum((part.counts for part in parts), NO_COUNTS)
    student.model.eval()
    evaluated = [
        evaluate_objective(student, to_device(part, runtime.device), objective, counts, autocast=None) for part in parts
    ]
    student.model.train()
    of_gate, experts = _gate_terms(student, evaluated, objective)
    return _combined(evaluated, of_gate, experts, parts, counts)


def _gate_terms(student: Student, evaluated: list[LossOutput], objective: Objective) -> tuple[Terms, ExpertUse | None]:
    """The terms of the gate's means over all parts, and the use of the experts."""
    gates = [result.gate for result in evaluated if result.gate is not None]
    if not gates or student.heads is None or student.teacher_head is None:
        return {}, None
    return gate_terms(student.heads, student.teacher_head, gates, objective.router, objective.weights)


def _detached(terms: Terms) -> Terms:
    return {name: LossTerm(term.raw.detach(), term.weighted.detach()) for name, term in terms.items()}


def _combined(
    evaluated: list[LossOutput], of_gate: Terms, experts: ExpertUse | None, parts: list[Batch], counts: Counts
) -> StepMetrics:
    """The sums over all parts."""
    terms: Terms = {}
    for name in sorted({name for result in evaluated for name in result.terms}):
        present = [result.terms[name] for result in evaluated if name in result.terms]
        raw = torch.stack([term.raw for term in present]).sum()
        terms[name] = LossTerm(raw, torch.stack([term.weighted for term in present]).sum())
    return StepMetrics(
        terms=terms | _detached(of_gate),
        nll_sum=float(torch.stack([result.nll_sum for result in evaluated]).double().sum()),
        counts=counts,
        experts=experts,
        padding_share=sum(part.padding_share * part.input_ids_BL.numel() for part in parts)
        / sum(part.input_ids_BL.numel() for part in parts),
    )
