"""What is said and recorded of a step: one line, one row (R5, R8, R9, R11)."""

from collections.abc import Mapping

from moe_distill.losses.router import expert_entropy
from moe_distill.progress import say
from moe_distill.training.step import Outcome, Update
from moe_distill.training.trainer import Counters

COLLAPSED_SHARE = 0.95


def curve_columns(term_names: tuple[str, ...], num_experts: int) -> list[str]:
    """The columns of a phase's curves, beside `step`."""
    terms = [f"{name}_{kind}" for name in term_names for kind in ("raw", "weighted")]
    experts = [f"expert_share_{expert}" for expert in range(num_experts)]
    counters = ["learning_rate", "gradient_norm", "loss_scale", "skipped_steps", "padding_share"]
    if experts:
        experts += ["expert_entropy", "gate_divergence"]
    return ["total", "bits_per_byte", *terms, *experts, *counters]


def curve_row(outcome: Outcome, counters: Counters) -> dict[str, float]:
    """The values that a validation has, and a step too."""
    row = {"total": outcome.total, "bits_per_byte": outcome.bits_per_byte, "padding_share": outcome.padding_share}
    return row | term_values(outcome) | expert_values(outcome) | {"skipped_steps": float(counters.skipped_steps)}


def step_row(update: Update, learning_rate: float, counters: Counters) -> dict[str, float]:
    """The values of a step."""
    return curve_row(update.outcome, counters) | {
        "learning_rate": learning_rate,
        "gradient_norm": update.gradient_norm,
        "loss_scale": update.loss_scale,
    }


def term_values(outcome: Outcome) -> dict[str, float]:
    """Raw and weighted value of each term that was computed."""
    values = {f"{name}_raw": float(term.raw) for name, term in outcome.terms.items()}
    return values | {f"{name}_weighted": float(term.weighted) for name, term in outcome.terms.items()}


def expert_values(outcome: Outcome) -> dict[str, float]:
    """Share of each expert in the router's mixtures, the shares' entropy and the gate's divergence in nats."""
    use = outcome.experts
    if use is None:
        return {}
    values = {f"expert_share_{expert}": float(share) for expert, share in enumerate(use.share_E)}
    return values | {"expert_entropy": float(expert_entropy(use.share_E)), "gate_divergence": use.divergence}


def console_line(
    stage: str, step: int, last_step: int, outcome: Outcome, learning_rate: float, counters: Counters
) -> str:
    """One line a step that is logged; the total is the sum of what stands behind it."""
    terms = " + ".join(f"{name} {float(term.weighted):.3f}" for name, term in outcome.terms.items())
    speed = counters.tokens / max(counters.seconds, 1e-9)
    skipped = f"  skipped {counters.skipped_steps}" if counters.skipped_steps else ""
    return (
        f"{stage}  step {step}/{last_step}  total {outcome.total:.3f} = {terms}  "
        f"lr {learning_rate:.3e}  {speed:,.0f} tokens/s{skipped}"
    )


def warn_of_collapse(stage: str, outcome: Outcome) -> None:
    """Name the expert that takes nearly everything."""
    shares: Mapping[str, float] = expert_values(outcome)
    for name, share in shares.items():
        if name.startswith("expert_share_") and share > COLLAPSED_SHARE:
            expert = name.removeprefix("expert_share_")
            say(f"warning: {stage}: the router has collapsed: expert {expert} takes {share:.0%} of the weight")
