"""The learning rate's schedule, of every training here."""

import math


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then half a cosine to `final_fraction`.

    The first step's share is above 0; the cosine ends at `total_steps`, and stays there.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    position = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * position))
