"""A step that several processes share is the step of one, whatever each has got, and leaves all with one student."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from moe_distill.batches.batch import Batch
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.training.objective import Objective, Student
from moe_distill.training.optimizer import make_optimizer
from moe_distill.training.routing import RouterSettings
from moe_distill.training.step import StepMetrics, ValidationSet, optimizer_step, validate
from moe_distill.utils.device import Runtime
from moe_distill.utils.processes import ALONE, Processes
from tests.forked_ranks import run_ranks
from tests.training.conftest import make_batch, make_student, make_teacher_head
from tests.training.folders import make_params

COUNT = 3
FULL = Objective(
    kd_weight=0.7,
    weights=dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.3),
    router=RouterSettings(temperature=1.5, n_experts=2, noise=0.5),
)
RUNTIMES = {"fp32": Runtime(torch.device("cpu"), torch.float32), "fp16": Runtime(torch.device("cpu"), torch.float16)}


def parts_of(case: str) -> list[Batch]:
    """One part a process: with all that a step can have, and without states or without any target."""
    if case == "nobody has states":
        return [make_batch(seed, [12, 9], with_runs=False) for seed in (1, 2, 3)]
    return [make_batch(1, [12, 9]), make_batch(2, [12, 9], with_runs=False), make_batch(3, [12, 9], with_target=False)]


def two_steps(processes: Processes, parts: list[Batch], precision: str) -> tuple[Student, list[StepMetrics]]:
    """Two steps over parts and a validation of which the last process has no part."""
    student, runtime = make_student(make_teacher_head(), dropout=0.2), RUNTIMES[precision]
    optimizer = make_optimizer(student.model, student.heads, make_params().profile.train)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=runtime.scales_loss)
    student.model.train()
    seen = [
        optimizer_step(student, parts, FULL, optimizer, scaler, runtime, 1.0, processes=processes) for _ in range(2)
    ]
    assert all(update.applied for update in seen)
    whole = [make_batch(4, [12]), make_batch(5, [7])]
    own = [number for number in range(2) if processes.count == 1 or number == processes.rank]
    firsts = [0, whole[0].counts.tokens]
    held_out = ValidationSet([whole[number] for number in own], [firsts[number] for number in own])
    return student, [*(update.metrics for update in seen), validate(student, held_out, FULL, processes)]


def share(processes: Processes, case: str, precision: str, folder: Path) -> None:
    student, seen = two_steps(processes, [parts_of(case)[processes.rank]], precision)
    assert student.heads is not None
    weights = {**dict(student.model.named_parameters()), **dict(student.heads.named_parameters())}
    torch.save({name: weight.detach() for name, weight in weights.items()}, folder / f"{processes.rank}.pt")
    (folder / f"{processes.rank}.json").write_text(json.dumps([told(metrics) for metrics in seen]))


def told(metrics: StepMetrics) -> dict[str, float]:
    values = {f"{name} raw": term.raw for name, term in metrics.terms.items()}
    values |= {f"{name} weighted": term.weighted for name, term in metrics.terms.items()}
    values |= dataclasses.asdict(metrics.counts) | {"nll": metrics.nll_sum}
    if metrics.experts is not None:
        values |= {"entropy": metrics.experts.entropy, "divergence": metrics.experts.divergence}
        values |= {f"share {number}": value for number, value in enumerate(metrics.experts.shares)}
    if metrics.nll_N is not None:
        values |= {f"nll {number}": value for number, value in enumerate(metrics.nll_N.tolist())}
    return values


@pytest.mark.parametrize(
    ("case", "precision"),
    [("unequal", "fp32"), ("unequal", "fp16"), ("nobody has states", "fp32")],
)
def test_three_processes_make_the_steps_of_one(tmp_path: Path, case: str, precision: str) -> None:
    assert run_ranks(COUNT, share, case, precision, tmp_path) == [0] * COUNT
    weights = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(COUNT)]
    texts = {(tmp_path / f"{rank}.json").read_text() for rank in range(COUNT)}
    assert len(texts) == 1, "all processes see one step"
    for other in weights[1:]:
        assert all(torch.equal(weight, other[name]) for name, weight in weights[0].items())
    alone, seen = two_steps(ALONE, parts_of(case), precision)
    tolerance = 1e-5 if precision == "fp32" else 1e-3
    for found, metrics in zip(json.loads(texts.pop()), seen, strict=True):
        assert found == pytest.approx(told(metrics), rel=tolerance, abs=tolerance)
    assert alone.heads is not None
    for name, weight in {**dict(alone.model.named_parameters()), **dict(alone.heads.named_parameters())}.items():
        torch.testing.assert_close(weights[0][name], weight.detach(), rtol=0.0, atol=tolerance)
