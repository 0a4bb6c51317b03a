"""What is asked of the student when: pure functions of progress in [0, 1] (R3, R28).

Progress = min(1, step / curriculum steps). LM and KD are on throughout. In the first phase (10% of the progress
by default) nothing else is; then ramps open one after the other (`RAMPS`), each linear from 0 to the term's full
weight. With another length of the first phase they share what remains in the same proportions, so that none is cut.
"""

from moe_distill.config.params import ExperimentParams

PHASE1_END = 0.1
RAMPS = {  # term -> the progress at which its ramp begins and ends
    "feature": (0.1, 0.4),
    "attention": (0.1, 0.4),
    "router_feature": (0.1, 0.4),
    "router_attention": (0.1, 0.4),
    "router_balance": (0.1, 0.4),
    "router_importance": (0.1, 0.4),
    "layerwise": (0.4, 0.7),
    "contrastive": (0.7, 1.0),
}


def progress_at(step: int, max_steps: int, curriculum_share: float) -> float:
    """Progress of the curriculum at an optimizer step; 1 from `curriculum_share * max_steps` on."""
    return min(1.0, step / (max_steps * curriculum_share))


def phase1_steps(max_steps: int, curriculum_share: float, phase1_share: float) -> int:
    """Optimizer steps of the first phase: those before progress reaches `phase1_share`; at least one."""
    return max(1, round(max_steps * curriculum_share * phase1_share))


def ramp(progress: float, phase1_share: float, term: str) -> float:
    """Fraction of its full weight that a term has."""
    if progress <= phase1_share:
        return 0.0
    position = PHASE1_END + (1.0 - PHASE1_END) * (progress - phase1_share) / (1.0 - phase1_share)
    start, end = RAMPS[term]
    return min(1.0, max(0.0, (position - start) / (end - start)))


def phase2_progress(progress: float, phase1_share: float) -> float:
    """Progress inside the second phase, [0, 1]: what the router's schedules run on."""
    return max(0.0, (progress - phase1_share) / (1.0 - phase1_share))


def linear(progress: float, start: float, end: float) -> float:
    """A schedule from `start` to `end`."""
    return start + (end - start) * progress


def experts_warning(experiment: ExperimentParams, num_experts: int) -> str | None:
    """What to say where the router's schedule asks for more experts than the teacher's last block has.

    Args:
        num_experts: 0 = that is dense, and there is no router.
    """
    router = experiment.router
    asked = max(router.experts_start, router.experts_end)
    is_used = any(weight > 0.0 for name, weight in experiment.losses if name.startswith("router_"))
    if not is_used or not 0 < num_experts < asked:
        return None
    keys = "`router.experts_start` and `router.experts_end`"
    return f"{keys} go up to {asked}, the teacher has {num_experts} experts: no more are mixed"
