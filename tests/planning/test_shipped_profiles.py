"""The profiles of the real pair, held against what they promise by the plan's own arithmetic."""

import pytest

from moe_distill.config.params import Params
from moe_distill.planning.amounts import count_amounts, count_bytes, row_share
from moe_distill.planning.devices import DEVICES
from moe_distill.planning.model_configs import find_configs
from moe_distill.planning.model_work import count_work
from moe_distill.planning.rates import estimate_rates
from moe_distill.planning.stage_costs import Plan, StageCost, Verdict, judge, stage_costs
from tests.params import fixed_params, shipped_profile

CARDS = {"p100": "P100", "t4x2": "T4"}


@pytest.fixture(scope="module", params=CARDS)
def planned(request: pytest.FixtureRequest) -> tuple[Params, list[StageCost], Verdict]:
    """Before anything is downloaded; the hub's cache lies on another disk."""
    params, device = fixed_params(request.param), DEVICES[CARDS[request.param]]
    teacher, student = find_configs(params.profile)
    assert teacher is not None
    assert student is not None
    works = count_work(teacher), count_work(student)
    amounts = count_amounts(params, {}, {})
    stored = count_bytes(params, amounts, (works[0], teacher), (works[1], student), device)
    rates = estimate_rates(params, device, *works, row_share(params, works[0]))
    costs = stage_costs(Plan(params, device, *works, amounts, stored, rates, False))
    return params, costs, judge(costs, 12.0, 20e9, device.memory)


def test_two_sessions_of_12_hours_and_20_gb_suffice(planned: tuple[Params, list[StageCost], Verdict]) -> None:
    _, costs, verdict = planned
    assert verdict.sessions <= 2
    assert verdict.hours < 20, "and a fifth is left for a card that is slower than its table"
    assert verdict.disk_fits
    assert verdict.memory_fits
    assert [cost.stage for cost in costs][-1] == "evaluate"
    assert "control" not in [cost.stage for cost in costs]


def test_12_gb_of_memory_suffice_for_capture_and_both_phases(planned: tuple[Params, list[StageCost], Verdict]) -> None:
    _, costs, _ = planned
    assert {cost.stage for cost in costs if cost.memory} == {
        "teacher",
        "teacher_lead",
        "train_kd",
        "train_router",
        "evaluate",
    }
    assert max(cost.memory for cost in costs) <= 12e9


def test_what_the_run_is_to_be(planned: tuple[Params, list[StageCost], Verdict]) -> None:
    profile = planned[0].profile
    assert profile.train.batch_windows == 32
    assert (profile.train.learning_rate, profile.train.router_learning_rate) == (5e-5, 1e-4)
    assert profile.windows.student_max_length == 384
    assert profile.teacher.k == 64
    assert profile.baseline == "none"
    assert "bf16" not in (profile.teacher.precision, planned[0].experiment.precision)


def test_t4x2_is_p100_on_two_processes() -> None:
    one, two = (shipped_profile(name).model_dump() for name in ("p100", "t4x2"))
    assert (one.pop("launch"), two.pop("launch")) == ({"processes": 1}, {"processes": 2})
    assert one["train"].pop("loader_workers") == 2 * two["train"].pop("loader_workers")
    assert one == two


def test_a_p100_needs_20_hours_for_25000_steps_of_lm_alone() -> None:
    """The arithmetic by hand: 274 million tokens x 6 x 135 million weights at 3 TFLOP/s, attention left out."""
    _, student = find_configs(fixed_params("p100").profile)
    assert student is not None
    work, tokens = count_work(student), 25_000 * 32 * 343
    by_hand = tokens * 6 * 135e6 / 3e12 / 3600
    assert by_hand == pytest.approx(20.6, abs=0.1)
    of_weights = tokens * 6 * (work.body + work.head) / DEVICES["P100"].flops["fp16"] / 3600
    assert of_weights == pytest.approx(by_hand, rel=0.01)
