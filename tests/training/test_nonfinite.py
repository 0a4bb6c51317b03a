"""Non-finite losses and gradients: skipped, counted, and after a run of them the end, the last good checkpoint kept."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_distill.batches.batch import Batch
from moe_distill.batches.batch_order import batches_from
from moe_distill.batches.split import open_split
from moe_distill.config.profile import Train
from moe_distill.errors import DivergenceError
from moe_distill.shards.checkpoint import newest_checkpoint
from moe_distill.training import loop
from moe_distill.training.objective import Student
from moe_distill.training.phases import control
from moe_distill.training.result import Result, result_metrics
from moe_distill.training.schedule import LM_ONLY
from moe_distill.training.step import Update, optimizer_step
from moe_distill.training.trainer import make_trainer, save_for_next_phase, take_over
from moe_distill.utils.device import MINIMUM_LOSS_SCALE, Runtime
from moe_distill.utils.processes import Processes
from tests.chain import Chain
from tests.forked_ranks import run_ranks
from tests.teacher.conftest import make_teacher
from tests.training.conftest import make_batch
from tests.training.folders import Folders, make_folders, make_params
from tests.training.test_loop_parts import metrics_of

FP16 = Runtime(torch.device("cpu"), torch.float16)
GOOD_STEPS = 6


def test_a_run_of_nonfinite_steps_names_the_batch_and_keeps_the_last_good_checkpoint(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the seventh step on the gradient of one weight is NaN."""
    copied = chain.copy(tmp_path / "chain")
    seen: list[list[int]] = []

    def poisoned(student: Student, parts: Sequence[Batch], *rest: Any, **more: Any) -> Update:
        seen.append([window for part in parts for window in part.windows])
        weight = next(student.model.parameters())
        hook = weight.register_hook(lambda gradient: gradient * math.nan)
        if len(seen) <= GOOD_STEPS:
            hook.remove()
        try:
            return optimizer_step(student, parts, *rest, **more)
        finally:
            hook.remove()

    monkeypatch.setattr(loop, "optimizer_step", poisoned)
    limit = copied.params.profile.train.max_consecutive_nonfinite
    with pytest.raises(DivergenceError) as caught:
        control(copied.params, copied.inputs(with_targets=False), copied.outputs())
    assert caught.value.exit_code == 5
    said = str(caught.value)
    assert f"control: {limit} steps in a row, to step {GOOD_STEPS + limit}, were not finite" in said
    assert f"training windows {seen[-1]}" in said
    assert "gradient norm nan" in said
    checkpoint = newest_checkpoint(copied.folder / ".work")
    assert checkpoint is not None
    assert checkpoint.step >= GOOD_STEPS
    assert checkpoint.state["skipped_steps"] == checkpoint.step - GOOD_STEPS
    assert all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.tensors.values())
    assert not (copied.folder / ".work/export").exists()


def diverged(processes: Processes, root: Path) -> None:
    """From the third step on the second of two processes has a gradient that is not finite."""
    folders, params, seen = Folders(root), make_params(max_consecutive_nonfinite=2, micro_batch_windows=2), 0

    def poisoned(student: Student, *rest: Any, **more: Any) -> Update:
        nonlocal seen
        seen += 1
        weight = next(student.model.parameters())
        hook = weight.register_hook(lambda gradient: gradient * math.nan)
        if seen < 3 or processes.is_first:
            hook.remove()
        try:
            return optimizer_step(student, *rest, **more)
        finally:
            hook.remove()

    inputs = replace(folders.inputs, targets=None, teacher_head=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "optimizer_step", poisoned)
        with pytest.raises(DivergenceError) as caught:
            control(params, inputs, folders.outputs("diverged"), processes)
    (root / f"{processes.rank}.txt").write_text(str(caught.value))


def test_of_two_processes_each_names_the_windows_of_both(tmp_path: Path) -> None:
    """Which of them had what is not finite, neither can tell."""
    folders = make_folders(tmp_path, make_teacher("dense"))
    assert run_ranks(2, diverged, tmp_path) == [0, 0]
    params = make_params()
    lengths = open_split(folders.inputs.windows / "train", None).windows.token_counts
    windows = next(batches_from(lengths, params.profile.train.batch_windows, params.experiment.seed, 3))
    assert len(windows) == 8
    for rank in range(2):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert "2 steps in a row, to step 4, were not finite" in said
        assert f"training windows {windows}" in said


def test_the_loss_scale_never_falls_below_its_floor(student: Student, train: Train) -> None:
    """Gradients that never become finite halve the scale at every step; at 0 no later step could be finite again."""
    trainer = make_trainer(student, train, FP16, 0)
    next(student.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    batch = make_batch(0, [12], with_runs=False)
    scales = []
    for _ in range(24):
        update = optimizer_step(student, [batch], LM_ONLY, trainer.optimizer, trainer.scaler, FP16, train.gradient_clip)
        assert not update.applied
        scales.append(trainer.scaler.get_scale())
    assert scales[:2] == [2.0**15, 2.0**14]
    assert min(scales) == scales[-1] == MINIMUM_LOSS_SCALE == 1.0


def test_the_next_phase_goes_on_with_the_loss_scale(student: Student, train: Train, tmp_path: Path) -> None:
    """As the baseline does, which is one phase: from 65,536 its first steps would be skipped for nothing."""
    trainer = make_trainer(student, train, FP16, 0)
    state = {"scale": 512.0, "_growth_tracker": 7}
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | state)
    save_for_next_phase(trainer, tmp_path / "next/optimizer.safetensors")
    following = make_trainer(student, train, FP16, 0)
    take_over(following, tmp_path / "next/optimizer.safetensors")
    assert following.scaler.state_dict() == trainer.scaler.state_dict()
    without = make_trainer(student, train, Runtime(torch.device("cpu"), torch.float32), 0)
    take_over(without, tmp_path / "next/optimizer.safetensors")
    assert not without.scaler.is_enabled()


def test_without_a_scaler_there_is_no_floor(student: Student, train: Train) -> None:
    fp32 = Runtime(torch.device("cpu"), torch.float32)
    trainer = make_trainer(student, train, fp32, 0)
    update = optimizer_step(
        student,
        [make_batch(0, [12], with_runs=False)],
        LM_ONLY,
        trainer.optimizer,
        trainer.scaler,
        fp32,
        1.0,
    )
    assert update.applied


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_phase_that_ends_without_a_finite_figure_has_diverged(value: float) -> None:
    result = Result(metrics_of(lm=value), steps=3, stopped_early=False, skipped_steps=0, tokens_per_second=1.0)
    with pytest.raises(DivergenceError, match=rf"validation_\w+ is {value}"):
        result_metrics(result)
