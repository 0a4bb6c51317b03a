"""Adaptive balancing: each term scaled towards the magnitude of `lm` (R17).

The factor is an exponential moving average of the ratio of raw values lm / term, clamped, so that a weight means
the same share of the objective whatever a term's natural scale is.
"""

from collections.abc import Mapping

from moe_distill.losses.registry import TEXT_TERMS

DECAY = 0.98
LARGEST_SCALE = 10.0


def updated_scales(scales: Mapping[str, float], raw: Mapping[str, float]) -> dict[str, float]:
    """The factors after one more step.

    Args:
        scales: factors so far, by term.
        raw: raw values of this step, `lm` among them; terms that were not computed are absent.
    """
    updated = dict(scales)
    for name, value in raw.items():
        if name in TEXT_TERMS:  # their weights share out each position
            continue
        ratio = min(LARGEST_SCALE, max(1.0 / LARGEST_SCALE, raw["lm"] / max(abs(value), 1e-8)))
        updated[name] = DECAY * scales[name] + (1.0 - DECAY) * ratio if name in scales else ratio
    return updated
