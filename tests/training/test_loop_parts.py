"""The parts of the loop: schedules, early stopping, checkpoints, logging, balance."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_distill.batches.batch import Counts
from moe_distill.config.params import EarlyStopping, ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.errors import DivergenceError
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS, TEXT_TERMS, LossTerm
from moe_distill.shards.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from moe_distill.tracking.curves import Curve
from moe_distill.training import step as step_module
from moe_distill.training.balance import LARGEST_SCALE, updated_scales
from moe_distill.training.early_stopping import EarlyStoppingState, observe, should_stop
from moe_distill.training.loop import Phase, _account, _validation_set, _watch
from moe_distill.training.objective import LossOutput, Student, evaluate_objective
from moe_distill.training.recorder import console_line, curve_columns, expert_values, step_row, warn_of_collapse
from moe_distill.training.schedule import (
    LM_ONLY,
    first_phase_steps,
    learning_rate_fraction,
    objective_at,
    ramps_are_complete,
)
from moe_distill.training.step import ExpertValues, StepMetrics, TermValue, Update, optimizer_step
from moe_distill.training.trainer import Counters, Trainer, make_trainer, restore, student_weights, to_checkpoint
from moe_distill.utils.device import Runtime
from moe_distill.utils.processes import ALONE, Processes
from tests.training.conftest import make_batch, target_of

FP32 = Runtime(torch.device("cpu"), torch.float32)
COUNTS = Counts(tokens=5, with_target=3, hidden=1, n_bytes=2, places=20)


def metrics_of(**terms: float) -> StepMetrics:
    return StepMetrics({name: TermValue(value, value) for name, value in terms.items()}, 10.0, COUNTS, None)


def phase(stage: str = "train_kd") -> Phase:
    return Phase(stage, 100, ("lm",), 0, False, lambda _step, _scales, _earned: LM_ONLY, lambda _step: False)


def test_r09_schedule_is_of_optimizer_steps_and_never_zero(train: Train) -> None:
    fractions = [learning_rate_fraction(step, train) for step in range(100)]
    assert fractions[0] == pytest.approx(0.1)
    assert fractions[9] == 1.0
    assert all(earlier >= later for earlier, later in itertools.pairwise(fractions[9:]))
    assert min(fractions[10:]) >= 0.1


def test_r09_student_and_router_have_their_own_rates(student: Student, train: Train) -> None:
    peaks = {group["peak"] for group in make_trainer(student, train, FP32, 0).optimizer.param_groups}
    assert peaks == {1e-3, 2e-3}


def test_r03_phases_meet_where_the_first_ramp_opens(experiment: ExperimentParams, train: Train) -> None:
    last = first_phase_steps(experiment, train)
    assert last == 8  # 10% of the curriculum, which is 80% of 100 steps
    assert not any(objective_at(last, experiment, train, {}).weights.values())
    assert any(objective_at(last + 1, experiment, train, {}).weights.values())
    assert objective_at(80, experiment, train, {}).weights == dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.1)


@pytest.mark.parametrize(("total", "wanted"), [(103, 4), (10, 4), (4, 4), (3, 4)])
def test_r10_validation_windows_are_spread_evenly_over_the_split(train: Train, total: int, wanted: int) -> None:
    """The split lists one source after the other; the first windows would be of the first source alone."""
    context = SimpleNamespace(
        train=train.model_copy(update={"validation_windows": wanted, "micro_batch_windows": 2}),
        validation_lengths=torch.full((total,), 2),
        processes=ALONE,
        validation_batches=SimpleNamespace(read=lambda request: replace(make_batch(0, [2]), windows=request.windows)),
        runtime=FP32,
    )
    numbers = [number for part in _validation_set(context).parts for number in part.windows]  # type: ignore[arg-type]
    assert len(set(numbers)) == len(numbers) == min(total, wanted)
    gaps = [after - before for before, after in itertools.pairwise([*numbers, total])]
    assert numbers[0] == 0
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_the_validation_and_know_where_their_tokens_stand(train: Train, count: int) -> None:
    lengths = torch.tensor([2, 9, 4, 7, 3, 8, 5, 6, 1])
    placed: dict[tuple[int, ...], int] = {}
    for rank in range(count):
        context = SimpleNamespace(
            train=train.model_copy(update={"validation_windows": 9, "micro_batch_windows": 2}),
            validation_lengths=lengths,
            processes=Processes(rank, count),
            validation_batches=SimpleNamespace(
                read=lambda request: replace(make_batch(0, [2]), windows=request.windows)
            ),
            runtime=FP32,
        )
        own = _validation_set(context)  # type: ignore[arg-type]
        placed |= dict(zip((part.windows for part in own.parts), own.first_tokens, strict=True))
    assert placed == {(0, 1): 0, (2, 3): 11, (4, 5): 22, (6, 7): 33, (8,): 44}


def test_r10_early_stopping_begins_after_the_last_ramp(experiment: ExperimentParams, train: Train) -> None:
    assert not ramps_are_complete(79, experiment, train)
    assert ramps_are_complete(80, experiment, train)


def test_r10_patience_counts_progress_of_min_delta_and_the_best_is_kept() -> None:
    params = EarlyStopping(patience=2, min_delta=0.1, warmup_steps=3)
    watch = EarlyStoppingState()
    for step, value in enumerate([2.0, 1.95, 1.99, 1.5, 1.45, 1.47], start=1):
        watch = observe(watch, step, value, params)
        assert should_stop(watch, params) == (step == 6)
    assert (watch.best, watch.best_step) == (1.45, 5)


def test_r10_patience_is_counted_from_the_last_step_of_the_warm_up_on() -> None:
    params = EarlyStopping(patience=9, min_delta=0.0, warmup_steps=3)
    watch, counted = EarlyStoppingState(), []
    for step in range(1, 6):
        watch = observe(watch, step, 1.0, params)
        counted.append(watch.without_progress)
    assert counted == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_r10_a_validation_that_is_not_finite_is_no_progress_and_never_the_best(value: float) -> None:
    params = EarlyStopping(patience=2, min_delta=0.1, warmup_steps=0)
    watch = observe(EarlyStoppingState(), 1, value, params)
    assert (watch.best, watch.reference, watch.without_progress) == (None, None, 1)
    watch = observe(watch, 2, 1.5, params)
    assert (watch.best, watch.best_step, watch.without_progress) == (1.5, 2, 0)
    watch = observe(observe(watch, 3, value, params), 4, value, params)
    assert (watch.best, watch.best_step) == (1.5, 2)
    assert should_stop(watch, params)


def test_r10_the_weights_of_the_best_validation_are_kept_not_the_last(student: Student, train: Train) -> None:
    trainer = make_trainer(student, train, FP32, 0)
    weight = next(student.model.parameters())
    seen = []
    for step, bits_per_byte in enumerate([1.5, 1.2, 1.4], start=1):
        with torch.no_grad():
            weight.add_(1.0)
        seen.append(student_weights(trainer))
        trainer.step = step
        nats = bits_per_byte * math.log(2) * COUNTS.n_bytes
        stopping = EarlyStopping(patience=2, min_delta=0.0, warmup_steps=0)
        _watch(trainer, StepMetrics({}, nats, COUNTS, None), stopping)
    assert trainer.best.keys() == seen[1].keys()
    assert all(torch.equal(trainer.best[name], kept) for name, kept in seen[1].items())


def test_r17_scales_follow_the_ratio_to_lm_and_are_clamped() -> None:
    raw = {"lm": 4.0, "kd": 1.0, "layerwise": 1.0, "feature": 2.0, "attention": 1e-9, "contrastive": 1e3}
    scales = updated_scales({}, raw | {"router_balance": -0.5})  # fewer choices where the gate is likelier
    assert scales == {
        "layerwise": 4.0,
        "feature": 2.0,
        "attention": LARGEST_SCALE,
        "contrastive": 1.0 / LARGEST_SCALE,
        "router_balance": 8.0,
    }
    assert updated_scales(scales, {"lm": 4.0, "feature": 4.0})["feature"] == pytest.approx(0.98 * 2.0 + 0.02 * 1.0)


def test_r17_a_scale_multiplies_the_weight(experiment: ExperimentParams, train: Train) -> None:
    assert objective_at(99, experiment, train, {"feature": 3.0}).weights["feature"] == pytest.approx(0.3)


def test_r22_nonfinite_step_is_skipped_and_counted_and_a_run_of_them_stops(
    student: Student, experiment: ExperimentParams, train: Train
) -> None:
    trainer = make_trainer(student, train, FP32, 0)
    before = [parameter.clone() for parameter in student.model.parameters()]
    batch = make_batch(0, [12], with_runs=False)
    target_of(batch).entry_probs_Z[0] = math.nan
    objective = objective_at(0, experiment, train, {})
    for number in range(1, 4):
        update = optimizer_step(student, [batch], objective, trainer.optimizer, trainer.scaler, FP32, 1.0)
        assert not update.applied
        assert math.isnan(update.loss)
        if number < 3:
            _account(trainer, update, phase(), train, [3, 7])
    assert trainer.counters.skipped_steps == 2
    assert all(torch.equal(old, new) for old, new in zip(before, student.model.parameters(), strict=True))
    with pytest.raises(DivergenceError, match=r"3 steps in a row.*training windows \[3, 7\]"):
        _account(trainer, update, phase(), train, [3, 7])


@pytest.mark.parametrize("what", ["loss", "term"])
def test_r22_a_step_is_skipped_where_its_figures_alone_are_not_finite(
    student: Student, train: Train, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The gradient is: a constant has been added to the loss, or a term is shown that was not in it."""

    def infinite(*arguments: Any) -> LossOutput:
        output = evaluate_objective(*arguments)
        nothing = torch.tensor(math.inf)
        if what == "loss":
            return replace(output, loss=output.loss + nothing)
        return replace(output, terms=output.terms | {"kd": LossTerm(nothing, nothing)})

    monkeypatch.setattr(step_module, "evaluate_objective", infinite)
    trainer = make_trainer(student, train, FP32, 0)
    before = student_weights(trainer)
    batch = make_batch(0, [12], with_runs=False)
    update = optimizer_step(student, [batch], LM_ONLY, trainer.optimizer, trainer.scaler, FP32, 1.0)
    assert math.isfinite(update.gradient_norm)
    assert not update.applied
    assert all(torch.equal(weight, before[name]) for name, weight in student_weights(trainer).items())


