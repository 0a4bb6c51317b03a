"""When to stop, and which weights to keep: validation bits-per-byte alone decides (R10)."""

import math
from dataclasses import dataclass, replace

from moe_distill.config.params import EarlyStopping


@dataclass(frozen=True)
class EarlyStoppingState:
    """What has been seen since the last ramp was complete."""

    best: float | None = None  # lowest bits per byte: its weights are kept
    best_step: int = 0
    reference: float | None = None  # the value that the next must undercut by min_delta
    without_progress: int = 0  # validations


def observe(watch: EarlyStoppingState, step: int, bits_per_byte: float, params: EarlyStopping) -> EarlyStoppingState:
    """Take note of a validation; call it only once the last ramp is complete. A value that is not finite is none."""
    is_finite = math.isfinite(bits_per_byte)
    is_progress = is_finite and (watch.reference is None or bits_per_byte < watch.reference - params.min_delta)
    if is_progress:
        watch = replace(watch, reference=bits_per_byte, without_progress=0)
    elif step >= params.warmup_steps:
        watch = replace(watch, without_progress=watch.without_progress + 1)
    if is_finite and (watch.best is None or bits_per_byte < watch.best):
        watch = replace(watch, best=bits_per_byte, best_step=step)
    return watch


def should_stop(watch: EarlyStoppingState, params: EarlyStopping) -> bool:
    return watch.without_progress >= params.patience
