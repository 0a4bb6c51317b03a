"""Measure the inner loops of the stages on this machine: the models' real shapes, the profile's batches, random text.

A model that is here is loaded; else one of random weights is made of its configuration. Every loop is the stage's own.
On a CPU the batches are smaller where the profile's would take longer than the measurement is meant to.
"""

import shutil
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from moe_distill.batches.batch import Batch
from moe_distill.batches.loader import BatchReader, requests
from moe_distill.batches.split import Split, open_split
from moe_distill.config.params import Params
from moe_distill.errors import ResourceError
from moe_distill.evaluation.evaluate import AGREED_WITH
from moe_distill.evaluation.measure import compare, score
from moe_distill.log import log
from moe_distill.models.checkpointing import checkpoint_layers
from moe_distill.models.decoder import find_decoder
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.planning.devices import Device
from moe_distill.planning.loop_time import time_loop
from moe_distill.planning.model_configs import STUDENT, TEACHER, find_folder
from moe_distill.planning.model_work import ModelWork
from moe_distill.planning.rates import Rates, estimate_rates
from moe_distill.planning.synthetic_inputs import write_model, write_vocabulary_map, write_windows
from moe_distill.replay.block import load_teacher_head
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets, target_settings
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.capture import capture
from moe_distill.teacher.run import export_head
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT
from moe_distill.training.objective import Objective, Student, evaluate_objective
from moe_distill.training.optimizer import set_learning_rate
from moe_distill.training.schedule import LM_ONLY, objective_at
from moe_distill.training.step import optimizer_step
from moe_distill.training.student import layer_pairs, make_heads
from moe_distill.training.trainer import Trainer, make_trainer
from moe_distill.utils.device import Runtime, make_runtime, seed_everything
from moe_distill.utils.tensors import to_device

SECONDS = 5.0  # of each loop, after one turn that is not counted


def measure_rates(
    params: Params,
    device: Device,
    teacher: tuple[ModelWork, PreTrainedConfig],
    student: tuple[ModelWork, PreTrainedConfig],
    shard_row: float,
    seconds: float | None = None,
) -> Rates:
    """Run each inner loop for some seconds; see `estimate_rates` for the arguments.

    On a CPU the memory stays an estimate. Without `seconds` each loop runs for SECONDS.

    Raises:
        ResourceError: the GPU's memory does not suffice for a loop.
    """
    seed_everything(params.experiment.seed)
    estimate = estimate_rates(params, device, teacher[0], student[0], shard_row)
    with tempfile.TemporaryDirectory(prefix="moe-distill-plan-") as name:
        wanted = SECONDS if seconds is None else seconds
        if device.capability is None:
            params = _smaller_batches(params, estimate, wanted)
            shown = params.profile.teacher.batch_windows, params.profile.train.micro_batch_windows
            log(f"plan: windows at once, as many as a CPU does in the time: teacher {shown[0]}, student {shown[1]}")
        bench = _Bench(params, Path(name), (teacher[0].rows, student[0].rows), wanted)
        try:
            bench.capture(teacher[1])
            bench.open(student[1])
            bench.train()
            bench.evaluate()
        except torch.OutOfMemoryError as error:
            why = " ".join(str(error).split())
            fix = "leave out `--measure`: the estimate has the memory of each stage, and what to lower follows from it"
            raise ResourceError("a stage's loop needs more memory than the GPU has", why, fix) from error
    memory = estimate.memory | bench.memory
    return Rates(**bench.found, training_token=bench.trained, memory=memory)


def _smaller_batches(params: Params, estimate: Rates, seconds: float) -> Params:
    """Batches that a loop can do in the time, by its estimate: on a CPU a batch is no faster than its windows."""
    profile = params.profile
    of_window = max(
        estimate.capture_position * (profile.windows.teacher_max_length - 1),
        estimate.training_token["train_router"] * (profile.windows.student_max_length - 1),
    )
    most = max(1, int(seconds / of_window))
    sizes = {
        "teacher": {"batch_windows": min(most, profile.teacher.batch_windows)},
        "train": {"micro_batch_windows": min(most, profile.train.micro_batch_windows)},
        "evaluate": {"batch_windows": min(most, profile.evaluate.batch_windows)},
    }
    sections = {name: getattr(profile, name).model_copy(update=each) for name, each in sizes.items()}
    return params.model_copy(update={"profile": profile.model_copy(update=sections)})