def test_r22_a_good_step_ends_the_run_of_bad_ones(student: Student, train: Train) -> None:
    trainer = make_trainer(student, train, FP32, 0)
    _account(trainer, Update(metrics_of(lm=math.nan), math.nan, math.nan, False, 1.0), phase(), train, [0])
    _account(trainer, Update(metrics_of(lm=1.0), 1.0, 1.0, True, 1.0), phase(), train, [1])
    assert (trainer.counters.consecutive_nonfinite, trainer.counters.skipped_steps) == (0, 1)


def test_r21_checkpoint_restores_a_trainer_exactly(
    tmp_path: Path, student: Student, experiment: ExperimentParams, train: Train
) -> None:
    trainer = make_trainer(student, train, FP32, 0)
    objective, batch = objective_at(99, experiment, train, {}), make_batch(0, [12])

    def step() -> float:
        update = optimizer_step(student, [batch], objective, trainer.optimizer, trainer.scaler, FP32, 1.0)
        return update.metrics.total

    step()
    trainer.step = 1
    save_checkpoint(tmp_path, to_checkpoint(trainer))
    expected = [step() for _ in range(3)]
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    fresh: Trainer = make_trainer(student, train, FP32, 0)
    restore(fresh, checkpoint)
    trainer = fresh
    assert [step() for _ in range(3)] == expected


