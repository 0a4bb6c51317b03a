"""A training that is ended and continued is the unbroken one: stopping, losses, weights, scaler."""

import copy
import csv
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_distill.config.params import EarlyStopping, ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.shards.window_store import STUDENT_FIELDS, STUDENT_WINDOWS, WindowStore
from moe_distill.shards.writer import ShardWriter
from moe_distill.tracking.curves import CURVE_NAME
from moe_distill.training import loop
from moe_distill.training.checkpoint import newest_checkpoint, save_checkpoint
from moe_distill.training.data import TEXT_ONLY, Split
from moe_distill.training.loop import Phase, Result, TrainingContext, run_phase
from moe_distill.training.objective import Student
from moe_distill.training.recorder import Recorder as CurveRecorder
from moe_distill.training.recorder import RecorderSettings
from moe_distill.training.schedule import lm_only, objective_at
from moe_distill.training.step import StepMetrics, optimizer_step, validate
from moe_distill.training.trainer import Trainer, make_trainer, restore, to_checkpoint
from moe_distill.utils.device import Runtime
from moe_distill.utils.signals import Terminated
from tests.training.conftest import STUDENT_VOCABULARY, make_batch

FP32 = Runtime(torch.device("cpu"), torch.float32)
FP16 = Runtime(torch.device("cpu"), torch.float16)
WATCHED_FROM, LAST_STEP = 12, 100


class KilledError(Exception):
    """Stands for kill -9: nothing after it is done."""


class Recorder:
    """Keeps what is recorded; `then` is called after a step, before its validation and checkpoint."""

    def __init__(self, then: Callable[[int], None] = lambda _step: None) -> None:
        self.totals: dict[int, float] = {}
        self._then = then

    def open(self, step: int) -> None:
        self.opened_at = step

    def record_step(self, step: int, update: object, _learning_rate: float, _counters: object) -> None:
        self.totals[step] = update.outcome.total
        self._then(step)

    def record_validation(self, *_arguments: object) -> None:
        pass


def make_split(folder: Path, seed: int) -> Split:
    """24 windows of random tokens: what is learnt of them helps no other window, so validation soon rises."""
    generator = torch.Generator().manual_seed(seed)
    writer = ShardWriter(folder, STUDENT_FIELDS, "tokens", 100)
    for number in range(24):
        n_tokens = int(torch.randint(8, 20, (), generator=generator))
        columns = {
            "token_ids": torch.randint(STUDENT_VOCABULARY, (n_tokens,), generator=generator).int(),
            "token_counts": torch.tensor([n_tokens]).int(),
            "documents": torch.tensor([number]).int(),
            "byte_starts": torch.tensor([0]),
            "byte_ends": torch.tensor([3 * n_tokens]),
            "teacher_rows": torch.full((n_tokens,), -1),
            "next_teacher_ids": torch.zeros(n_tokens, dtype=torch.int32),
            "token_bytes": torch.full((0 if number else STUDENT_VOCABULARY,), 3, dtype=torch.int32),
            "next_tokens": torch.zeros(n_tokens, dtype=torch.int8),
        }
        writer.append(columns, cursor=number)
    writer.finish(STUDENT_WINDOWS, "f", {"prefix_id": 0})
    return Split(WindowStore(folder, STUDENT_WINDOWS), None)


@pytest.fixture
def setting(tmp_path: Path, train: Train) -> TrainingContext:
    changes = {
        "checkpoint_every": 4,
        "validate_every": 2,
        "log_every": 1,
        "learning_rate": 2e-2,
        "validation_windows": 24,
    }
    return TrainingContext(
        make_split(tmp_path / "train", 0),
        make_split(tmp_path / "validation", 1),
        train.model_copy(update=changes),
        EarlyStopping(patience=5, min_delta=0.0, warmup_steps=0),
        seed=0,
        runtime=FP32,
    )


def train_lm(
    student: Student, setting: TrainingContext, work: Path, recorder: Recorder | CurveRecorder
) -> tuple[Result, dict[str, torch.Tensor]]:
    """A phase that begins at the student's weights, or where `work` says; how it ended, and the weights."""
    trainer = make_trainer(
        replace(student, model=copy.deepcopy(student.model), heads=None), setting.train, setting.runtime, 0
    )
    phase = Phase(
        "control", LAST_STEP, ("lm",), 0, False, False, lambda *_: lm_only(16), lambda step: step >= WATCHED_FROM
    )
    result = run_phase(trainer, phase, setting, work, recorder)
    return result, dict(trainer.student.model.named_parameters())


