"""The training loop: one phase from its first step to its last, resumable at every checkpoint."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from moe_distill.batches.batch import Batch
from moe_distill.batches.batch_order import batches_from, spread_windows
from moe_distill.batches.loader import BatchReader, BatchRequest, LoaderSettings, load_batches, requests, share_of
from moe_distill.config.params import EarlyStopping
from moe_distill.config.profile import Train, require_a_batch
from moe_distill.errors import ConfigError, DivergenceError
from moe_distill.log import log, progress
from moe_distill.shards.checkpoint import newest_checkpoint, save_checkpoint
from moe_distill.training.balance import updated_scales
from moe_distill.training.early_stopping import observe, should_stop
from moe_distill.training.kd_weight import SharedText, earned_weight
from moe_distill.training.objective import Objective
from moe_distill.training.optimizer import set_learning_rate
from moe_distill.training.recorder import Recorder
from moe_distill.training.result import Result
from moe_distill.training.schedule import LM_ONLY, kd_weight_is_due, learning_rate_fraction, noise_seed
from moe_distill.training.step import StepMetrics, Update, ValidationSet, optimizer_step, validate
from moe_distill.training.trainer import Trainer, load_student_weights, restore, student_weights, to_checkpoint
from moe_distill.utils.device import Runtime
from moe_distill.utils.processes import ALONE, Processes
from moe_distill.utils.signals import Postponed, Terminated, postponed_signals
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
class TrainingContext:
    """Data, parameters and device of a phase."""

    train_batches: BatchReader
    validation_batches: BatchReader
    window_lengths: Tensor  # tokens of each training window, int64
    validation_lengths: Tensor  # of each validation window
    train: Train
    stopping: EarlyStopping
    seed: int
    runtime: Runtime
    shared_text: SharedText | None = None  # of the validation windows, for `kd_weight: auto`; None: nothing is measured
    processes: Processes = ALONE  # that train together


def run_phase(
    trainer: Trainer, phase: Phase, context: TrainingContext, work: Path, recorder: Recorder | None
) -> Result:
    """Train until the phase's last step or early stopping; keep the best weights seen since the last ramp.

    Args:
        work: where checkpoints live while the phase is unfinished; the newest valid one is continued.
        recorder: of the first process; the others have none.

    SIGTERM or Ctrl-C, to any of the processes, ends it after the step it is in, with a checkpoint.

    Raises:
        DivergenceError: too many non-finite steps in a row; the last good checkpoint stays in `work`.
        DataError: fewer training windows than one batch.
        ConfigError: the processes cannot share a step evenly.
    """
    train, processes = context.train, context.processes
    require_a_batch(len(context.window_lengths), train.batch_windows)
    _require_even_shares(train, processes)
    checkpoint = newest_checkpoint(work)
    if checkpoint is not None:
        restore(trainer, checkpoint)
        log(f"{phase.stage}: resumed at step {trainer.step}")
    if recorder is not None:
        recorder.open(trainer.step)
    validation_set = _validation_set(context)
    trainer.student.model.train()
    if trainer.counters.kd_weight is None:
        _measure_kd_weight(trainer, context, validation_set)

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
            metrics = _record(trainer, phase, context, update, objective, validation_set, recorder)
            [is_to_end] = processes.anywhere([postponed.arrived])
            if processes.is_first and (is_to_end or trainer.step % train.checkpoint_every == 0):
                save_checkpoint(work, to_checkpoint(trainer))
            if is_to_end:
                _end(postponed, processes)
            began = time.perf_counter()
        if any(processes.anywhere([postponed.arrived])):  # after the last step
            if processes.is_first:
                save_checkpoint(work, to_checkpoint(trainer))
            _end(postponed, processes)

    if trainer.best:
        load_student_weights(trainer, trainer.best)
    if trainer.best or metrics is None or context.shared_text is not None:  # as a run resumed at its end does
        objective = phase.objective_at(trainer.step - 1, trainer.counters.scales, trainer.counters.kd_weight)
        metrics = validate(trainer.student, validation_set, objective, context.processes)
    return Result(
        final=metrics,
        steps=trainer.step,
        stopped_early=trainer.step < phase.last_step,
        skipped_steps=trainer.counters.skipped_steps,
        tokens_per_second=trainer.counters.tokens / max(trainer.counters.seconds, 1e-9),
        kd_weight=trainer.counters.kd_weight,
    )


def _steps(context: TrainingContext, first_step: int, last_step: int) -> Generator[list[Batch], None, None]:
    """This process's micro-batches of each step from `first_step` on, on the device that trains."""
    train, device = context.train, context.runtime.device
    windows = batches_from(context.window_lengths, train.batch_windows, context.seed, first_step)

    def wanted() -> Iterator[BatchRequest]:
        for step in range(first_step, last_step):
            whole = requests(next(windows), train.micro_batch_windows, noise_seed(context.seed, step))
            for number in share_of(whole, context.window_lengths, context.processes):
                yield whole[number]

    settings = LoaderSettings(train.loader_workers, pin_memory=device.type == "cuda")
    batches = load_batches(context.train_batches, wanted(), settings)
    for _ in range(first_step, last_step):
        n_parts = train.batch_windows // train.micro_batch_windows // context.processes.count
        yield [to_device(batch, device) for batch in islice(batches, n_parts)]


