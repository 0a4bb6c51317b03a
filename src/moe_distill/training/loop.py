"""The training loop: one phase from its first step to its last, resumable at every checkpoint."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from moe_distill.batches.batch import Batch
from moe_distill.batches.batch_order import batches_from, spread_windows
from moe_distill.batches.loader import BatchReader, LoaderSettings, load_batches, requests
from moe_distill.config.params import EarlyStopping
from moe_distill.config.profile import Train, require_a_batch
from moe_distill.errors import DivergenceError
from moe_distill.log import log, progress
from moe_distill.shards.checkpoint import newest_checkpoint, save_checkpoint
from moe_distill.training.balance import updated_scales
from moe_distill.training.early_stopping import observe, should_stop
from moe_distill.training.kd_weight import SharedText, earned_weight
from moe_distill.training.objective import Objective
from moe_distill.training.optimizer import set_learning_rate
from moe_distill.training.recorder import Recorder, expert_values, term_values
from moe_distill.training.schedule import LM_ONLY, kd_weight_is_due, learning_rate_fraction, noise_seed
from moe_distill.training.step import StepMetrics, Update, optimizer_step, validate
from moe_distill.training.trainer import Trainer, load_student_weights, restore, student_weights, to_checkpoint
from moe_distill.utils.device import Runtime
from moe_distill.utils.signals import postponed_signals
from moe_distill.utils.tensors import to_device


@dataclass(frozen=True)
class Phase:
    """What distinguishes a training stage from the others."""

    stage: str
    last_step: int  # half-open, counted over both phases
    term_names: tuple[str, ...]  # that can appear
    num_experts: int  # the router's; 0 = no router
    adaptive: bool
    objective_at: Callable[[int, Mapping[str, float], float | None], Objective]
    watches: Callable[[int], bool]  # early stopping and the best weights: from which step on


@dataclass(frozen=True)
class Result:
    """How a phase ended; the student holds the weights to export."""

    final: StepMetrics  # on the validation windows, under the last objective
    steps: int
    stopped_early: bool
    skipped_steps: int
    tokens_per_second: float
    kd_weight: float | None = None  # that the teacher had earned last; None where it was not measured


@dataclass(frozen=True)
class TrainingContext:
    """Data, parameters and device of a phase."""

    train_batches: BatchReader
    validation_batches: BatchReader
    window_lengths: Tensor  # tokens of each training window, int64
    n_validation_windows: int
    train: Train
    stopping: EarlyStopping
    seed: int
    runtime: Runtime
    shared_text: SharedText | None = None  # of the validation windows, for `kd_weight: auto`; None: nothing is measured


def run_phase(trainer: Trainer, phase: Phase, context: TrainingContext, work: Path, recorder: Recorder) -> Result:
    """Train until the phase's last step or early stopping; keep the best weights seen since the last ramp.

    Args:
        work: where checkpoints live while the phase is unfinished; the newest valid one is continued.

    SIGTERM or Ctrl-C ends it after the step it is in, with a checkpoint.

    Raises:
        DivergenceError: too many non-finite steps in a row; the last good checkpoint stays in `work`.
        DataError: fewer training windows than one batch.
    """
    train = context.train
    require_a_batch(len(context.window_lengths), train.batch_windows)
    checkpoint = newest_checkpoint(work)
    if checkpoint is not None:
        restore(trainer, checkpoint)
        log(f"{phase.stage}: resumed at step {trainer.step}")
    recorder.open(trainer.step)
    validation_parts = _validation_parts(context)
    trainer.student.model.train()
    if trainer.counters.kd_weight is None:
        _measure_kd_weight(trainer, context, validation_parts)

    metrics: StepMetrics | None = None  # of the validation that the last step ended with
    with (
        postponed_signals() as postponed,
        closing(_steps(context, trainer.step, phase.last_step)) as steps,
        progress(phase.last_step, phase.stage, done=trainer.step) as advance,
    ):
        began = time.perf_counter()
        while trainer.step < phase.last_step and not should_stop(trainer.counters.watch, context.stopping):
            parts = next(steps)
            update, objective = _advance(trainer, phase, context, parts)
            trainer.counters.seconds += time.perf_counter() - began
            advance(tokens=update.metrics.counts.tokens)
            metrics = _record(trainer, phase, context, update, objective, validation_parts, recorder)
            if trainer.step % train.checkpoint_every == 0 or postponed.arrived:
                save_checkpoint(work, to_checkpoint(trainer))
            postponed.obey()
            began = time.perf_counter()

    if trainer.best:
        load_student_weights(trainer, trainer.best)
    if trainer.best or metrics is None:
        objective = phase.objective_at(trainer.step - 1, trainer.counters.scales, trainer.counters.kd_weight)
        metrics = validate(trainer.student, validation_parts, objective)
    return Result(
        final=metrics,
        steps=trainer.step,
        stopped_early=trainer.step < phase.last_step,
        skipped_steps=trainer.counters.skipped_steps,
        tokens_per_second=trainer.counters.tokens / max(trainer.counters.seconds, 1e-9),
        kd_weight=trainer.counters.kd_weight,
    )


def _steps(context: TrainingContext, first_step: int, last_step: int) -> Generator[list[Batch], None, None]:
    """The micro-batches of each step from `first_step` on, on the device that trains."""
    train, device = context.train, context.runtime.device
    windows = batches_from(context.window_lengths, train.batch_windows, context.seed, first_step)
    wanted = (
        request
        for step in range(first_step, last_step)
        for request in requests(next(windows), train.micro_batch_windows, noise_seed(context.seed, step))
    )
    settings = LoaderSettings(train.loader_workers, pin_memory=device.type == "cuda")
    batches = load_batches(context.train_batches, wanted, settings)
    for _ in range(first_step, last_step):
        n_parts = train.batch_windows // train.micro_batch_windows
        yield [to_device(batch, device) for batch in islice(batches, n_parts)]


def _advance(trainer: Trainer, phase: Phase, context: TrainingContext, parts: list[Batch]) -> tuple[Update, Objective]:
    """One optimizer step, counted."""
    train, step = context.train, trainer.step
    objective = phase.objective_at(step, trainer.counters.scales, trainer.counters.kd_weight)
    set_learning_rate(trainer.optimizer, learning_rate_fraction(step, train))
    torch.manual_seed(noise_seed(context.seed, step))  # of dropout: a resumed run draws what the unbroken one does
    update = optimizer_step(
        trainer.student,
        parts,
        objective,
        trainer.optimizer,
        trainer.scaler,
        context.runtime,
        train.gradient_clip,
        with_kl=_is_logged(step + 1, phase, train),
    )
    _account(trainer, update, phase, train, [window for part in parts for window in part.windows])
    return update, objective


def _record(
    trainer: Trainer,
    phase: Phase,
    context: TrainingContext,
    update: Update,
    objective: Objective,
    validation_parts: list[Batch],
    recorder: Recorder,
) -> StepMetrics | None:
    """What is due after a step: a line, a validation; the metrics of the latter, if there was one."""
    train, step = context.train, trainer.step
    if _is_logged(step, phase, train):
        learning_rate = train.learning_rate * learning_rate_fraction(step - 1, train)
        recorder.record_step(step, update, learning_rate, trainer.counters)
    if step != phase.last_step and step % train.validate_every:
        if kd_weight_is_due(step, train):
            _measure_kd_weight(trainer, context, validation_parts)
        return None
    metrics = validate(trainer.student, validation_parts, objective)
    if context.shared_text is not None and metrics.nll_N is not None:
        trainer.counters.kd_weight = earned_weight(context.shared_text, metrics.nll_N)
    if phase.watches(step):
        _watch(trainer, metrics, context.stopping)
    recorder.record_validation(step, metrics, trainer.counters)
    return metrics


def _is_logged(step: int, phase: Phase, train: Train) -> bool:
    return step == phase.last_step or step % train.log_every == 0


def _measure_kd_weight(trainer: Trainer, context: TrainingContext, validation_parts: list[Batch]) -> None:
    """Measure what the teacher has earned beside the student as it is, where that is wanted."""
    if context.shared_text is not None:
        metrics = validate(trainer.student, validation_parts, LM_ONLY)
        assert metrics.nll_N is not None
        trainer.counters.kd_weight = earned_weight(context.shared_text, metrics.nll_N)


def _validation_parts(context: TrainingContext) -> list[Batch]:
    """The same windows at every validation."""
    windows = spread_windows(context.n_validation_windows, context.train.validation_windows)
    wanted = requests(windows, context.train.micro_batch_windows)
    return [to_device(context.validation_batches.read(request), context.runtime.device) for request in wanted]


def _account(trainer: Trainer, update: Update, phase: Phase, train: Train, windows: list[int]) -> None:
    """Count the step, and stop a run of non-finite ones."""
    counters = trainer.counters
    trainer.step += 1
    counters.tokens += update.metrics.counts.tokens
    if update.applied:
        counters.consecutive_nonfinite = 0
        if phase.adaptive:
            raw = {name: term.raw for name, term in update.metrics.terms.items()}
            counters.scales = updated_scales(counters.scales, raw)
        return
    counters.skipped_steps += 1
    counters.consecutive_nonfinite += 1
    if counters.consecutive_nonfinite >= train.max_consecutive_nonfinite:
        raise DivergenceError(
            f"{phase.stage}: {counters.consecutive_nonfinite} steps in a row, to step {trainer.step}, were not finite",
            f"gradient norm {update.gradient_norm}, loss {update.loss}, training windows {windows}",
            "lower `train.learning_rate`; the last good checkpoint is kept under .work",
        )


def _watch(trainer: Trainer, metrics: StepMetrics, stopping: EarlyStopping) -> None:
    trainer.counters.watch = observe(trainer.counters.watch, trainer.step, metrics.bits_per_byte, stopping)
    if trainer.counters.watch.best_step == trainer.step:
        trainer.best = student_weights(trainer)


def result_metrics(result: Result) -> dict[str, float]:
    """How a phase ended, and every term on the validation windows with the weights that are exported.

    Raises:
        DivergenceError: a value on the validation windows is not finite.
    """
    metrics = {
        "steps": float(result.steps),
        "stopped_early": float(result.stopped_early),
        "skipped_steps": float(result.skipped_steps),
        "train_tokens_per_second": result.tokens_per_second,
        **({} if result.kd_weight is None else {"kd_weight": result.kd_weight}),
        "validation_bits_per_byte": result.final.bits_per_byte,
        "validation_total": result.final.total,
        **{f"validation_{name}": value for name, value in term_values(result.final).items()},
        **expert_values(result.final),
    }
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} is {value} at the end of the phase", fix="lower `train.learning_rate`")
    return metrics
