"""One optimizer step, and one validation: the same objective over the parts of a whole (R5, R24).

A step asks the device for its numbers once, when all work of the step but the optimizer's has been queued. The parts
may be shared out among processes: sums are over all of them, and every process ends with the same numbers and weights.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields, replace

import torch
from torch import Tensor

from moe_distill.batches.batch import Batch, Counts
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTED_STATE_TERMS, ROUTER_TERMS, TEXT_TERMS, Terms, total_of
from moe_distill.losses.router import expert_entropy
from moe_distill.training.objective import LossOutput, Objective, Student, evaluate_objective
from moe_distill.training.routing import ExpertUse, GateInputs, gate_terms
from moe_distill.training.student import Heads
from moe_distill.utils.device import Runtime, update_loss_scale
from moe_distill.utils.processes import ALONE, Processes, sum_gradients

TERMS_OF_PARTS = tuple(sorted(TEXT_TERMS + HIDDEN_TERMS + ROUTED_STATE_TERMS))


@dataclass(frozen=True)
class TermValue:
    """A loss term as a number; see `LossTerm`."""

    raw: float
    weighted: float


@dataclass(frozen=True)
class ExpertValues:
    """The use of the experts; see `ExpertUse`."""

    shares: list[float]
    entropy: float  # of the shares, nats
    divergence: float


@dataclass(frozen=True)
class StepMetrics:
    """A whole step or validation set in numbers."""

    terms: dict[str, TermValue]
    nll_sum: float  # nats
    counts: Counts
    experts: ExpertValues | None  # None where no expert was asked
    nll_N: Tensor | None = field(default=None, compare=False)  # nats of each token, on the CPU; of a validation alone

    @property
    def total(self) -> float:
        return sum(term.weighted for term in self.terms.values())

    @property
    def bits_per_byte(self) -> float:
        return self.nll_sum / math.log(2) / self.counts.n_bytes


@dataclass(frozen=True)
class Update:
    """How an optimizer step went."""

    metrics: StepMetrics
    loss: float  # what the gradient was of
    gradient_norm: float
    applied: bool  # False: loss or gradient was not finite, and the weights are unchanged
    loss_scale: float  # under which the gradient was computed; 1 without a scaler


def optimizer_step(
    student: Student,
    parts: Sequence[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    runtime: Runtime,
    gradient_clip: float,
    processes: Processes = ALONE,
) -> Update:
    """Accumulate the gradient over the parts, clip it, and step unless something is not finite (R22).

    Args:
        parts: of the step, on the student's device; this process's, where several share the step.
    """
    counts = _whole(parts, processes)
    autocast = runtime.dtype if runtime.autocast else None
    optimizer.zero_grad(set_to_none=True)
    outputs = []
    for part in parts:
        torch.manual_seed(part.dropout_seed)
        output = evaluate_objective(student, part, objective, counts, autocast)
        scaler.scale(output.loss).backward()
        outputs.append(replace(output, loss=output.loss.detach()))
    of_gate, experts = _gate_terms(student, outputs, objective, processes)
    if of_gate and processes.is_first:  # once: it is of the whole step already
        scaler.scale(total_of(of_gate)).backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sum_gradients(parameters, processes)
    loss_scale = scaler.scale(torch.ones((), device=runtime.device))
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
    loss = torch.stack([output.loss for output in outputs]).sum()
    numbers = _on_host(outputs, of_gate, experts, counts, [loss], [norm, loss_scale], processes, runtime.device)
    metrics, of_parts, (of_norm, of_scale) = numbers
    of_loss = of_parts[0] + sum(metrics.terms[name].weighted for name in of_gate)
    applied = math.isfinite(of_norm) and math.isfinite(of_loss) and math.isfinite(metrics.total)
    if applied:
        optimizer.step()  # not the scaler's `step`, which would ask the device once more
    update_loss_scale(scaler, applied, of_scale)
    return Update(metrics, of_loss, of_norm, applied, of_scale)


@dataclass(frozen=True)
class ValidationSet:
    """Fixed windows in parts; this process's, where several share them."""

    parts: list[Batch]
    first_tokens: list[int]  # of each part, counted over the whole set


