"""The figures of metrics/train_kd.json, train_router.json and control.json."""

import math

from moe_distill.errors import DivergenceError
from moe_distill.training.logging import expert_values, term_values
from moe_distill.training.loop import Result


def training_figures(result: Result) -> dict[str, float]:
    """How a phase ended, and every term on the validation windows with the weights that are exported.

    Raises:
        DivergenceError: a value on the validation windows is not finite.
    """
    figures = {
        "steps": float(result.steps),
        "stopped_early": float(result.stopped_early),
        "skipped_steps": float(result.skipped_steps),
        "train_tokens_per_second": result.tokens_per_second,
        "validation_bits_per_byte": result.final.bits_per_byte,
        "validation_total": result.final.total,
        **{f"validation_{name}": value for name, value in term_values(result.final).items()},
        **expert_values(result.final),
    }
    for name, value in figures.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} is {value} at the end of the phase", fix="lower `train.learning_rate`")
    return figures
