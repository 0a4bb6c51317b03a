"""Tokens, bytes, time, memory and disk of every stage: what there is to do times what each piece of it takes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_distill.config.model_keys import HubModel, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.planning.amounts import UNKNOWN, Amounts, StoredBytes
from moe_distill.planning.devices import Device
from moe_distill.planning.model_work import ModelWork, training_flops
from moe_distill.planning.rates import DISK_BYTES_PER_SECOND, Rates
from moe_distill.training.curriculum import phase1_steps
from moe_distill.training.trainer import phase_bytes
from moe_distill.utils.device import resolve_precision

START_SECONDS = 20.0  # of a stage: libraries, models, verification of what it reads
DOWNLOAD_BYTES_PER_SECOND = 20e6
CORPUS_BYTES_PER_SECOND = 5e6
TOKENIZED_PER_SECOND = 50_000.0  # teacher tokens: both tokenizers, alignment, writing
TARGET_BYTES = 12  # of an entry or a sample in a finished target
FP32 = 4


@dataclass(frozen=True)
class Plan:
    """What the costs follow from."""

    params: Params
    device: Device
    teacher: ModelWork
    student: ModelWork
    amounts: Amounts
    stored: StoredBytes
    rates: Rates
    shares_disk_with_hub: bool  # whether the hub's cache lies on the disk of the workspace

    @property
    def processes(self) -> int:
        return self.params.profile.launch.processes


@dataclass(frozen=True)
class StageCost:
    """What a stage takes; NaN: not known yet."""

    stage: str
    tokens: float  # that models read, or that are cut
    seconds: float
    memory: float  # peak bytes of a process on its device; 0: it does not use it
    written: float  # bytes of its outputs
    disk: float  # bytes of all outputs so far and of this stage's unfinished work


@dataclass(frozen=True)
class _Piece:
    """A stage before the disk is added up."""

    stage: str
    tokens: float
    seconds: float
    written: float
    unfinished: float = 0.0  # bytes beside the outputs while it runs


def stage_costs(plan: Plan) -> list[StageCost]:
    """Every stage that takes more than moments, in the order in which they run."""
    costs, kept = list[StageCost](), 0.0
    for piece in _pieces(plan):
        kept += piece.written
        costs.append(
            StageCost(
                stage=piece.stage,
                tokens=piece.tokens,
                seconds=START_SECONDS + piece.seconds,
                memory=plan.rates.memory.get(piece.stage, 0.0),
                written=piece.written,
                disk=kept + piece.unfinished,
            )
        )
    return costs


def _pieces(plan: Plan) -> Iterator[_Piece]:
    stored, profile = plan.stored, plan.params.profile
    yield _Piece("corpus", 0.0, stored.corpus / CORPUS_BYTES_PER_SECOND, stored.corpus)
    yield _teacher_model(plan)
    of_student = stored.student / DOWNLOAD_BYTES_PER_SECOND if isinstance(profile.models.student, HubModel) else 0.0
    yield _Piece("models@student", 0.0, of_student, _with_cache(plan, profile.models.student, stored.student))
    read = plan.amounts.teacher_tokens
    yield _Piece("tokenize", read, read / TOKENIZED_PER_SECOND, stored.windows)
    if profile.models.teacher_correction is not None:
        yield _correction(plan)
    seconds = read * plan.rates.capture_position / plan.processes
    yield _Piece("teacher", read, seconds, stored.shards + stored.head)
    held_out = plan.amounts.student_windows["validation"] * plan.amounts.student_length
    yield _Piece("teacher_lead", held_out, held_out * plan.rates.score_token, 0.0)
    first, last = first_steps(plan.params), profile.train.max_steps
    # The moments of phase 1 are an output, twice the student's bytes.
    yield _training(plan, "train_kd", first, outputs=3)
    yield _training(plan, "train_router", last - first, outputs=1)
    students = 3
    if profile.baseline == "full":
        yield _training(plan, "control", last, outputs=1)
        students += 1
    seconds = held_out * (students * plan.rates.score_token + plan.rates.compare_token)
    yield _Piece("evaluate", (students + 1) * held_out, seconds, 0.0)


def first_steps(params: Params) -> int:
    """Optimizer steps of the first phase."""
    curriculum = params.experiment.curriculum
    return phase1_steps(params.profile.train.max_steps, curriculum.curriculum_share, curriculum.phase1_share)


def _teacher_model(plan: Plan) -> _Piece:
    model, seconds, tokens = plan.params.profile.models.teacher, 0.0, 0.0
    if isinstance(model, TinyTeacher):
        tokens = model.steps * model.batch_windows * model.max_length
        seconds = tokens * training_flops(plan.teacher, model.max_length) / plan.device.flops["fp32"]
    elif isinstance(model, HubModel):
        seconds = plan.stored.teacher / DOWNLOAD_BYTES_PER_SECOND
    return _Piece("models@teacher", tokens, seconds, _with_cache(plan, model, plan.stored.teacher))


def _with_cache(plan: Plan, model: object, size: float) -> float:
    """Bytes of a model, those in the hub's cache included where that lies on the same disk."""
    return 2 * size if isinstance(model, HubModel) and plan.shares_disk_with_hub else size


