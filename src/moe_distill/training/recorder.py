"""Where the figures of a phase go: two curves, one console line a logged step, one a validation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moe_distill.progress import say
from moe_distill.training.curves import CURVE_NAME, VALIDATION_CURVE_NAME, Curve
from moe_distill.training.logging import console_line, curve_columns, curve_row, step_row, warn_of_collapse
from moe_distill.training.step import Outcome, Update
from moe_distill.training.trainer import Counters


@dataclass(frozen=True)
class RecorderSettings:
    """What is recorded, and where."""

    stage: str  # names the curves and begins the lines
    last_step: int
    term_names: tuple[str, ...]  # that can appear: the columns of the curves
    num_experts: int
    work: Path  # the growing curves, kept over a kill
    curves: Path  # folder that gets <stage>.tsv and <stage>_validation.tsv after every validation
    on_validation: Callable[[], None]  # called when they are up to date


class Recorder:
    """Writes the curves of a phase; `open` first, at the step where the phase begins or continues."""

    def __init__(self, settings: RecorderSettings) -> None:
        self._settings = settings

    def open(self, step: int) -> None:
        columns = curve_columns(self._settings.term_names, self._settings.num_experts)
        self._curve = Curve(self._settings.work / CURVE_NAME, columns, step)
        self._validation_curve = Curve(self._settings.work / VALIDATION_CURVE_NAME, columns, step)

    def record_step(self, step: int, update: Update, learning_rate: float, counters: Counters) -> None:
        settings = self._settings
        self._curve.append(step, step_row(update, learning_rate, counters))
        say(console_line(settings.stage, step, settings.last_step, update.outcome, learning_rate, counters))
        warn_of_collapse(settings.stage, update.outcome)

    def record_validation(self, step: int, outcome: Outcome, counters: Counters) -> None:
        settings = self._settings
        self._validation_curve.append(step, curve_row(outcome, counters))
        say(f"{settings.stage}  step {step}: validation {outcome.bits_per_byte:.4f} bits per byte")
        self._curve.publish(settings.curves / f"{settings.stage}.tsv")
        self._validation_curve.publish(settings.curves / f"{settings.stage}_validation.tsv")
        settings.on_validation()
