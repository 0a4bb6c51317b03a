"""A training that is ended and continued is the unbroken one: stopping, losses, weights, scaler."""

import copy
import csv
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.batches.loader import BatchReader
from moe_distill.batches.split import Split
from moe_distill.config.params import EarlyStopping, ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.shards.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from moe_distill.shards.window_store import STUDENT_FIELDS, STUDENT_WINDOWS, WindowStore
from moe_distill.shards.writer import ShardWriter
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.training import loop
from moe_distill.training.loop import Phase, TrainingContext, run_phase
from moe_distill.training.objective import Student
from moe_distill.training.phases import control, train_kd, train_router
from moe_distill.training.recorder import Recorder as CurveRecorder
from moe_distill.training.recorder import RecorderSettings
from moe_distill.training.result import Result
from moe_distill.training.schedule import LM_ONLY, objective_at
from moe_distill.training.step import StepMetrics, Update, optimizer_step, validate
from moe_distill.training.trainer import Trainer, make_trainer, restore, to_checkpoint
from moe_distill.utils.device import Runtime
from moe_distill.utils.signals import Terminated
from tests.stores import no_last_tokens
from tests.teacher.conftest import make_teacher
from tests.training.conftest import STUDENT_VOCABULARY, make_batch
from tests.training.folders import Folders, make_folders, make_params

FP32 = Runtime(torch.device("cpu"), torch.float32)
FP16 = Runtime(torch.device("cpu"), torch.float16)
WATCHED_FROM, LAST_STEP = 12, 100


class KilledError(Exception):
    """Stands for kill -9: nothing after it is done."""


class Recorder(CurveRecorder):
    """Keeps what is recorded; `then` is called after a step, before its validation and checkpoint."""

    def __init__(self, then: Callable[[int], None] = lambda _step: None) -> None:
        self.totals: dict[int, float] = {}
        self._then = then

    def open(self, step: int) -> None:
        self.opened_at = step

    def record_step(self, step: int, update: Update, _learning_rate: float, _counters: object) -> None:
        self.totals[step] = update.metrics.total
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
        writer.append(columns | no_last_tokens(n_tokens))
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
    splits = [make_split(tmp_path / "train", 0), make_split(tmp_path / "validation", 1)]
    train_batches, validation_batches = (BatchReader(split, None, False, train.chunk_tokens) for split in splits)
    return TrainingContext(
        train_batches,
        validation_batches,
        window_lengths=splits[0].windows.token_counts,
        validation_lengths=splits[1].windows.token_counts,
        train=train.model_copy(update=changes),
        stopping=EarlyStopping(patience=5, min_delta=0.0, warmup_steps=0),
        seed=0,
        runtime=FP32,
    )


def train_lm(
    student: Student, setting: TrainingContext, work: Path, recorder: CurveRecorder
) -> tuple[Result, dict[str, torch.Tensor]]:
    """A phase that begins at the student's weights, or where `work` says; how it ended, and the weights."""
    trainer = make_trainer(
        replace(student, model=copy.deepcopy(student.model), heads=None), setting.train, setting.runtime, 0
    )
    phase = Phase("control", LAST_STEP, ("lm",), 0, False, lambda *_: LM_ONLY, lambda step: step >= WATCHED_FROM)
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
    phase = Phase("train_kd", 4, ("lm",), 0, False, lambda *_: LM_ONLY, lambda _step: False)
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


def with_workers(setting: TrainingContext, workers: int) -> TrainingContext:
    return replace(setting, train=setting.train.model_copy(update={"loader_workers": workers}))


@pytest.mark.parametrize("ends", ["of itself", "by an error in a step", "by a signal"])
def test_no_worker_outlives_its_training(tmp_path: Path, student: Student, setting: TrainingContext, ends: str) -> None:
    seen: list[int] = []

    def then(step: int) -> None:
        seen.append(len(multiprocessing.active_children()))
        if step == 6 and ends == "by an error in a step":
            raise KilledError
        if step == 6 and ends == "by a signal":
            for number in (signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)

    began = time.monotonic()
    try:
        result, _ = train_lm(student, with_workers(setting, 2), tmp_path / "work", Recorder(then))
        assert result.stopped_early
    except (KilledError, Terminated):
        assert ends != "of itself"
    assert seen[-1] == 2
    assert not multiprocessing.active_children()
    assert time.monotonic() - began < 60, "none had to be waited for"


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


