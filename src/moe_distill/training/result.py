"""How a phase ended, and the figures that its stage writes of it."""

import math
from dataclasses import dataclass

from moe_distill.errors import DivergenceError
from moe_distill.training.recorder import expert_values, term_values
from moe_distill.training.step import StepMetrics


@dataclass(frozen=True)
class Result:
    """How a phase ended; the student holds the weights to export."""

    final: StepMetrics  # on the validation windows, under the last objective
    steps: int
    stopped_early: bool
    skipped_steps: int
    tokens_per_second: float
    kd_weight: float | None = None  # that the teacher had earned last; None where it was not measured


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
