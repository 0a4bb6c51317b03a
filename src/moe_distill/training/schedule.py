"""What holds at an optimizer step: pure functions of the step and the parameters."""

from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.training.curriculum import linear, phase1_steps, phase2_progress, progress_at, ramp
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT
from moe_distill.training.objective import Objective
from moe_distill.training.routing import RouterSettings
from moe_distill.utils.learning_rate import warmup_cosine

NO_ROUTER = RouterSettings(temperature=1.0, n_experts=1, noise=0.0)
LM_ONLY = Objective(0.0, dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.0), NO_ROUTER)  # of the LM baseline


def learning_rate_fraction(step: int, train: Train) -> float:
    """Share of the peak learning rate at a step counted from 0; both phases follow one schedule."""
    warmup_steps = max(1, round(train.warmup_fraction * train.max_steps))
    return warmup_cosine(step, warmup_steps, train.max_steps, train.final_learning_rate_fraction)


def first_phase_steps(experiment: ExperimentParams, train: Train) -> int:
    """Optimizer steps of `train_kd`; `train_router` takes the rest."""
    return phase1_steps(train.max_steps, experiment.curriculum.curriculum_share, experiment.curriculum.phase1_share)


def ramps_are_complete(step: int, experiment: ExperimentParams, train: Train) -> bool:
    """True once every term has its full weight: early stopping and the choice of the best begin here (R10)."""
    return progress_at(step, train.max_steps, experiment.curriculum.curriculum_share) >= 1.0


def noise_seed(seed: int, step: int) -> int:
    """Of all that is drawn at a step: the gate's exploration noise, and the student's dropout."""
    return seed * 1_000_003 + step


def kd_weight_is_due(step: int, train: Train) -> bool:
    """Whether `kd_weight: auto` is measured between two validations.

    Before the first one, whenever the steps have doubled: an untrained student is soon another.
    """
    return step < train.validate_every and step.bit_count() == 1


def objective_at(
    step: int, experiment: ExperimentParams, train: Train, scales: dict[str, float], earned: float | None = None
) -> Objective:
    """The objective of distillation at a step counted from 0.

    Args:
        scales: factor of each term by adaptive balancing; a term without one has 1.
        earned: where `kd_weight` is auto: the weight that the teacher has earned, which the other terms follow; they
            have theirs in full where KD has its largest.
    """
    progress = progress_at(step, train.max_steps, experiment.curriculum.curriculum_share)
    share = experiment.curriculum.phase1_share
    maxima = experiment.losses.model_dump()
    trust = 1.0 if earned is None else earned / LARGEST_KD_WEIGHT
    weights = {
        name: trust * maxima[name] * ramp(progress, share, name) * scales.get(name, 1.0)
        for name in HIDDEN_TERMS + ROUTER_TERMS
    }
    inner, router = phase2_progress(progress, share), experiment.router
    settings = RouterSettings(
        temperature=linear(inner, router.temperature_start, router.temperature_end),
        n_experts=round(linear(inner, router.experts_start, router.experts_end)),
        noise=linear(inner, router.noise, 0.0),
    )
    kd_weight = earned if experiment.kd_weight == "auto" else experiment.kd_weight
    assert kd_weight is not None
    return Objective(kd_weight, weights, settings)
