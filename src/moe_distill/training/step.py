"""One optimizer step, and one validation: the same objective over the parts of a whole (R5, R24).

A step asks the device for its numbers once, when all work of the step but the optimizer's has been queued.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moe_distill.batches.batch import Batch, Counts
from moe_distill.losses.registry import Terms, total_of
from moe_distill.losses.router import expert_entropy
from moe_distill.training.objective import LossOutput, Objective, Student, evaluate_objective
from moe_distill.training.routing import ExpertUse, gate_terms
from moe_distill.utils.device import Runtime

MINIMUM_LOSS_SCALE = 1.0  # below it gradients underflow, and a scale of 0 would never grow again


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

    metrics: StepMetrics  # without the value of `kd` unless it was asked for
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
    with_kl: bool,
) -> Update:
    """Accumulate the gradient over the parts, clip it, and step unless something is not finite (R22).

    Args:
        parts: of the step, on the student's device.
        with_kl: whether the value of `kd` is wanted.
    """
    counts = sum((part.counts for part in parts), Counts())
    autocast = runtime.dtype if runtime.autocast else None
    optimizer.zero_grad(set_to_none=True)
    outputs = []
    for part in parts:
        output = evaluate_objective(student, part, objective, counts, autocast, with_kl)
        scaler.scale(output.loss).backward()
        outputs.append(replace(output, loss=output.loss.detach()))
    of_gate, experts = _gate_terms(student, outputs, objective)
    if of_gate:
        scaler.scale(total_of(of_gate)).backward()
    loss_scale = scaler.scale(torch.ones((), device=runtime.device))
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
    losses = [output.loss for output in outputs] + [term.weighted.detach() for term in of_gate.values()]
    loss = torch.stack(losses).sum()
    metrics, (of_norm, of_loss, of_scale) = _on_host(outputs, of_gate, experts, counts, [norm, loss, loss_scale])
    applied = math.isfinite(of_norm) and math.isfinite(of_loss) and math.isfinite(metrics.total)
    if applied:
        optimizer.step()  # not the scaler's `step`, which would ask the device once more
    scaler.update()
    if scaler.is_enabled() and not applied and of_scale * scaler.get_backoff_factor() < MINIMUM_LOSS_SCALE:
        scaler.update(MINIMUM_LOSS_SCALE)
    return Update(metrics, of_loss, of_norm, applied, of_scale)


@torch.no_grad()
def validate(student: Student, parts: Sequence[Batch], objective: Objective) -> StepMetrics:
    """The objective over fixed windows, in evaluation mode, without autocast and exploration noise (R1, R5)."""
    objective = replace(objective, router=replace(objective.router, noise=0.0))
    counts = sum((part.counts for part in parts), Counts())
    student.model.eval()
    outputs = [evaluate_objective(student, part, objective, counts, autocast=None, with_kl=True) for part in parts]
    student.model.train()
    of_gate, experts = _gate_terms(student, outputs, objective)
    metrics, _ = _on_host(outputs, of_gate, experts, counts, [])
    return replace(metrics, nll_N=torch.cat([output.nll_N for output in outputs]).cpu())


def _gate_terms(student: Student, outputs: list[LossOutput], objective: Objective) -> tuple[Terms, ExpertUse | None]:
    """The terms of the gate's means over all parts, and the use of the experts."""
    gates = [output.gate for output in outputs if output.gate is not None]
    if not gates or student.heads is None or student.teacher_head is None:
        return {}, None
    return gate_terms(student.heads, student.teacher_head, gates, objective.router, objective.weights)


def _on_host(
    outputs: list[LossOutput], of_gate: Terms, experts: ExpertUse | None, counts: Counts, others: list[Tensor]
) -> tuple[StepMetrics, list[float]]:
    """The sums over all parts, and other scalars, read from the device at once."""
    names = sorted({name for output in outputs for name in output.terms})
    present = {name: [output.terms[name] for output in outputs if name in output.terms] for name in names}
    scalars = [torch.stack([term.raw for term in present[name]]).sum() for name in names]
    scalars += [torch.stack([term.weighted for term in present[name]]).sum() for name in names]
    scalars += [term.raw.detach() for term in of_gate.values()] + [term.weighted.detach() for term in of_gate.values()]
    scalars += [torch.stack([output.nll_sum for output in outputs]).sum(), *others]
    if experts is not None:
        scalars += [*experts.share_E, expert_entropy(experts.share_E), experts.divergence]
    numbers: list[float] = torch.stack([scalar.float() for scalar in scalars]).tolist()

    def taken(n: int) -> list[float]:
        first = numbers[:n]
        del numbers[:n]
        return first

    terms = dict(zip(names, map(TermValue, taken(len(names)), taken(len(names))), strict=True))
    terms |= dict(zip(of_gate, map(TermValue, taken(len(of_gate)), taken(len(of_gate))), strict=True))
    [nll_sum], of_others = taken(1), taken(len(others))
    values = None if experts is None else ExpertValues(numbers[:-2], entropy=numbers[-2], divergence=numbers[-1])
    return StepMetrics(terms, nll_sum, counts, values), of_others