def test_the_last_validation_is_made_once_where_no_better_weights_are_kept(
    tmp_path: Path, student: Student, setting: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[StepMetrics] = []

    def counted(*arguments: Any) -> StepMetrics:
        made.append(validate(*arguments))
        return made[-1]

    monkeypatch.setattr(loop, "validate", counted)
    trainer = make_trainer(replace(student, heads=None), setting.train, setting.runtime, 0)
    phase = Phase("train_kd", 4, ("lm",), 0, TEXT_ONLY, False, lambda *_: lm_only(16), lambda _step: False)
    result = run_phase(trainer, phase, setting, tmp_path, Recorder())
    assert len(made) == 2, "at steps 2 and 4"
    assert result.final is made[-1]
    again = run_phase(trainer, phase, setting, tmp_path, Recorder())
    assert len(made) == 3, "with no step left it is made again"
    assert again.final.total == result.final.total


def kill_at(killed: int) -> Callable[[int], None]:
    def then(step: int) -> None:
        if step == killed:
            raise KilledError

    return then


@pytest.mark.parametrize("killed", [3, 13, 17, 21])
def test_r10_r21_a_resumed_training_stops_early_at_the_same_step(
    tmp_path: Path, student: Student, setting: TrainingContext, killed: int
) -> None:
    unbroken = Recorder()
    expected, weights = train_lm(student, setting, tmp_path / "unbroken", unbroken)
    assert expected.stopped_early
    assert 21 < expected.steps < LAST_STEP
    with pytest.raises(KilledError):
        train_lm(student, setting, tmp_path / "work", Recorder(kill_at(killed)))
    resumed = Recorder()
    result, again = train_lm(student, setting, tmp_path / "work", resumed)
    assert resumed.opened_at == killed // 4 * 4
    assert (result.steps, result.stopped_early) == (expected.steps, True)
    assert result.final.bits_per_byte == expected.final.bits_per_byte
    assert resumed.totals == {step: total for step, total in unbroken.totals.items() if step > resumed.opened_at}
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_r21_a_signal_ends_the_training_after_its_step_with_a_checkpoint(
    tmp_path: Path, student: Student, setting: TrainingContext, number: signal.Signals, raised: type[BaseException]
) -> None:
    def then(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(raised):
        train_lm(student, setting, tmp_path / "work", Recorder(then))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    checkpoint = newest_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    assert checkpoint.step == 6  # the next was due at 8
    resumed = Recorder()
    result, weights = train_lm(student, setting, tmp_path / "work", resumed)
    expected, unbroken = train_lm(student, setting, tmp_path / "unbroken", Recorder())
    assert min(resumed.totals) == 7
    assert result.steps == expected.steps
    assert all(torch.equal(weights[name], unbroken[name]) for name in weights)


def test_r21_a_second_signal_ends_the_training_at_once(
    tmp_path: Path, student: Student, setting: TrainingContext
) -> None:
    def then(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second signal was not obeyed")

    with pytest.raises(KeyboardInterrupt):
        train_lm(student, setting, tmp_path / "work", Recorder(then))
    checkpoint = newest_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    assert checkpoint.step == 4


def test_r21_losses_after_a_resume_in_fp16_with_a_scaler_that_backed_off(
    tmp_path: Path, student: Student, experiment: ExperimentParams, train: Train
) -> None:
    """All terms on; the first 20 losses are equal to the bit, and so is the scale."""
    objective = objective_at(99, experiment, train, {})

    def fresh() -> Trainer:
        return make_trainer(
            replace(student, model=copy.deepcopy(student.model), heads=copy.deepcopy(student.heads)), train, FP16, 0
        )

    def step(trainer: Trainer) -> float:
        parts = [make_batch(trainer.step, [12]), make_batch(trainer.step + 1000, [9])]
        update = optimizer_step(trainer.student, parts, objective, trainer.optimizer, trainer.scaler, FP16, 1.0)
        trainer.step += 1
        trainer.counters.skipped_steps += not update.applied
        return update.outcome.total

    trainer = fresh()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    for _ in range(25):
        step(trainer)
    default_scale = torch.amp.GradScaler("cpu").get_scale()
    assert trainer.counters.skipped_steps > 0  # it backed off
    assert trainer.scaler.get_scale() not in (2.0**30, default_scale)
    save_checkpoint(tmp_path, to_checkpoint(trainer))
    expected = [step(trainer) for _ in range(20)]
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    resumed = fresh()
    restore(resumed, checkpoint)
    assert [step(resumed) for _ in range(20)] == expected
    assert resumed.scaler.get_scale() == trainer.scaler.get_scale()


def test_r21_the_curve_shows_the_scale_that_the_scaler_has_and_a_resumed_run_the_same(
    tmp_path: Path, student: Student, setting: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**24))
    half = replace(
        setting, runtime=FP16, train=setting.train.model_copy(update={"max_consecutive_nonfinite": LAST_STEP})
    )

    def train_into(work: Path, killed: int) -> None:
        def on_validation() -> None:
            if (work / CURVE_NAME).read_text().splitlines()[-1].startswith(f"{killed}\t"):
                raise KilledError

        train_lm(
            student,
            half,
            work,
            CurveRecorder(RecorderSettings("control", LAST_STEP, ("lm",), 0, work, work, on_validation)),
        )

    (tmp_path / "whole").mkdir()
    train_into(tmp_path / "whole", -1)
    with (tmp_path / "whole" / CURVE_NAME).open(newline="") as file:
        rows = [(float(row["loss_scale"]), int(row["skipped_steps"])) for row in csv.DictReader(file, delimiter="\t")]
    assert rows[-1][1] > 2  # it backed off
    assert [scale for scale, _ in rows] == [2.0**24] + [2.0 ** (24 - skipped) for _, skipped in rows[:-1]]
    killed = next(step for step, (_, skipped) in enumerate(rows, start=1) if skipped > 2 and step % 4 == 2)
    (tmp_path / "broken").mkdir()
    with pytest.raises(KilledError):
        train_into(tmp_path / "broken", killed)
    train_into(tmp_path / "broken", -1)
    assert (tmp_path / "broken" / CURVE_NAME).read_bytes() == (tmp_path / "whole" / CURVE_NAME).read_bytes()
