"""Hours, bytes and the verdict, against arithmetic by hand on round numbers."""

import math
import random
from dataclasses import replace

import pytest

from moe_distill.config.params import Params
from moe_distill.planning.devices import DEVICES, find_device
from moe_distill.planning.rates import DISK_BYTES_PER_SECOND
from moe_distill.planning.stage_costs import (
    START_SECONDS,
    TARGET_BYTES,
    StageCost,
    first_steps,
    judge,
    made_share,
    stage_costs,
    step_seconds,
)
from moe_distill.training.trainer import phase_bytes
from tests.params import fixed_params
from tests.planning.plans import AMOUNTS, RATES, STORED, make_params, make_plan

UNKNOWN = replace(AMOUNTS, teacher_windows={"train": math.nan, "validation": math.nan})


def named(costs: list[StageCost]) -> dict[str, StageCost]:
    return {cost.stage: cost for cost in costs}


def test_every_stage_by_hand() -> None:
    costs = named(stage_costs(make_plan()))
    weights, read, held_out = 4e6, 110 * 50, 10 * 60
    assert costs["tokenize"].tokens == costs["teacher"].tokens == read
    assert costs["teacher"].seconds == START_SECONDS + 2.0 * read
    assert costs["teacher_lead"].seconds == START_SECONDS + 0.25 * held_out
    assert costs["evaluate"].seconds == START_SECONDS + (4 * 0.25 + 0.125) * held_out
    assert costs["evaluate"].tokens == 5 * held_out
    assert first_steps(make_params()) == 20
    for stage, steps, token in (("train_kd", 20, 2.0), ("train_router", 80, 3.0), ("control", 100, 1.0)):
        validated = math.ceil(steps / 10) * 4 * 60
        assert costs[stage].tokens == steps * 8 * 60 + validated
        saved = steps // 50 * 4 * weights / DISK_BYTES_PER_SECOND
        by_hand = START_SECONDS + steps * (8 * 60 * token + 7.0) + 0.5 * validated + saved
        assert costs[stage].seconds == pytest.approx(by_hand)


def test_disk_is_what_was_written_before_and_what_a_stage_works_on() -> None:
    costs = stage_costs(make_plan())
    weights, kept = 4e6, 0.0
    for cost in costs:
        kept += cost.written
        trains = cost.stage in ("train_kd", "train_router", "control")
        unfinished = phase_bytes(4 * 10**6, 4 * 10**6) - weights if trains else 0.0
        assert cost.disk == pytest.approx(kept + unfinished)
    found = named(costs)
    assert found["train_kd"].written == 3 * weights, "the student, and two moments"
    assert found["teacher"].written == STORED.shards + STORED.head
    assert kept == 5e6 + 40e6 + 20e6 + 1e6 + 10e6 + 5 * weights


def test_a_model_of_the_hub_lies_on_the_disk_of_its_cache_twice() -> None:
    p100 = make_params("p100")
    apart, together = (named(stage_costs(make_plan(p100, shares_disk_with_hub=shared))) for shared in (False, True))
    assert apart["models@teacher"].written == 40e6
    assert (together["models@teacher"].written, together["models@student"].written) == (80e6, 40e6)
    assert named(stage_costs(make_plan(shares_disk_with_hub=True)))["models@teacher"].written == 40e6, "not a tiny one"


def test_without_a_baseline_there_is_no_control_and_one_student_less() -> None:
    full, none = (named(stage_costs(make_plan(make_params(baseline=each)))) for each in ("full", "none"))
    assert set(full) - set(none) == {"control"}
    assert full["evaluate"].seconds - none["evaluate"].seconds == pytest.approx(0.25 * 600)


def test_processes_share_a_step_and_tell_each_other_its_gradient() -> None:
    alone = step_seconds(make_plan(), "control")
    shared = make_plan(make_params(launch={"processes": 2}))
    told = 2 * (1 / 2) * 4e6 / DEVICES["T4"].link
    assert step_seconds(shared, "control") == pytest.approx((alone - 7.0) / 2 + 7.0 + told)
    each_one = make_plan(make_params(launch={"processes": 4}))  # of the four micro-batches
    told = 2 * (3 / 4) * 4e6 / DEVICES["T4"].link
    assert step_seconds(each_one, "control") == pytest.approx((alone - 7.0) / 4 + 7.0 + told)
    assert named(stage_costs(shared))["teacher"].seconds == START_SECONDS + 110 * 50 * 2.0 / 2


@pytest.mark.parametrize(("workers", "seconds"), [(0, 960.0 + 7.0 + 8 * 300.0), (1, 8 * 300.0), (4, 960.0 + 7.0)])
def test_a_step_waits_for_its_targets_where_these_take_longer(workers: int, seconds: float) -> None:
    params = make_params(loader_workers=workers)
    params = with_memory(params, 0)
    plan = make_plan(params, rates=replace(RATES, target_window=300.0))
    assert step_seconds(plan, "train_kd") == pytest.approx(seconds)
    assert step_seconds(plan, "control") == 480.0 + 7.0, "LM alone has none"


