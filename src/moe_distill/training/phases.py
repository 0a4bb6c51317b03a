"""The three trainings of the pipeline, put together from folders: `train_kd`, `train_router` and `control`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from moe_distill.batches.batch_order import spread_windows
from moe_distill.batches.loader import BatchReader
from moe_distill.batches.split import Split, count_experts, mean_positions_with_states, open_split
from moe_distill.config.params import Params
from moe_distill.config.profile import require_router_positions
from moe_distill.errors import ConfigError
from moe_distill.log import log
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS, TEXT_TERMS
from moe_distill.models.checkpointing import checkpoint_layers
from moe_distill.models.decoder import find_decoder
from moe_distill.models.pretrained import load_causal_lm, save_causal_lm
from moe_distill.replay.block import load_teacher_head
from moe_distill.replay.head import read_description
from moe_distill.shards.provenance import check_same_teacher
from moe_distill.shards.teacher_store import open_targets
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import WindowTargets, asks_inside_tokens, target_settings
from moe_distill.training.curriculum import experts_warning
from moe_distill.training.input_checks import check_inputs, check_student_rows
from moe_distill.training.kd_weight import read_shared_text
from moe_distill.training.loop import Phase, TrainingContext, run_phase
from moe_distill.training.objective import Objective, Student
from moe_distill.training.recorder import Recorder, RecorderSettings
from moe_distill.training.replay_check import replay_fault
from moe_distill.training.result import Result
from moe_distill.training.schedule import LM_ONLY, first_phase_steps, objective_at, ramps_are_complete
from moe_distill.training.stage_folders import OPTIMIZER_NAME, TrainingInputs, TrainingOutputs
from moe_distill.training.student import layer_pairs, make_heads
from moe_distill.training.trainer import make_trainer, save_for_next_phase, take_over, work_bytes
from moe_distill.utils.device import Runtime, make_runtime, seed_everything
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.processes import ALONE, Processes


def train_kd(params: Params, inputs: TrainingInputs, outputs: TrainingOutputs, processes: Processes = ALONE) -> Result:
    """Phase 1: LM and KD, until the curriculum's first ramp opens."""
    experiment, train = params.experiment, params.profile.train
    phase = Phase(
        stage="train_kd",
        last_step=first_phase_steps(experiment, train),
        term_names=TEXT_TERMS,
        num_experts=0,
        adaptive=False,
        objective_at=lambda step, _scales, earned: objective_at(step, experiment, train, {}, earned),
        watches=lambda _step: False,
    )
    return _train(params, phase, 0, False, inputs, outputs, processes)


def control(params: Params, inputs: TrainingInputs, outputs: TrainingOutputs, processes: Processes = ALONE) -> Result:
    """The LM baseline, which distillation is measured against: the same steps, seed and text, with LM alone."""
    experiment, train = params.experiment, params.profile.train
    phase = Phase(
        stage="control",
        last_step=train.max_steps,
        term_names=("lm",),
        num_experts=0,
        adaptive=False,
        objective_at=lambda _step, _scales, _earned: LM_ONLY,
        watches=partial(ramps_are_complete, experiment=experiment, train=train),
    )
    return _train(params, phase, 0, False, inputs, outputs, processes)


def train_router(
    params: Params, inputs: TrainingInputs, outputs: TrainingOutputs, processes: Processes = ALONE
) -> Result:
    """Phase 2: hidden-state and router terms join on the curriculum."""
    experiment, train = params.experiment, params.profile.train
    assert inputs.targets is not None
    with_states = bool(experiment.losses.terms_of_states())
    num_experts = _replayable_experts(inputs.targets / "train", inputs.teacher_head) if with_states else 0
    warning = experts_warning(experiment, num_experts)
    if warning is not None:
        log(f"train_router: warning: {warning}")

    def objective(step: int, scales: Mapping[str, float], earned: float | None) -> Objective:
        return objective_at(step, experiment, train, dict(scales), earned)

    state_terms = HIDDEN_TERMS + (ROUTER_TERMS if num_experts else ())
    phase = Phase(
        stage="train_router",
        last_step=train.max_steps,
        term_names=TEXT_TERMS + (state_terms if with_states else ()),
        num_experts=num_experts,
        adaptive=experiment.balance == "adaptive",
        objective_at=objective,
        watches=partial(ramps_are_complete, experiment=experiment, train=train),
    )
    return _train(params, phase, first_phase_steps(experiment, train), with_states, inputs, outputs, processes)


def _replayable_experts(targets: Path, head: Path | None) -> int:
    """Experts that the router can mix; 0 where the teacher's last block is dense or cannot be replayed.

    Raises:
        DataError: the head is of another teacher than the shards.
    """
    shards = open_targets(targets)
    assert head is not None
    description = read_description(head)
    check_same_teacher(shards, head, description.teacher_fingerprint)
    if not count_experts(shards):
        log(f"train_router: {description.no_replay}; the router is off")
        return 0
    if shards.rows("hidden"):  # none: refused later
        fault = replay_fault(shards, load_teacher_head(head, torch.device("cpu")))
        if fault is not None:
            log(f"train_router: {fault}; the router is off")
            return 0
    return count_experts(shards)