def _correction(plan: Plan) -> _Piece:
    """Forward and backward to the states alone, which costs as much; a second forward pass where layers are twice."""
    correction = plan.params.profile.models.teacher_correction
    assert correction is not None
    length = plan.amounts.teacher_length
    trained = correction.steps * correction.batch_windows * length
    measured = 2 * _held_out(correction.validation_windows, plan.amounts.teacher_windows) * length
    passes = (3 if correction.gradient_checkpointing else 2) * trained + measured
    item = resolve_precision(plan.params.profile.teacher.precision, plan.device.capability).itemsize
    return _Piece(
        "teacher_correction",
        trained + measured,
        passes * plan.rates.capture_position,
        float(item * plan.teacher.parameters),
    )


def _held_out(wanted: int, windows: Mapping[str, float]) -> float:
    """Windows that a validation reads: no more than the split has, where that is known."""
    found = windows["validation"]
    return wanted if math.isnan(found) else min(wanted, found)


def _training(plan: Plan, stage: str, steps: int, outputs: int) -> _Piece:
    """A training stage; `outputs` as multiples of the student's weights in fp32."""
    train, weights = plan.params.profile.train, FP32 * plan.student.parameters
    tokens = steps * train.batch_windows * plan.amounts.student_length
    validations = math.ceil(steps / train.validate_every)
    watched = _held_out(train.validation_windows, plan.amounts.student_windows)
    validated = validations * watched * plan.amounts.student_length
    saved = steps // train.checkpoint_every * 4 * weights / DISK_BYTES_PER_SECOND
    seconds = steps * step_seconds(plan, stage) + validated * plan.rates.validation_token / plan.processes + saved
    return _Piece(stage, tokens + validated, seconds, outputs * weights, phase_bytes(weights, weights) - weights)


def step_seconds(plan: Plan, stage: str) -> float:
    """Seconds of an optimizer step, whose micro-batches the processes share; and of what it waits for."""
    train, rates, n = plan.params.profile.train, plan.rates, plan.processes
    parts = math.ceil(train.batch_windows / train.micro_batch_windows / n)
    computed = parts * train.micro_batch_windows * plan.amounts.student_length * rates.training_token[stage]
    computed += rates.optimizer_step
    if n > 1:  # an all-reduce of the gradient in fp32
        computed += 2 * (n - 1) / n * FP32 * plan.student.parameters / plan.device.link
    if stage == "control":
        return computed
    made = parts * train.micro_batch_windows * made_share(plan) * rates.target_window
    return max(computed, made / train.loader_workers) if train.loader_workers else computed + made


def made_share(plan: Plan) -> float:
    """Share of the windows of a step whose targets are made: all in the first epoch, later those not kept.

    Each process that makes batches ready keeps those it has made, in its part of the memory; and each epoch deals it
    other windows than the last one did.
    """
    train, capture = plan.params.profile.train, plan.params.profile.teacher
    windows, n = plan.amounts.student_windows["train"], plan.processes * max(1, train.loader_workers)
    if math.isnan(windows):
        return 1.0
    each = plan.amounts.student_length * (capture.k + capture.tail_samples) * TARGET_BYTES
    kept = min(1.0, train.target_memory_mb * 1e6 / n / (windows * each))
    epochs = max(1.0, train.max_steps * train.batch_windows / windows)
    met = (1.0 - (1.0 - 1.0 / n) ** epoch for epoch in range(math.ceil(epochs)))  # share of the windows, by a process
    return sum((1.0 - min(kept, each)) * min(1.0, epochs - epoch) for epoch, each in enumerate(met)) / epochs


@dataclass(frozen=True)
class Verdict:
    """A plan against a budget; NaN where a part of it is not known."""

    hours: float  # of all stages
    sessions: float  # of that many hours
    disk: float  # bytes, at the peak
    disk_fits: bool
    memory_fits: bool


def judge(costs: list[StageCost], hours: float, disk: float, memory: float | None) -> Verdict:
    """Hold a plan against sessions of `hours`, `disk` bytes and the `memory` of a device; None: as much as it needs."""
    total = sum(cost.seconds for cost in costs) / 3600
    peak = max((cost.disk for cost in costs), key=lambda each: math.inf if math.isnan(each) else each)
    sessions = UNKNOWN if math.isnan(total) else float(math.ceil(total / hours))
    return Verdict(
        hours=total,
        sessions=sessions,
        disk=peak,
        disk_fits=peak <= disk,
        memory_fits=memory is None or all(cost.memory <= memory for cost in costs),
    )
