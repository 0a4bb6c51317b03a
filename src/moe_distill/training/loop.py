"""The training loop: one phase from its first step to its last, resumable at every checkpoint."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_distill.config.params import EarlyStopping
from moe_distill.config.profile import Train
from moe_distill.errors import DataError, DivergenceError
from moe_distill.log import log
from moe_distill.training.balance import updated_scales
from moe_distill.training.batch import Batch
from moe_distill.training.batch_order import batches_from
from moe_distill.training.checkpoint import newest_checkpoint, save_checkpoint
from moe_distill.training.data import BatchFields, Split
from moe_distill.training.early_stopping import observe, should_stop
from moe_distill.training.objective import Objective
from moe_distill.training.optimizer import set_learning_rate
from moe_distill.training.recorder import Recorder, expert_values, term_values
from moe_distill.training.schedule import learning_rate_fraction
from moe_distill.training.step import StepMetrics, Update, optimizer_step, read_parts, validate
from moe_distill.training.trainer import Trainer, load_student_weights, restore, student_weights, to_checkpoint
from moe_distill.utils.device import Runtime
from moe_distill.utils.signals import postponed_signals


@dataclass(frozen=True)
class Phase:
    """What a stage trains, and when."""

    stage: str
    last_step: int  # half-open, counted over both phases
    term_names: tuple[str, ...]  # that can appear
    num_experts: int  # the router's; 0 = no router
    wanted: BatchFields
    adaptive: bool
    objective_at: Callable[[int, Mapping[str, float]], Objective]
    watches: Callable[[int], bool]  # early stopping and the best weights: from which step on


@dataclass(frozen=True)
class Result:
    """How a phase ended; the student holds the weights to export."""

    final: StepMetrics  # on the validation windows, under the last objective
    steps: int
    stopped_early: bool
    skipped_steps: int
    tokens_per_second: float


@dataclass(frozen=True)
class TrainingContext:
    """What a phase reads, and by which parameters it goes on."""

    train_split: Split
    validation_split: Split
    train: Train
    stopping: EarlyStopping
    seed: int
    runtime: Runtime


def run_phase(trainer: Trainer, phase: Phase, setting: TrainingContext, work: Path, recorder: Recorder) -> Result:
    """Train until the phase's last step or early stopping; keep the best weights seen since the last ramp.

    Args:
        work: where checkpoints live while the phase is unfinished; the newest valid one is continued.

    SIGTERM or Ctrl-C ends it after the step it is in, with a checkpoint.

    Raises:
        DivergenceError: too many non-finite steps in a row; the last good checkpoint stays in `work`.
        DataError: fewer training windows than one batch.
    """
    train = setting.train
    _require_a_batch(setting.train_split, train)
    checkpoint = newest_checkpoint(work)
    if checkpoint is not None:
        restore(trainer, checkpoint)
        log(f"{phase.stage}: resumed at step {trainer.step}")
    recorder.open(trainer.step)
    validation_parts = _validation_parts(setting, phase)
    batches = batches_from(setting.train_split.windows.token_counts, train.batch_windows, setting.seed, trainer.step)
    trainer.student.model.train()

    outcome: StepMetrics | None = None  # of the validation that the last step ended with
    with postponed_signals() as postponed:
        while trainer.step < phase.last_step and not should_stop(trainer.counters.watch, setting.stopping):
            outcome = _advance(trainer, phase, setting, next(batches), validation_parts, recorder)
            if trainer.step % train.checkpoint_every == 0 or postponed.arrived:
                save_checkpoint(work, to_checkpoint(trainer))
            postponed.obey()

    if trainer.best:
        load_student_weights(trainer, trainer.best)
    if trainer.best or outcome is None:
        objective = phase.objective_at(trainer.step - 1, trainer.counters.scales)
        outcome = validate(trainer.student, validation_parts, objective, setting.runtime)
    return Result(
        final=outcome,
        steps=trainer.step,
        stopped_early=trainer.step < phase.last_step,
        skipped_steps=trainer.counters.skipped_steps,
        tokens_per_second=trainer.counters.tokens / max(trainer.counters.seconds, 1e-9),
    )


def _advance(
    trainer: Trainer,
    phase: Phase,
    setting: TrainingContext,
    numbers: list[int],
    validation_parts: list[Batch],
    recorder: Recorder,
) -> StepMetrics | None:
    """One optimizer step over the windows `numbers`, and what is due after it: the outcome of a validation, if any."""
    train = setting.train
    began = time.perf_counter()
    objective = phase.objective_at(trainer.step, trainer.counters.scales)
    fraction = learning_rate_fraction(trainer.step, train)
    set_learning_rate(trainer.optimizer, fraction)
    parts = read_parts(setting.train_split, numbers, train.micro_batch_windows, phase.wanted)
    update = optimizer_step(
        trainer.student, parts, objective, trainer.optimizer, trainer.scaler, setting.runtime, train.gradient_clip
    )
    _account(trainer, update, phase, train, time.perf_counter() - began, numbers)
    is_last = trainer.step == phase.last_step
    if is_last or trainer.step % train.log_every == 0:
        recorder.record_step(trainer.step, update, train.learning_rate * fraction, trainer.counters)
    if not is_last and trainer.step % train.validate_every:
        return None
    outcome = validate(trainer.student, validation_parts, objective, setting.runtime)
    if phase.watches(trainer.step):
        _watch(trainer, outcome, setting.stopping)
    recorder.record_validation(trainer.step, outcome, trainer.counters)
    return outcome


def _validation_parts(setting: TrainingContext, phase: Phase) -> list[Batch]:
    """The same windows at every validation, evenly spread over the split: its sources lie one after the other."""
    total = len(setting.validation_split.windows)
    n_windows = min(setting.train.validation_windows, total)
    numbers = [number * total // n_windows for number in range(n_windows)]
    return read_parts(setting.validation_split, numbers, setting.train.micro_batch_windows, phase.wanted)


def _require_a_batch(split: Split, train: Train) -> None:
    if len(split.windows) < train.batch_windows:
        raise DataError(
            f"the training split has {len(split.windows)} windows, one batch has {train.batch_windows}",
            fix="lower `train.batch_windows`, or raise `windows.train_fraction` or the corpus",
        )


def _account(trainer: Trainer, update: Update, phase: Phase, train: Train, seconds: float, windows: list[int]) -> None:
    """Count the step, and stop a run of non-finite ones."""
    counters = trainer.counters
    trainer.step += 1
    counters.tokens += update.outcome.counts.tokens
    counters.seconds += seconds
    if update.applied:
        counters.consecutive_nonfinite = 0
        if phase.adaptive:
            raw = {name: float(term.raw) for name, term in update.outcome.terms.items()}
            counters.scales = updated_scales(counters.scales, raw)
        return
    counters.skipped_steps += 1
    counters.consecutive_nonfinite += 1
    if counters.consecutive_nonfinite >= train.max_consecutive_nonfinite:
        raise DivergenceError(
            f"{phase.stage}: {counters.consecutive_nonfinite} steps in a row, to step {trainer.step}, were not finite",
            f"gradient norm {update.gradient_norm}, loss {update.outcome.total}, training windows {windows}",
            "lower `train.learning_rate`; the last good checkpoint is kept under .work",
        )


def _watch(trainer: Trainer, outcome: StepMetrics, stopping: EarlyStopping) -> None:
    trainer.counters.watch = observe(trainer.counters.watch, trainer.step, outcome.bits_per_byte, stopping)
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
        "validation_bits_per_byte": result.final.bits_per_byte,
        "validation_total": result.final.total,
        **{f"validation_{name}": value for name, value in term_values(result.final).items()},
        **expert_values(result.final),
    }
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} is {value} at the end of the phase", fix="lower `train.learning_rate`")
    return metrics
