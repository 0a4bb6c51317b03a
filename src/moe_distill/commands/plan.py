"""`moe-distill plan`: windows, steps, teacher rows and bytes that follow from the parameters, before a long run.

What is on disk already is counted, if it was made with the present parameters. The rest is estimated from them, and the
line says so.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator

import torch

from moe_distill.batches.split import mean_positions_with_states
from moe_distill.config.model_keys import TeacherCorrection, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.config.profile import MINIMUM_ROUTER_POSITIONS, MORE_STATES, most_positions_with_states
from moe_distill.correction.correction_disk_use import least_memory, most_adapter_weights, work_bytes
from moe_distill.models.config_checks import read_sizes
from moe_distill.models.model_weights import count_parameters, tensor_shapes
from moe_distill.pipeline.parameter_checks import model_sizes
from moe_distill.planning.model_configs import CORRECTED, STUDENT, TARGETS, TEACHER, WINDOWS, is_current
from moe_distill.shards.format import INDEX_NAME, row_bytes
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import SPLITS, STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.teacher.capture import capture_fields
from moe_distill.training.curriculum import phase1_steps
from moe_distill.training.schedule import ramps_are_complete
from moe_distill.training.trainer import phase_bytes
from moe_distill.utils.device import resolve_precision


def describe(params: Params) -> Iterator[str]:
    """Yield short lines about the workspace that is the current folder."""
    teacher, student = window_stores()
    if student and teacher:
        yield "windows: " + ", ".join(f"{len(student[split]):,} for {split}" for split in SPLITS)
    else:
        yield "windows: not known before: dvc repro tokenize"
    yield _steps(params, len(student["train"]) if student else None)
    if params.profile.models.teacher_correction is not None:
        yield _correction(params, params.profile.models.teacher_correction, teacher)
    yield _rows(params, teacher)
    yield _router(params, student, teacher)
    yield _stopping(params)


def window_stores() -> tuple[dict[str, WindowStore], dict[str, WindowStore]]:
    """The windows of teacher and student, by split; empty before `tokenize` has run."""
    return _stores("teacher", TEACHER_WINDOWS), _stores("student", STUDENT_WINDOWS)


def _stores(side: str, store_format: str) -> dict[str, WindowStore]:
    """The windows of both splits, by split; empty before `tokenize` has run."""
    folders = {split: WINDOWS / side / split for split in SPLITS}
    if not all((folder / INDEX_NAME).is_file() for folder in folders.values()) or not is_current(WINDOWS):
        return {}
    return {split: WindowStore(folder, store_format) for split, folder in folders.items()}


def _has_targets() -> bool:
    return all((TARGETS / split / INDEX_NAME).is_file() for split in SPLITS) and is_current(TARGETS)


def _steps(params: Params, n_windows: int | None) -> str:
    train, curriculum = params.profile.train, params.experiment.curriculum
    first = phase1_steps(train.max_steps, curriculum.curriculum_share, curriculum.phase1_share)
    line = (
        f"steps: {first:,} of train_kd, {train.max_steps - first:,} of train_router, {train.batch_windows} windows each"
    )
    if n_windows is None:
        return line
    return f"{line}: {train.max_steps * train.batch_windows / n_windows:.1f} epochs"


def _correction(params: Params, correction: TeacherCorrection, teacher: dict[str, WindowStore]) -> str:
    """A line about steps, work, memory and disk of the teacher's correction, as far as they are known yet."""
    line = f"teacher correction: {correction.steps:,} steps of {correction.batch_windows} windows"
    if teacher:
        windows = {split: len(store) for split, store in teacher.items()}
        tokens = {split: int(store.token_counts.sum()) for split, store in teacher.items()}
        epochs = correction.steps * correction.batch_windows / windows["train"]
        measured = 2 * min(1.0, correction.validation_windows / windows["validation"]) * tokens["validation"]
        # Forward, and backward to the states alone, which costs as much; a second forward pass where layers are twice.
        trained = (3 if correction.gradient_checkpointing else 2) * epochs * tokens["train"]
        passes = (trained + measured) / sum(tokens.values())
        line += f", {epochs:.1f} epochs, the work of about {passes:.1f} passes of the teacher over all windows"
    shapes = tensor_shapes(TEACHER)
    if not shapes or not is_current(TEACHER):
        return f"{line}; memory and disk are not known before: dvc repro models"
    rows = json.loads((TEACHER / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    positions = correction.micro_batch_windows * params.profile.windows.teacher_max_length
    adapters = most_adapter_weights(shapes, correction.rank)
    memory = least_memory(count_parameters(TEACHER), adapters, _teacher_item_bytes(params), positions, rows) / 1e9
    disk = _correction_bytes(params, correction) / 1e9
    return f"{line}; {memory:.2f} GB of memory and the layers' activations, at most {disk:.2f} GB of disk"


def _teacher_item_bytes(params: Params) -> int:
    """Bytes of a teacher's weight in the precision that it runs in on this machine."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return resolve_precision(params.profile.teacher.precision, capability).itemsize


def _correction_bytes(params: Params, correction: TeacherCorrection) -> int:
    """Bytes of the corrected teacher and of the checkpoints on the way to it, at most."""
    adapters = most_adapter_weights(tensor_shapes(TEACHER), correction.rank)
    return count_parameters(TEACHER) * _teacher_item_bytes(params) + work_bytes(4 * adapters)


def _rows(params: Params, teacher: dict[str, WindowStore]) -> str:
    """A line about rows and bytes of the shards."""
    if _has_targets():
        indexes = [open_targets(TARGETS / split).index for split in SPLITS]
        positions, states = (sum(index.rows(table) for index in indexes) for table in ("positions", "hidden"))
        n_bytes = sum(entry.bytes for index in indexes for entry in index.files)
        return f"teacher: {positions:,} rows, {states:,} with states, {n_bytes / 1e9:.2f} GB of shards"
    each = _row_bytes(params)
    if each is None:
        return "teacher: bytes of a row are not known before: dvc repro models"
    if not teacher:
        return f"teacher: {each['positions']:,} bytes a row, {each['hidden']:,} more with states"
    rows = _expected_rows(params, teacher)
    gigabytes = sum(rows[table] * each[table] for table in rows) / 1e9
    return (
        f"teacher: {rows['positions']:,} rows, about {rows['hidden']:,.0f} with states, "
        f"about {gigabytes:.2f} GB of shards"
    )


def bytes_to_come(params: Params) -> dict[str, float]:
    """Bytes of shards and checkpoints that the stages will write, by name, as far as they are known yet."""
    found, correction = dict[str, float](), params.profile.models.teacher_correction
    if (
        correction is not None
        and TEACHER.is_dir()
        and is_current(TEACHER)
        and not (CORRECTED / "config.json").is_file()
    ):
        found["corrected teacher"] = float(_correction_bytes(params, correction))
    teacher, each = _stores("teacher", TEACHER_WINDOWS), _row_bytes(params)
    if teacher and each is not None and not _has_targets():
        rows = _expected_rows(params, teacher)
        found["shards"] = sum(rows[table] * each[table] for table in rows)
    weights = 4 * count_parameters(STUDENT) if is_current(STUDENT) else 0  # trained in fp32
    if weights:
        found["checkpoints"] = float(phase_bytes(weights, weights))  # the heads are small
    return found


def _row_bytes(params: Params) -> dict[str, int] | None:
    """Bytes of a row of each table of the shards, as soon as the teacher's sizes are known."""
    sizes = _teacher_sizes(params)
    return None if sizes is None else row_bytes(capture_fields(params.profile.teacher, *sizes))


def _expected_rows(params: Params, teacher: dict[str, WindowStore]) -> dict[str, float]:
    """Expected rows of each table of the shards, both splits together."""
    return {
        "positions": sum(int(store.token_counts.sum()) for store in teacher.values()),
        "hidden": sum(_expected_states(params, store) for store in teacher.values()),
    }


def _teacher_sizes(params: Params) -> tuple[int, int] | None:
    """Hidden size and number of experts of the teacher; None before a teacher that is not tiny is here."""
    teacher = params.profile.models.teacher
    if isinstance(teacher, TinyTeacher):
        return teacher.hidden_size, teacher.num_experts
    sizes = model_sizes(teacher)
    if sizes is None and (TEACHER / "config.json").is_file() and is_current(TEACHER):
        sizes = read_sizes(TEACHER)
    return None if sizes is None else (sizes.hidden_size, sizes.experts)


def _expected_states(params: Params, teacher: WindowStore) -> float:
    """Expected positions with states: a run in a fraction of the windows that are long enough."""
    capture = params.profile.teacher
    return int((teacher.token_counts >= capture.hidden_run).sum()) * capture.hidden_fraction * capture.hidden_run


def _router(params: Params, student: dict[str, WindowStore], teacher: dict[str, WindowStore]) -> str:
    batch = params.profile.train.batch_windows
    if not params.experiment.losses.terms_of_states():
        return "router: no term of phase 2 has a weight; no states are needed"
    sizes = _teacher_sizes(params)
    if sizes is not None and not sizes[1]:
        return "router: the teacher's last block is dense; the router is off"
    if not student or not teacher:
        seen, word = most_positions_with_states(params.profile), "at most "
    elif _has_targets():
        targets = open_targets(TARGETS / "train")
        seen = mean_positions_with_states(student["train"], targets.rows("hidden") / targets.rows("positions")) * batch
        word = ""
    else:
        share = _expected_states(params, teacher["train"]) / int(teacher["train"].token_counts.sum())
        seen, word = mean_positions_with_states(student["train"], share) * batch, "about "
    if seen < MINIMUM_ROUTER_POSITIONS:
        verdict = f"too few: {MORE_STATES}"
    else:
        verdict = "it may be enough" if word == "at most " else "enough"
    line = f"router: a step sees {word}{seen:,.0f} positions with states, {MINIMUM_ROUTER_POSITIONS} are needed"
    return f"{line}: {verdict}"


def _stopping(params: Params) -> str:
    """A line on whether early stopping has enough validations; the first one only serves as the reference."""
    experiment, train = params.experiment, params.profile.train
    steps = range(train.validate_every, train.max_steps, train.validate_every)  # and the last, which ends it anyway
    watched = steps[bisect_left(steps, True, key=lambda step: ramps_are_complete(step, experiment, train)) :]
    counted = watched[1:]
    counted = counted[bisect_left(counted, experiment.early_stopping.warmup_steps) :]
    line = f"early stopping: {len(watched) + 1} validations follow the last ramp; it "
    if len(counted) >= experiment.early_stopping.patience:
        return f"{line}can end the training from step {counted[experiment.early_stopping.patience - 1]:,} on"
    keys = "`early_stopping.patience`, `early_stopping.warmup_steps` or `train.validate_every`"
    return f"{line}cannot end the training: that would need a lower {keys}"