def test_r10_early_stopping_and_the_best_weights_survive_a_resume(
    tmp_path: Path, student: Student, train: Train
) -> None:
    trainer = make_trainer(student, train, FP32, 0)
    trainer.counters.watch = EarlyStoppingState(best=1.25, best_step=60, reference=1.3, without_progress=4)
    trainer.best = {name: weight + 1.0 for name, weight in student_weights(trainer).items()}
    save_checkpoint(tmp_path, to_checkpoint(trainer))
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    fresh = make_trainer(student, train, FP32, 0)
    restore(fresh, checkpoint)
    assert fresh.counters.watch == trainer.counters.watch
    assert fresh.best.keys() == trainer.best.keys()
    assert all(torch.equal(fresh.best[name], weight) for name, weight in trainer.best.items())


def test_broken_newest_checkpoint_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3):
        (tmp_path / f".checkpoint_{step:06d}.1.tmp").mkdir()  # of a process that was killed while it wrote
        save_checkpoint(tmp_path, Checkpoint(step, {"weight": torch.full((4,), float(step))}, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000002", "checkpoint_000003"]
    path = tmp_path / "checkpoint_000003/tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "checkpoint_000003 is broken" in capsys.readouterr().out


def test_a_checkpoint_outlives_broken_ones_of_more_steps(tmp_path: Path) -> None:
    """All are broken, and the training begins anew: what it writes would be the oldest of three."""
    for step in (200, 300, 100):
        save_checkpoint(tmp_path, Checkpoint(step, {"weight": torch.full((4,), float(step))}, {}))
        if step != 100:
            (tmp_path / f"checkpoint_{step:06d}/tensors.safetensors").write_bytes(b"cut off")
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 100
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000100"]


def test_the_newest_checkpoint_is_that_of_the_most_steps_whatever_its_digits(tmp_path: Path) -> None:
    for step in (999_500, 1_000_000, 1_000_500):
        save_checkpoint(tmp_path, Checkpoint(step, {"weight": torch.full((4,), float(step))}, {}))
        found = newest_checkpoint(tmp_path)
        assert found is not None
        assert found.step == step


def test_curve_drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    curve = Curve(tmp_path / "c.tsv", ["total", "lm_raw"], 0)
    for step in (1, 2, 3):
        curve.append(step, {"total": step / 3})
    Curve(tmp_path / "c.tsv", ["total", "lm_raw"], 2).append(3, {"lm_raw": 1.5})
    assert (tmp_path / "c.tsv").read_text() == "step\ttotal\tlm_raw\n1\t0.333333333\t\n2\t0.666666667\t\n3\t\t1.5\n"


@pytest.mark.parametrize("cut", ["step\ttotal\n1000\t1.4\n12", "step\ttotal\n1000\t1.4\n900\t1.", "st", ""])
def test_a_row_of_a_curve_that_was_cut_off_is_dropped(tmp_path: Path, cut: str) -> None:
    """By a full disk, say: of a step 1200, the 12 that is left would be before the step that is resumed at."""
    (tmp_path / "c.tsv").write_text(cut)
    Curve(tmp_path / "c.tsv", ["total"], 1000).append(1200, {"total": 1.3})
    kept = ["1000\t1.4"] if "1000" in cut else []
    assert (tmp_path / "c.tsv").read_text().splitlines() == ["step\ttotal", *kept, "1200\t1.3"]


def test_r08_a_run_of_25_000_steps_stays_under_5_000_lines() -> None:
    counters = Counters(tokens=100, seconds=1.0)
    lines = []
    for step in range(1, 25_001):
        if step % 100 == 0:
            lines.append(console_line("train_router", step, 25_000, metrics_of(lm=2.0, kd=1.0), 5e-5, counters))
        if step % 500 == 0:
            lines.append("validation")
    assert len("\n".join(lines).splitlines()) < 5_000
    assert "total 3.000  lm 2.000  kd 1.000  lr 5.0e-05" in lines[0]
    assert "kd" not in console_line("train_router", 1, 2, metrics_of(lm=2.0, kd=0.0), 5e-5, counters)
    many = {f"term_{number}": 1.0 for number in range(9)}
    line = console_line("train_router", 24_900, 25_000, metrics_of(**many, kd=1.0, lm=2.0), 5e-5, counters)
    assert "lm 2.000  kd 1.000  term_" in line
    assert len(line) <= 120


def test_r11_expert_use_is_logged_and_a_collapse_names_the_expert(capsys: pytest.CaptureFixture[str]) -> None:
    even = replace(metrics_of(), experts=ExpertValues([0.5, 0.5], entropy=math.log(2), divergence=0.25))
    assert expert_values(even) == {
        "expert_share_0": 0.5,
        "expert_share_1": 0.5,
        "expert_entropy": math.log(2),
        "gate_divergence": 0.25,
    }
    warn_of_collapse("train_router", even)
    assert capsys.readouterr().out == ""
    warn_of_collapse("train_router", replace(even, experts=ExpertValues([0.01, 0.99], 0.0, 0.0)))
    assert "expert 1 takes 99%" in capsys.readouterr().out


def test_every_value_of_a_row_has_a_column() -> None:
    names = TEXT_TERMS + HIDDEN_TERMS + ROUTER_TERMS
    full = replace(metrics_of(**dict.fromkeys(names, 1.0)), experts=ExpertValues([1 / 3] * 3, 1.0, 0.0))
    assert set(step_row(Update(full, 2.0, 2.0, True, 1.0), 1e-3, Counters())) == set(curve_columns(names, 3))