def test_r21_a_signal_while_the_last_checkpoint_is_written_is_obeyed(
    tmp_path: Path, student: Student, setting: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(work: Path, checkpoint: Checkpoint) -> None:
        save_checkpoint(work, checkpoint)
        if checkpoint.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "save_checkpoint", signalled)
    trainer = make_trainer(replace(student, heads=None), setting.train, setting.runtime, 0)
    phase = Phase("train_kd", 8, ("lm",), 0, False, lambda *_: LM_ONLY, lambda _step: False)
    with pytest.raises(Terminated):
        run_phase(trainer, phase, setting, tmp_path, Recorder())
    resumed = Recorder()
    assert run_phase(trainer, phase, setting, tmp_path, resumed).steps == 8
    assert resumed.opened_at == 8
    assert not resumed.totals, "no step was lost"


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
        return update.metrics.total

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("resume"), make_teacher("qwen3_moe_top1"))


@pytest.fixture(scope="module")
def unbroken(folders: Folders) -> dict[str, Any]:
    """Curves and weights of both phases."""
    return {stage.__name__: trained(folders, stage, f"unbroken {stage.__name__}") for stage in (train_kd, train_router)}


def trained(folders: Folders, stage: Any, name: str, killed: int = 0, **changes: Any) -> tuple[list[bytes], Any]:
    """Curves and weights of a phase, which is killed once if so wanted, in the validation after a step."""
    half = {"phase1_share": 0.5, "curriculum_share": 0.8}
    params = make_params(max_steps=20, checkpoint_every=3, validate_every=1, curriculum=half, **changes)
    outputs = folders.outputs(name)

    def on_validation() -> None:
        lines = (outputs.work / CURVE_NAME).read_text().splitlines()
        if lines[-1].startswith(f"{killed}\t"):
            raise KilledError

    if killed:
        with pytest.raises(KilledError):
            stage(params, folders.inputs, replace(outputs, on_validation=on_validation))
        checkpoint = newest_checkpoint(outputs.work)
        assert checkpoint is not None
        assert checkpoint.step == (killed - 1) // 3 * 3
    stage(params, folders.inputs, outputs)
    curves = [(outputs.work / each).read_bytes() for each in (CURVE_NAME, VALIDATION_CURVE_NAME)]
    return curves, load_file(outputs.student / "model.safetensors")


@pytest.mark.parametrize("memory_mb", [0, 64])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("stage", "killed"), [(train_kd, 5), (train_router, 13)])
def test_r21_a_resumed_distillation_is_the_unbroken_one(
    folders: Folders, unbroken: dict[str, Any], stage: Any, killed: int, workers: int, memory_mb: int
) -> None:
    """To the bit, however batches are read."""
    name = f"{stage.__name__} {workers} {memory_mb}"
    curves, weights = trained(folders, stage, name, killed, loader_workers=workers, target_memory_mb=memory_mb)
    expected_curves, expected = unbroken[stage.__name__]
    assert curves == expected_curves
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A student that draws random numbers in every forward pass of a training, as GPT-2's default is."""
    folders = make_folders(tmp_path_factory.mktemp("dropout"), make_teacher("qwen3_moe_top1"))
    config = folders.inputs.student / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.2}))
    return folders


@pytest.fixture(scope="module")
def unbroken_with_dropout(with_dropout: Folders, folders: Folders) -> dict[str, Any]:
    found = {
        stage.__name__: trained(with_dropout, stage, f"unbroken {stage.__name__}") for stage in (control, train_kd)
    }
    without = trained(folders, control, "unbroken control")
    assert found["control"][0] != without[0]
    return found


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stage", [control, train_kd])
def test_r21_a_resumed_training_with_dropout_is_the_unbroken_one(
    with_dropout: Folders, unbroken_with_dropout: dict[str, Any], stage: Any, workers: int
) -> None:
    """The dropout of a step follows from seed and step, and not from what was drawn before it."""
    curves, weights = trained(with_dropout, stage, f"{stage.__name__} {workers}", killed=5, loader_workers=workers)
    expected_curves, expected = unbroken_with_dropout[stage.__name__]
    assert curves == expected_curves
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
