"""What is recorded of a step or validation: one row of a curve, one console line (R5, R8, R9, R11)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moe_distill.log import log
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME, Curve
from moe_distill.training.step import StepMetrics, Update
from moe_distill.training.trainer import Counters

COLLAPSED_SHARE = 0.95
COLUMNS = 120  # of a line


def curve_columns(term_names: tuple[str, ...], num_experts: int, measures_kd_weight: bool = False) -> list[str]:
    """The columns of a phase's curves, beside `step`."""
    terms = [f"{name}_{kind}" for name in term_names for kind in ("raw", "weighted")]
    experts = [f"expert_share_{expert}" for expert in range(num_experts)]
    counters = ["learning_rate", "gradient_norm", "loss_scale", "skipped_steps", "padding_share"]
    if experts:
        experts += ["expert_entropy", "gate_divergence"]
    weight = ["kd_weight"] if measures_kd_weight else []
    return ["total", "bits_per_byte", *terms, *weight, *experts, *counters]


def curve_row(metrics: StepMetrics, counters: Counters) -> dict[str, float]:
    """The values that a validation has, and a step too."""
    row = {
        "total": metrics.total,
        "bits_per_byte": metrics.bits_per_byte,
        "padding_share": metrics.counts.padding_share,
    }
    weight = {} if counters.kd_weight is None else {"kd_weight": counters.kd_weight}
    row |= term_values(metrics) | weight | expert_values(metrics)
    return row | {"skipped_steps": float(counters.skipped_steps)}


def step_row(update: Update, learning_rate: float, counters: Counters) -> dict[str, float]:
    """The values of a step."""
    return curve_row(update.metrics, counters) | {
        "learning_rate": learning_rate,
        "gradient_norm": update.gradient_norm,
        "loss_scale": update.loss_scale,
    }


def term_values(metrics: StepMetrics) -> dict[str, float]:
    """Raw and weighted value of each term that was computed."""
    values = {f"{name}_raw": term.raw for name, term in metrics.terms.items()}
    return values | {f"{name}_weighted": term.weighted for name, term in metrics.terms.items()}


def expert_values(metrics: StepMetrics) -> dict[str, float]:
    """Share of each expert in the router's mixtures, the shares' entropy and the gate's divergence in nats."""
    use = metrics.experts
    if use is None:
        return {}
    values = {f"expert_share_{expert}": share for expert, share in enumerate(use.shares)}
    return values | {"expert_entropy": use.entropy, "gate_divergence": use.divergence}


def console_line(
    stage: str, step: int, last_step: int, metrics: StepMetrics, learning_rate: float, counters: Counters
) -> str:
    """One line of at most COLUMNS a step that is logged.

    The terms are as they are before they are weighted, so that `lm` is nats per token in every stage: `lm` and `kd`
    first, then what adds most to the total, as far as the line has room. What would read 0.000 is left out.
    """
    speed = counters.tokens / max(counters.seconds, 1e-9)
    skipped = f"  skipped {counters.skipped_steps}" if counters.skipped_steps else ""
    line = f"{stage}: step {step:,}/{last_step:,}  total {metrics.total:.3f}"
    end = f"  lr {learning_rate:.1e}  {speed:,.0f} tokens/s{skipped}"
    order = sorted(metrics.terms.items(), key=lambda each: (each[0] != "lm", each[0] != "kd", -abs(each[1].weighted)))
    for name, term in order:
        told = f"  {name} {term.raw:.3f}"
        if float(f"{term.raw:.3f}") and len(line + told + end) <= COLUMNS:
            line += told
    return line + end


def warn_of_collapse(stage: str, metrics: StepMetrics) -> None:
    """Name the expert that takes nearly everything."""
    for expert, share in enumerate(metrics.experts.shares if metrics.experts else ()):
        if share > COLLAPSED_SHARE:
            log(f"warning: {stage}: the router has collapsed: expert {expert} takes {share:.0%} of the weight")


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
    measures_kd_weight: bool = False  # a column: the weight of a step's KD, or what a validation has set it to


class Recorder:
    """Writes the curves of a phase; `open` first, at the step where the phase begins or continues."""

    def __init__(self, settings: RecorderSettings) -> None:
        self._settings = settings

    def open(self, step: int) -> None:
        settings = self._settings
        columns = curve_columns(settings.term_names, settings.num_experts, settings.measures_kd_weight)
        self._curve = Curve(self._settings.work / CURVE_NAME, columns, step)
        self._validation_curve = Curve(self._settings.work / VALIDATION_CURVE_NAME, columns, step)

    def record_step(self, step: int, update: Update, learning_rate: float, counters: Counters) -> None:
        settings = self._settings
        self._curve.append(step, step_row(update, learning_rate, counters))
        log(console_line(settings.stage, step, settings.last_step, update.metrics, learning_rate, counters))
        warn_of_collapse(settings.stage, update.metrics)

    def record_validation(self, step: int, metrics: StepMetrics, counters: Counters) -> None:
        settings = self._settings
        self._validation_curve.append(step, curve_row(metrics, counters))
        weight = "" if counters.kd_weight is None else f", KD weight {counters.kd_weight:.3f}"
        log(f"{settings.stage}: step {step:,}: validation {metrics.bits_per_byte:.4f} bits per byte{weight}")
        self._curve.publish(settings.curves / f"{settings.stage}.tsv")
        self._validation_curve.publish(settings.curves / f"{settings.stage}_validation.tsv")
        settings.on_validation()
