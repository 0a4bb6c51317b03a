"""Weights and schedules as functions of progress."""

import re
from itertools import pairwise

import pytest

from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.training.curriculum import (
    RAMPS,
    experts_warning,
    linear,
    phase1_steps,
    phase2_progress,
    progress_at,
    ramp,
)
from moe_distill.training.schedule import objective_at
from tests.params import ROOT

NOTHING = 1e-12  # rounding where a ramp begins
THIRD = pytest.approx(1 / 3)
R3_PROGRESS = (0.0, 0.2, 0.5, 0.8, 1.0)
R3_TABLE = {
    "feature": [0, THIRD, 1, 1, 1],
    "attention": [0, THIRD, 1, 1, 1],
    "layerwise": [0, 0, THIRD, 1, 1],
    "contrastive": [0, 0, 0, THIRD, 1],
}


def test_r03_table_of_weights() -> None:
    assert R3_TABLE.keys() == set(HIDDEN_TERMS), "each term needs a line in the table"
    for term, weights in R3_TABLE.items():
        assert [ramp(progress, 0.1, term) for progress in R3_PROGRESS] == weights, term


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.1])
def test_r03_the_first_tenth_is_lm_and_kd_alone(progress: float) -> None:
    assert all(ramp(progress, 0.1, term) < NOTHING for term in RAMPS)


def test_r03_half_way_up_each_ramp() -> None:
    for progress, term in ((0.25, "feature"), (0.25, "attention"), (0.55, "layerwise"), (0.85, "contrastive")):
        assert ramp(progress, 0.1, term) == pytest.approx(0.5)


def test_r04_router_terms_follow_the_curriculum() -> None:
    assert set(RAMPS) == {*HIDDEN_TERMS, *ROUTER_TERMS}
    for term in ROUTER_TERMS:
        assert [ramp(progress, 0.1, term) for progress in (0.0, 0.05, 0.2, 0.5, 1.0)] == [0, 0, THIRD, 1, 1]


def test_every_term_has_its_formula_on_the_page() -> None:
    page = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    in_tables = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    missing = {*HIDDEN_TERMS, *ROUTER_TERMS} - set(re.findall(r"`(\w+)`", in_tables))
    assert missing == set(), "each needs a row in section 6 of docs/how-it-works.md"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("term", sorted(RAMPS))
def test_r03_another_first_phase_keeps_every_ramp_whole(share: float, term: str) -> None:
    weights = [ramp(step / 1000, share, term) for step in range(1001)]
    assert weights[0] == 0.0
    assert all(weight < NOTHING for step, weight in enumerate(weights) if step / 1000 <= share)
    assert weights[-1] == pytest.approx(1.0)
    steepest = max(later - earlier for earlier, later in pairwise(weights))
    assert steepest <= 3.0 / (1.0 - share) / 1000 + 1e-9, "continuous: a ramp takes a third of what remains"
    assert weights == sorted(weights)


def test_r03_progress_of_steps() -> None:
    assert [progress_at(step, 1000, 0.8) for step in (0, 80, 400, 800, 999)] == [0.0, 0.1, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("max_steps", "curriculum_share", "phase1_share", "expected"),
    [(25_000, 0.8, 0.1, 2000), (1000, 1.0, 0.1, 100), (60, 0.8, 0.1, 5), (3, 0.8, 0.1, 1), (1000, 0.8, 0.5, 400)],
)
def test_r03_steps_of_the_first_phase(
    max_steps: int, curriculum_share: float, phase1_share: float, expected: int
) -> None:
    steps = phase1_steps(max_steps, curriculum_share, phase1_share)
    assert steps == expected
    if max_steps >= 1000:
        assert progress_at(steps, max_steps, curriculum_share) == pytest.approx(phase1_share)


def test_r28_router_schedules_run_over_the_second_phase() -> None:
    assert [phase2_progress(progress, 0.1) for progress in (0.0, 0.05, 0.1)] == [0.0] * 3
    assert phase2_progress(0.55, 0.1) == pytest.approx(0.5)
    assert phase2_progress(1.0, 0.1) == pytest.approx(1.0)
    assert [linear(progress, 2.0, 1.0) for progress in (0.0, 0.25, 1.0)] == [2.0, 1.75, 1.0]
    assert [round(linear(progress, 1, 4)) for progress in (0.0, 0.34, 0.67, 1.0)] == [1, 2, 3, 4]
    assert linear(1.0, 0.1, 0.0) == 0.0


@pytest.mark.parametrize(("inner", "expected"), [(0.1, 1), (0.2, 2), (0.4, 2), (0.6, 3), (0.8, 3), (0.9, 4)])
def test_r28_as_many_experts_are_mixed_as_are_nearest(
    experiment: ExperimentParams, train: Train, inner: float, expected: int
) -> None:
    router = experiment.router.model_copy(update={"experts_start": 1, "experts_end": 4})
    step = round((0.1 + 0.9 * inner) * 0.8 * 1000)
    found = objective_at(
        step, experiment.model_copy(update={"router": router}), train.model_copy(update={"max_steps": 1000}), {}
    )
    assert found.router.n_experts == expected


def test_r28_temperature_and_noise_of_the_gate_follow_the_schedule(experiment: ExperimentParams, train: Train) -> None:
    """From the end of the first phase, at step 80, to that of the curriculum, at step 800; then they stay."""
    changes = {"temperature_start": 3.0, "temperature_end": 1.0, "noise": 0.4}
    changed = experiment.model_copy(update={"router": experiment.router.model_copy(update=changes)})
    long = train.model_copy(update={"max_steps": 1000})
    found = [objective_at(step, changed, long, {}).router for step in (0, 80, 440, 800, 999)]
    assert [each.temperature for each in found] == pytest.approx([3.0, 3.0, 2.0, 1.0, 1.0])
    assert [each.noise for each in found] == pytest.approx([0.4, 0.4, 0.2, 0.0, 0.0], abs=1e-9)


def test_r28_more_experts_than_the_teacher_has_are_told_of(experiment: ExperimentParams) -> None:
    assert experiment.router.experts_end == 3
    assert experts_warning(experiment, 0) is None
    assert experts_warning(experiment, 3) is None
    assert "go up to 3, the teacher has 2 experts" in (experts_warning(experiment, 2) or "")
    without = experiment.losses.model_copy(update=dict.fromkeys(ROUTER_TERMS, 0.0))
    assert experts_warning(experiment.model_copy(update={"losses": without}), 2) is None
