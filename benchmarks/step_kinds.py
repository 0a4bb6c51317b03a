"""One optimizer step of each kind, on the same batches: LM alone, KD, phase 2, and a bare step of transformers.

All kinds train one student, each with an optimizer of its own: what a step costs does not depend on its weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from interleaved import Times, interleave
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.batches.batch import Batch
from moe_distill.config.params import Params
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.replay.block import TeacherHead
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT
from moe_distill.training.objective import Objective, Student
from moe_distill.training.schedule import LM_ONLY, objective_at
from moe_distill.training.step import Update, optimizer_step
from moe_distill.training.student import Heads
from moe_distill.training.trainer import make_trainer
from moe_distill.utils.device import Runtime
from moe_distill.utils.tensors import to_device

KINDS = ("bare", "lm", "kd", "phase2")
CPU = Runtime(torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class Case:
    """A student, the steps it is asked for, and what phase 2 needs beside it; all on the runtime's device."""

    model: PreTrainedModel
    heads: Heads
    teacher_head: TeacherHead
    steps: list[list[Batch]]  # in phase 2's form; the others leave out what they do not read
    params: Params
    runtime: Runtime


def phase2_objective(params: Params) -> Objective:
    """Every term at its full weight."""
    train = params.profile.train
    return objective_at(train.max_steps - 1, params.experiment, train, {}, LARGEST_KD_WEIGHT)


def make_step(case: Case, kind: str) -> Callable[[int], Update | None]:
    """A step of one kind by its number; the bare one says nothing of how it went."""
    case.model.train()
    if kind == "bare":
        return _bare_step(case)
    student, objective, train = Student(case.model, None, None), LM_ONLY, case.params.profile.train
    phase2 = phase2_objective(case.params)
    if kind == "kd":
        objective = replace(phase2, weights=dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.0))
    if kind == "phase2":
        student, objective = Student(case.model, case.heads, case.teacher_head), phase2
    steps = [[as_read(batch, kind) for batch in parts] for parts in case.steps]
    trainer = make_trainer(student, train, case.runtime, 0)

    def run(number: int) -> Update:
        return optimizer_step(
            student,
            steps[number % len(steps)],
            objective,
            trainer.optimizer,
            trainer.scaler,
            case.runtime,
            train.gradient_clip,
        )

    return run


def as_read(batch: Batch, kind: str) -> Batch:
    """The batch as a step of this kind reads it."""
    if kind == "lm":
        return replace(batch, text=replace(batch.text, target=None), runs=None)
    return batch if kind == "phase2" else replace(batch, runs=None)


def _bare_step(case: Case) -> Callable[[int], None]:
    """Forward with labels, backward, AdamW, as a plain transformers loop has them."""
    model, runtime = case.model, case.runtime
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.params.profile.train.learning_rate, fused=True)
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.scales_loss)
    inputs = [[(batch.input_ids_BL, _padded_labels(batch)) for batch in parts] for parts in case.steps]

    def run(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for ids_BL, targets_BL in inputs[number % len(inputs)]:
            with torch.autocast(runtime.device.type, dtype=runtime.dtype, enabled=runtime.autocast):
                loss = model(input_ids=ids_BL, labels=targets_BL, shift_labels=targets_BL, use_cache=False).loss
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return run


def _padded_labels(batch: Batch) -> Tensor:
    flat = torch.full((batch.input_ids_BL.numel(),), -100, device=batch.input_ids_BL.device)
    return flat.index_copy(0, batch.places_N, batch.text.labels_N).view_as(batch.input_ids_BL)


def on_device(steps: Sequence[Sequence[Batch]], device: torch.device) -> list[list[Batch]]:
    return [[to_device(batch, device) for batch in parts] for parts in steps]


def time_steps(case: Case, rounds: int, kinds: Sequence[str] = KINDS) -> Times:
    """Each kind of step once a round."""
    steps = {kind: numbered(make_step(case, kind)) for kind in kinds}
    return interleave(steps, rounds, case.runtime.device)


def numbered(step: Callable[[int], object]) -> Callable[[], object]:
    """The steps from the first on, one a call."""
    numbers = count()
    return lambda: step(next(numbers))