def _end(postponed: Postponed, processes: Processes) -> NoReturn:
    """End this process for a signal, once the checkpoint is there."""
    processes.wait()
    postponed.obey()
    raise Terminated  # it has arrived in another process


def _advance(trainer: Trainer, phase: Phase, context: TrainingContext, parts: list[Batch]) -> tuple[Update, Objective]:
    """One optimizer step, counted."""
    train, step = context.train, trainer.step
    objective = phase.objective_at(step, trainer.counters.scales, trainer.counters.kd_weight)
    set_learning_rate(trainer.optimizer, learning_rate_fraction(step, train))
    update = optimizer_step(
        trainer.student,
        parts,
        objective,
        trainer.optimizer,
        trainer.scaler,
        context.runtime,
        train.gradient_clip,
        processes=context.processes,
    )
    _account(trainer, update, phase, train, [] if update.applied else _windows_of(context, step))
    return update, objective


def _windows_of(context: TrainingContext, step: int) -> list[int]:
    """All windows of a step, whichever process reads them."""
    return next(batches_from(context.window_lengths, context.train.batch_windows, context.seed, step))


def _record(
    trainer: Trainer,
    phase: Phase,
    context: TrainingContext,
    update: Update,
    objective: Objective,
    validation_set: ValidationSet,
    recorder: Recorder | None,
) -> StepMetrics | None:
    """What is due after a step: a line, a validation; the metrics of the latter, if there was one."""
    train, step = context.train, trainer.step
    if recorder is not None and _is_logged(step, phase, train):
        learning_rate = train.learning_rate * learning_rate_fraction(step - 1, train)
        recorder.record_step(step, update, learning_rate, trainer.counters)
    if step != phase.last_step and step % train.validate_every:
        if kd_weight_is_due(step, train):
            _measure_kd_weight(trainer, context, validation_set)
        return None
    metrics = validate(trainer.student, validation_set, objective, context.processes)
    if context.shared_text is not None and metrics.nll_N is not None:
        trainer.counters.kd_weight = earned_weight(context.shared_text, metrics.nll_N)
    if phase.watches(step):
        _watch(trainer, metrics, context.stopping)
    if recorder is not None:
        recorder.record_validation(step, metrics, trainer.counters)
    return metrics


def _is_logged(step: int, phase: Phase, train: Train) -> bool:
    return step == phase.last_step or step % train.log_every == 0


def _measure_kd_weight(trainer: Trainer, context: TrainingContext, validation_set: ValidationSet) -> None:
    """Measure what the teacher has earned beside the student as it is, where that is wanted."""
    if context.shared_text is not None:
        metrics = validate(trainer.student, validation_set, LM_ONLY, context.processes)
        assert metrics.nll_N is not None
        trainer.counters.kd_weight = earned_weight(context.shared_text, metrics.nll_N)


def _validation_set(context: TrainingContext) -> ValidationSet:
    """The same windows at every validation; of these, this process's."""
    lengths = context.validation_lengths
    windows = spread_windows(len(lengths), context.train.validation_windows)
    wanted = requests(windows, context.train.micro_batch_windows)
    tokens = [int(lengths[list(request.windows)].sum()) for request in wanted]
    own = share_of(wanted, lengths, context.processes)
    parts = [context.validation_batches.read(wanted[number]) for number in own]
    return ValidationSet(
        parts=[to_device(part, context.runtime.device) for part in parts],
        first_tokens=[sum(tokens[:number]) for number in own],
    )


def _require_even_shares(train: Train, processes: Processes) -> None:
    n_parts = train.batch_windows // train.micro_batch_windows
    if n_parts % processes.count:
        raise ConfigError(
            f"{processes.count} processes cannot share a step of {n_parts} micro-batches evenly",
            f"`train.batch_windows` is {train.batch_windows}, `train.micro_batch_windows` {train.micro_batch_windows}",
            "change one of these, or `launch.processes`",
        )


def _account(trainer: Trainer, update: Update, phase: Phase, train: Train, windows: list[int]) -> None:
    """Count the step, and stop a run of non-finite ones.

    Args:
        windows: of the whole step; read only where it was not applied.
    """
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