class _Bench:
    """Folders and results of a measurement."""

    def __init__(self, params: Params, folder: Path, rows: tuple[int, int], seconds: float) -> None:
        profile = params.profile
        self.params, self.folder, self.seconds = params, folder, seconds
        self.found, self.trained, self.memory = dict[str, float](), dict[str, float](), dict[str, float]()
        self.device = make_runtime("fp32").device
        count = max(profile.teacher.batch_windows, profile.evaluate.batch_windows, profile.train.micro_batch_windows)
        lengths = profile.windows.teacher_max_length - 1, profile.windows.student_max_length - 1
        self.teacher_windows, self.student_windows = write_windows(folder / "windows", count, lengths, rows)
        write_vocabulary_map(folder / "vocabulary_map", rows)
        self.vocabulary_map = load_vocabulary_map(folder / "vocabulary_map", self.student_windows)

    def capture(self, config: PreTrainedConfig) -> None:
        """The teacher's pass over the windows, shards and head written."""
        params = self.params.profile.teacher
        runtime = make_runtime(params.precision)
        log(f"plan: measuring the teacher on {runtime.describe()}")
        folder = self._model(TEACHER, self.params.profile.models.teacher, config, runtime.dtype)
        model = load_causal_lm(folder, runtime.dtype, runtime.device)
        architecture = find_architecture(model)
        text_ids = torch.ones(len(architecture.decoder.head.weight_VD), dtype=torch.bool)

        def once() -> None:
            for left in ("targets", "progress"):
                shutil.rmtree(self.folder / left, ignore_errors=True)
            capture(
                model,
                architecture,
                self.teacher_windows,
                text_ids,
                params,
                params.seed,
                "synthetic",
                "synthetic",
                self.folder / "targets",
                self.folder / "progress",
            )

        positions = int(self.teacher_windows.token_counts.sum())
        self.found["capture_position"] = self._timed(once, "teacher") / positions
        export_head(architecture, "synthetic", self.folder / "head")
        self._depth = len(architecture.decoder.layers)
        self._experts = architecture.num_experts

    def open(self, config: PreTrainedConfig) -> None:
        """The student's folder, and what its windows are taught."""
        self._student = self._model(STUDENT, self.params.profile.models.student, config, torch.float32)
        self._split = open_split(self.folder / "windows/student", self.folder / "targets")
        experiment = self.params.experiment
        settings = target_settings(experiment)
        targets = self._targets(settings)
        numbers = cycle(range(len(self.student_windows)))
        self.found["target_window"] = self._timed(lambda: targets.of(next(numbers)))

    def train(self) -> None:
        """A micro-batch of each phase, the optimizer's step, and a validation."""
        params, train = self.params, self.params.profile.train
        runtime = make_runtime(params.experiment.precision)
        log(f"plan: measuring the student on {runtime.describe()}")
        of_phases = {
            "control": LM_ONLY,
            "train_kd": objective_at(0, params.experiment, train, {}, LARGEST_KD_WEIGHT),
            "train_router": objective_at(train.max_steps, params.experiment, train, {}, LARGEST_KD_WEIGHT),
        }
        for stage, objective in of_phases.items():
            with_states = stage == "train_router" and any(objective.weights.values())
            trainer = self._trainer(runtime, with_states)
            parts = self._parts(self._split if stage != "control" else Split(self.student_windows, None), with_states)
            batches = cycle(parts)
            step = self._timed(
                lambda trainer=trainer, batches=batches, objective=objective: self._step(  # type: ignore[misc]
                    trainer, next(batches), objective, runtime
                ),
                stage,
            )
            optimizer = self._timed(lambda trainer=trainer: trainer.optimizer.step())  # type: ignore[misc]
            tokens = sum(part.counts.tokens for part in parts) / len(parts)
            self.trained[stage] = max(step - optimizer, 0.0) / tokens
        self.found["optimizer_step"] = optimizer
        trainer.student.model.eval()
        seconds = self._timed(lambda: self._validate(trainer.student, next(batches), objective))
        self.found["validation_token"] = seconds / tokens

    def evaluate(self) -> None:
        """A student scored, and compared with the teacher."""
        batch = self.params.profile.evaluate.batch_windows
        model = load_causal_lm(self._student, torch.float32, self.device)
        targets = self._targets(AGREED_WITH)
        tokens = int(self.student_windows.token_counts.sum())
        scored = self._timed(lambda: score(model, self.student_windows, batch), "evaluate")
        compared = self._timed(lambda: compare(model, self.student_windows, targets, batch))
        self.found |= {"score_token": scored / tokens, "compare_token": compared / tokens}
        if "evaluate" in self.memory:
            self.memory["teacher_lead"] = self.memory["evaluate"]

    def _model(self, made: Path, model: object, config: PreTrainedConfig, dtype: torch.dtype) -> Path:
        """The folder of a model with weights: the one that is here, or a random one."""
        here = find_folder(made, model)  # type: ignore[arg-type]
        if here is not None and any(here.glob("*.safetensors")):
            return here
        folder = self.folder / made.name
        write_model(config, dtype, self.device, folder)
        return folder

    def _targets(self, settings: TargetSettings) -> WindowTargets:
        shards = self._split.shards
        assert shards is not None
        return WindowTargets(self.student_windows, shards, self.vocabulary_map, settings)

    def _parts(self, split: Split, with_states: bool) -> list[Batch]:
        """All micro-batches of the windows, on the device."""
        train, experiment = self.params.profile.train, self.params.experiment
        settings = target_settings(experiment)
        targets = None if split.shards is None else self._targets(settings)
        reader = BatchReader(split, targets, with_states, train.chunk_tokens)
        wanted = requests(range(len(split.windows)), train.micro_batch_windows)
        whole = [each for each in wanted if len(each.windows) == train.micro_batch_windows]
        return [to_device(reader.read(request), self.device) for request in whole]

    def _trainer(self, runtime: Runtime, with_states: bool) -> Trainer:
        params, train = self.params, self.params.profile.train
        model = load_causal_lm(self._student, torch.float32, runtime.device)
        if train.gradient_checkpointing:
            checkpoint_layers(model, "train.gradient_checkpointing")
        student = Student(model, heads=None, teacher_head=None)
        if with_states:
            decoder, shards = find_decoder(model), self._split.shards
            assert shards is not None
            pairs = layer_pairs(params.profile.teacher.hidden_layers, self._depth, len(decoder.layers))
            width = shards.index.fields["hidden"].shape[-1]
            heads = make_heads(pairs, decoder.hidden_size, width, self._experts, params.experiment.seed)
            head = load_teacher_head(self.folder / "head", runtime.device) if self._experts else None
            student = Student(model, heads.to(runtime.device), head)
        model.train()
        trainer = make_trainer(student, train, runtime, 0)
        set_learning_rate(trainer.optimizer, 0.0)  # the weights stay what they are
        return trainer

    def _step(self, trainer: Trainer, part: Batch, objective: Objective, runtime: Runtime) -> None:
        clip = self.params.profile.train.gradient_clip
        optimizer_step(trainer.student, [part], objective, trainer.optimizer, trainer.scaler, runtime, clip)

    @torch.no_grad()
    def _validate(self, student: Student, part: Batch, objective: Objective) -> None:
        evaluate_objective(student, part, objective, part.counts, None)

    def _timed(self, run: Callable[[], object], stage: str | None = None) -> float:
        """Seconds of a turn; `stage` is the one whose peak memory this is."""
        found = time_loop(run, self.device, self.seconds)
        if stage is not None and found.peak_bytes is not None:
            self.memory[stage] = found.peak_bytes
        return found.seconds
