"""The figures of metrics/train_kd.json, train_router.json and control.json."""

from moe_distill.training.logging import expert_values, term_values
from moe_distill.training.loop import Result


def training_figures(result: Result) -> dict[str, float]:
    """How a phase ended, and every term on the validation windows with the weights that are exported."""
    return {
        "steps": float(result.steps),
        "stopped_early": float(result.stopped_early),
        "skipped_steps": float(result.skipped_steps),
        "train_tokens_per_second": result.tokens_per_second,
        "validation_bits_per_byte": result.final.bits_per_byte,
        "validation_total": result.final.total,
        **{f"validation_{name}": value for name, value in term_values(result.final).items()},
        **expert_values(result.final),
    }
