"""A plan of round numbers, so that every figure can be worked out by hand."""

from dataclasses import replace
from typing import Any

from moe_distill.config.params import Params
from moe_distill.planning.amounts import Amounts, StoredBytes
from moe_distill.planning.devices import DEVICES
from moe_distill.planning.model_work import ModelWork
from moe_distill.planning.rates import Rates
from moe_distill.planning.stage_costs import Plan
from tests.params import fixed_params

TEACHER = ModelWork(
    parameters=1000,
    body=600,
    head=200,
    rows=20,
    hidden_size=10,
    layers=2,
    heads=2,
    head_size=8,
    width=30,
    experts=4,
    last_block=50,
)
STUDENT = replace(TEACHER, parameters=10**6, experts=0, last_block=0)
AMOUNTS = Amounts(
    {"train": 100.0, "validation": 10.0}, {"train": 100.0, "validation": 10.0}, teacher_length=50.0, student_length=60.0
)
STORED = StoredBytes(corpus=5e6, teacher=40e6, student=20e6, windows=1e6, shards=8e6, head=2e6)
RATES = Rates(
    capture_position=2.0,
    training_token={"control": 1.0, "train_kd": 2.0, "train_router": 3.0},
    optimizer_step=7.0,
    target_window=0.0,
    validation_token=0.5,
    score_token=0.25,
    compare_token=0.125,
    memory={"teacher": 5e9, "train_kd": 6e9},
)
TRAIN = {
    "max_steps": 100,
    "batch_windows": 8,
    "micro_batch_windows": 2,
    "validate_every": 10,
    "validation_windows": 4,
    "checkpoint_every": 50,
    "loader_workers": 0,
}


def make_params(profile: str = "test", **changes: Any) -> Params:
    """Those of a shipped profile with the steps of `TRAIN`; a change is a key of `train`, or a section."""
    values = fixed_params(profile).model_dump()
    values["experiment"]["curriculum"] = {"phase1_share": 0.2, "curriculum_share": 1.0}
    values["profile"]["train"] |= TRAIN | {name: each for name, each in changes.items() if name in TRAIN}
    values["profile"] |= {name: each for name, each in changes.items() if name in values["profile"]}
    return Params.model_validate(values)


def make_plan(params: Params | None = None, **changes: Any) -> Plan:
    plan = Plan(params or make_params(), DEVICES["T4"], TEACHER, STUDENT, AMOUNTS, STORED, RATES, False)
    return replace(plan, **changes)