def test_targets_that_are_kept_are_made_in_the_first_epoch_alone() -> None:
    """100 steps of 8 windows are 8 epochs of 100."""
    plan = make_plan(with_memory(make_params(), 10**6), rates=replace(RATES, target_window=300.0))
    assert step_seconds(plan, "train_kd") == pytest.approx(967.0 + 8 * 300.0 / 8)
    capture = plan.params.profile.teacher
    half = round(50 * 60 * (capture.k + capture.tail_samples) * TARGET_BYTES / 1e6)
    plan = make_plan(with_memory(make_params(), half), rates=replace(RATES, target_window=300.0))
    assert step_seconds(plan, "train_kd") == pytest.approx(967.0 + 8 * 300.0 * (1 / 8 + 7 / 8 / 2), rel=0.1)


@pytest.mark.parametrize("n_caches", [1, 2, 4])
def test_each_process_keeps_targets_of_its_own(n_caches: int) -> None:
    """Held against windows dealt at random to processes, whose caches have room for 60 of 100 together."""
    generator, n_windows, n_epochs = random.Random(0), 100, 8
    kept, made = [set[int]() for _ in range(n_caches)], 0
    for window in [*range(n_windows)] * n_epochs:
        cache = generator.choice(kept)
        made += window not in cache
        if len(cache) < 60 // n_caches:
            cache.add(window)
    params = make_params()
    capture, train = params.profile.teacher, params.profile.train
    room = 60 * 60 * (capture.k + capture.tail_samples) * TARGET_BYTES / 1e6
    train = train.model_copy(update={"target_memory_mb": room, "loader_workers": n_caches})
    plan = make_plan(params.model_copy(update={"profile": params.profile.model_copy(update={"train": train})}))
    assert made_share(plan) == pytest.approx(made / n_windows / n_epochs, abs=0.02)


def with_memory(params: Params, megabytes: int) -> Params:
    train = params.profile.train.model_copy(update={"target_memory_mb": megabytes})
    return params.model_copy(update={"profile": params.profile.model_copy(update={"train": train})})


def test_what_is_not_known_makes_nothing_else_up() -> None:
    costs = named(stage_costs(make_plan(amounts=UNKNOWN)))
    assert math.isnan(costs["teacher"].seconds)
    assert math.isfinite(costs["train_kd"].seconds)
    verdict = judge(list(costs.values()), 12.0, 1e12, None)
    assert math.isnan(verdict.hours)
    assert math.isnan(verdict.sessions)


@pytest.mark.parametrize(("wanted", "read"), [(5, 5), (10, 10), (11, 10)])
def test_a_correction_is_counted(wanted: int, read: int) -> None:
    """It is measured on no more than the 10 validation windows that there are."""
    correction = {
        "steps": 3,
        "learning_rate": 1e-4,
        "rank": 4,
        "train_experts": False,
        "train_router": False,
        "batch_windows": 4,
        "micro_batch_windows": 1,
        "gradient_checkpointing": True,
        "validation_windows": wanted,
        "checkpoint_every": 1,
    }
    models = fixed_params().profile.models.model_dump() | {"teacher_correction": correction}
    cost = named(stage_costs(make_plan(make_params(models=models))))["teacher_correction"]
    assert cost.tokens == (3 * 4 + 2 * read) * 50
    assert cost.seconds == START_SECONDS + (3 * 12 + 2 * read) * 50 * 2.0
    assert cost.written == 2 * 1000, "fp16 on a T4"
    on_a_cpu = make_plan(make_params(models=models), device=find_device("CPU"))
    assert named(stage_costs(on_a_cpu))["teacher_correction"].written == 4 * 1000


def test_a_validation_reads_no_more_windows_than_there_are() -> None:
    """There are 10; all are read where more are asked for, and where it is not known how many there are, those."""
    some, all_of_them, more = (
        named(stage_costs(make_plan(make_params(validation_windows=number)))) for number in (4, 10, 400)
    )
    unknown = replace(AMOUNTS, student_windows={"train": math.nan, "validation": math.nan})
    not_known = named(stage_costs(make_plan(make_params(validation_windows=400), amounts=unknown)))
    for stage, validations in (("train_kd", 2), ("train_router", 8), ("control", 10)):
        assert more[stage] == all_of_them[stage]
        assert more[stage].tokens - some[stage].tokens == validations * 6 * 60
        assert not_known[stage].tokens - some[stage].tokens == validations * 396 * 60


@pytest.mark.parametrize(("hours", "sessions"), [(1.0, 3), (1.25, 2), (2.5, 1), (12.0, 1)])
def test_sessions_are_counted_whole(hours: float, sessions: int) -> None:
    cost = StageCost("a", 0.0, 2.5 * 3600 / 2, 5e9, 0.0, 8e9)
    verdict = judge([cost, replace(cost, disk=9e9)], hours, 8.5e9, 4e9)
    assert (verdict.hours, verdict.sessions) == (2.5, sessions)
    assert (verdict.disk, verdict.disk_fits, verdict.memory_fits) == (9e9, False, False)
    fitting = judge([cost], hours, 8e9, 5e9)
    assert (fitting.disk, fitting.disk_fits, fitting.memory_fits) == (8e9, True, True)