@torch.no_grad()
def validate(
    student: Student, windows: ValidationSet, objective: Objective, processes: Processes = ALONE
) -> StepMetrics:
    """The objective over fixed windows, in evaluation mode, without autocast and exploration noise (R1, R5)."""
    objective = replace(objective, router=replace(objective.router, noise=0.0))
    counts = _whole(windows.parts, processes)
    student.model.eval()
    outputs = [evaluate_objective(student, part, objective, counts, autocast=None) for part in windows.parts]
    student.model.train()
    of_gate, experts = _gate_terms(student, outputs, objective, processes)
    metrics, _, _ = _on_host(outputs, of_gate, experts, counts, [], [], processes, student.model.device)
    nll_N = torch.zeros(counts.tokens)
    for first, output in zip(windows.first_tokens, outputs, strict=True):
        nll_N[first : first + len(output.nll_N)] = output.nll_N.cpu()
    return replace(metrics, nll_N=processes.total(nll_N))


def _whole(parts: Sequence[Batch], processes: Processes) -> Counts:
    """The counts of all parts, of every process."""
    return Counts(*processes.totals(astuple(sum((part.counts for part in parts), Counts()))))


def _gate_terms(
    student: Student, outputs: list[LossOutput], objective: Objective, processes: Processes
) -> tuple[Terms, ExpertUse | None]:
    """The terms of the gate's means over all parts of every process, and the use of the experts."""
    heads, teacher_head = student.heads, student.teacher_head
    if heads is None or teacher_head is None or not any(objective.weights[name] for name in ROUTER_TERMS):
        return {}, None
    gates = [output.gate for output in outputs if output.gate is not None] or [_no_positions(heads)]
    gate = GateInputs(
        *(processes.rows(torch.cat([getattr(each, name.name) for each in gates])) for name in fields(GateInputs))
    )
    if not len(gate.student_ND):
        return {}, None
    return gate_terms(heads, teacher_head, gate, objective.router, objective.weights)


def _no_positions(heads: Heads) -> GateInputs:
    """What a gate has read where no window has states."""
    num_experts, student_size = heads.gate_weight.shape
    no_experts = heads.gate_weight.new_zeros(0, num_experts)
    return GateInputs(heads.gate_weight.new_zeros(0, student_size), no_experts, no_experts)


def _on_host(
    outputs: list[LossOutput],
    of_gate: Terms,
    experts: ExpertUse | None,
    counts: Counts,
    of_parts: list[Tensor],
    of_whole: list[Tensor],
    processes: Processes,
    device: torch.device,
) -> tuple[StepMetrics, list[float], list[float]]:
    """The sums over all parts of every process, and other scalars, read from the device at once.

    Args:
        of_parts: scalars that are sums over this process's parts.
        of_whole: scalars of the whole, the same in every process.
    """
    zero = torch.zeros((), device=device)
    there = processes.anywhere([any(name in output.terms for output in outputs) for name in TERMS_OF_PARTS])
    names = [name for name, is_there in zip(TERMS_OF_PARTS, there, strict=True) if is_there]
    present = {name: [output.terms[name] for output in outputs if name in output.terms] for name in names}
    sums = [_sum([term.raw for term in present[name]], zero) for name in names]
    sums += [_sum([term.weighted for term in present[name]], zero) for name in names]
    sums += [_sum([output.nll_sum for output in outputs], zero), *of_parts]
    whole = [term.raw.detach() for term in of_gate.values()] + [term.weighted.detach() for term in of_gate.values()]
    whole += of_whole
    if experts is not None:
        whole += [*experts.share_E, expert_entropy(experts.share_E), experts.divergence]
    if not processes.is_first:
        whole = [zero] * len(whole)
    numbers: list[float] = processes.total(torch.stack([scalar.float() for scalar in sums + whole])).tolist()

    def taken(n: int) -> list[float]:
        first = numbers[:n]
        del numbers[:n]
        return first

    terms = dict(zip(names, map(TermValue, taken(len(names)), taken(len(names))), strict=True))
    [nll_sum], sums_of_parts = taken(1), taken(len(of_parts))
    terms |= dict(zip(of_gate, map(TermValue, taken(len(of_gate)), taken(len(of_gate))), strict=True))
    values_of_whole = taken(len(of_whole))
    values = None if experts is None else ExpertValues(numbers[:-2], entropy=numbers[-2], divergence=numbers[-1])
    return StepMetrics(terms, nll_sum, counts, values), sums_of_parts, values_of_whole


def _sum(values: list[Tensor], zero: Tensor) -> Tensor:
    return torch.stack(values).sum() if values else zero