def _train(
    params: Params,
    phase: Phase,
    first_step: int,
    with_states: bool,
    inputs: TrainingInputs,
    outputs: TrainingOutputs,
    processes: Processes,
) -> Result:
    experiment, train = params.experiment, params.profile.train
    seed_everything(experiment.seed)
    runtime = make_runtime(experiment.precision)
    log(f"{phase.stage}: {runtime.describe()}")
    train_split = open_split(inputs.windows / "train", _below(inputs.targets, "train"))
    validation_split = open_split(inputs.windows / "validation", _below(inputs.targets, "validation"))
    splits, vocabulary_map = [train_split, validation_split], inputs.windows / "vocabulary_map"
    asks_for_states = inputs.targets is not None and bool(experiment.losses.terms_of_states())
    head = inputs.teacher_head if asks_for_states else None
    check_inputs(splits, params.profile.teacher, inputs.student, vocabulary_map, head)
    if asks_for_states:
        _check_states(train_split, train.batch_windows)
    student = _student(params, phase, with_states, inputs, train_split, runtime)
    trainer = make_trainer(student, train, runtime, first_step)
    if inputs.optimizer is not None:
        take_over(trainer, inputs.optimizer / OPTIMIZER_NAME)
    outputs.work.mkdir(parents=True, exist_ok=True)
    n_bytes = work_bytes(trainer) - sum(path.stat().st_size for path in outputs.work.rglob("*.safetensors"))
    require_space(outputs.work, n_bytes, f"{phase.stage}: its checkpoints", "choose a smaller student")
    measures = inputs.targets is not None and experiment.kd_weight == "auto"
    recorder = Recorder(
        RecorderSettings(
            stage=phase.stage,
            last_step=phase.last_step,
            term_names=phase.term_names,
            num_experts=phase.num_experts,
            measures_kd_weight=measures,
            work=outputs.work,
            curves=outputs.curves,
            on_validation=outputs.on_validation,
        )
    )
    memory = train.target_memory_mb * 10**6 // max(1, train.loader_workers) // processes.count
    targets = _window_targets(phase.stage, params, inputs, splits, memory)
    watched = spread_windows(len(validation_split.windows), train.validation_windows)
    context = TrainingContext(
        train_batches=BatchReader(train_split, targets[0], with_states, train.chunk_tokens),
        validation_batches=BatchReader(validation_split, targets[1], with_states, train.chunk_tokens),
        window_lengths=train_split.windows.token_counts,
        validation_lengths=validation_split.windows.token_counts,
        train=train,
        stopping=experiment.early_stopping,
        seed=experiment.seed,
        runtime=runtime,
        shared_text=read_shared_text(train_split, validation_split, watched) if measures else None,
        processes=processes,
    )
    result = run_phase(trainer, phase, context, outputs.work, recorder if processes.is_first else None)
    if processes.is_first:
        save_causal_lm(student.model, inputs.student, outputs.student)
        if outputs.optimizer is not None:
            save_for_next_phase(trainer, outputs.optimizer / OPTIMIZER_NAME)
    return result


def _window_targets(
    stage: str, params: Params, inputs: TrainingInputs, splits: list[Split], memory_bytes: int
) -> list[WindowTargets | None]:
    """Targets of the training and the validation split; only the former's are asked for more than once."""
    train_split, validation_split = splits
    if train_split.shards is None or validation_split.shards is None:
        return [None, None]
    experiment = params.experiment
    inside_tokens = asks_inside_tokens(experiment)
    vocabulary_map = load_vocabulary_map(inputs.windows / "vocabulary_map", train_split.windows, inside_tokens)
    if experiment.kd_positions == "auto" and (not inside_tokens or vocabulary_map.merges is None):
        why = "no merges of the student's tokenizer are known" if inside_tokens else "the temperature is not 1"
        log(f"{stage}: KD at aligned positions alone (kd_positions): {why}")
    settings = target_settings(experiment)
    return [
        WindowTargets(train_split.windows, train_split.shards, vocabulary_map, settings, memory_bytes),
        WindowTargets(validation_split.windows, validation_split.shards, vocabulary_map, settings),
    ]


def _student(
    params: Params, phase: Phase, with_states: bool, inputs: TrainingInputs, split: Split, runtime: Runtime
) -> Student:
    model = load_causal_lm(inputs.student, torch.float32, runtime.device)
    check_student_rows(split, inputs.student, model.config.vocab_size)
    if params.profile.train.gradient_checkpointing:
        checkpoint_layers(model, "train.gradient_checkpointing")
    if not with_states or split.shards is None:
        return Student(model, heads=None, teacher_head=None)
    metadata, decoder = split.shards.index.metadata, find_decoder(model)
    teacher_layers, depth = metadata["hidden_layers"], metadata["layers"]
    assert isinstance(teacher_layers, list)
    assert isinstance(depth, int)
    pairs = layer_pairs(teacher_layers, depth, len(decoder.layers))
    teacher_size = split.shards.index.fields["hidden"].shape[-1]
    heads = make_heads(pairs, decoder.hidden_size, teacher_size, phase.num_experts, params.experiment.seed)
    teacher_head = None
    if phase.num_experts and inputs.teacher_head is not None:
        teacher_head = load_teacher_head(inputs.teacher_head, runtime.device)
    return Student(model, heads.to(runtime.device), teacher_head)


def _check_states(split: Split, batch_windows: int) -> None:
    """Refuse in the first phase what the second could not use: no states, or too few positions for the router.

    Raises:
        ConfigError: naming the keys to change.
    """
    assert split.shards is not None
    if not split.shards.rows("hidden"):
        raise ConfigError(
            f"{split.shards.folder} has no hidden states of the teacher, and `losses` asks for them",
            fix="raise `teacher.hidden_fraction`, or set every weight of `losses` to 0",
        )
    if count_experts(split.shards):
        share = split.shards.rows("hidden") / split.shards.rows("positions")
        require_router_positions(mean_positions_with_states(split.windows, share) * batch_windows)


def _below(folder: Path | None, split: str) -> Path | None:
    return None if folder is None else folder / split
