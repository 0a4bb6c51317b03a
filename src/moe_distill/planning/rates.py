"""What one token, step or window takes in each inner loop: estimated here from sizes and a device's table.

`measured.py` fills the same numbers by running the loops. Both are of one process.
"""

from dataclasses import dataclass

from moe_distill.config.params import Params
from moe_distill.planning.devices import Device
from moe_distill.planning.model_work import ModelWork, body_flops, forward_flops, training_flops
from moe_distill.planning.peak_memory import Layers, capture_memory, evaluation_memory, training_memory
from moe_distill.utils.device import resolve_precision

# Beside the same step with LM alone. Benchmarks hold the steps to these limits.
STEP_LIMITS = {"control": 1.0, "train_kd": 1.05, "train_router": 1.15}
# Over fp32 logits, read or written: range, largest, powers and sums, density, samples. Of few ids (teacher/sparsify.py)
# the largest take some more, and next to no time.
SPARSIFY_PASSES = 35
OPTIMIZER_BYTES = 40  # read and written for a weight: AdamW, the gradient's norm, its zeroing
DISK_BYTES_PER_SECOND = 200e6
LAYER_SECONDS = 0.4e-3  # of a layer's forward pass at least, however small it is: PyTorch starts its kernels one by one
TARGET_SECONDS = 20e-3  # a window's targets, in one loader process; kept ones cost nothing
NAMES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


@dataclass(frozen=True)
class Rates:
    """Seconds and bytes of the inner loops, of one process."""

    capture_position: float  # a position of the teacher: forward pass, sparse records, writing
    training_token: dict[str, float]  # a token forward and backward, by stage
    optimizer_step: float  # the rest of a step, without what processes tell each other
    target_window: float  # the targets of a window
    validation_token: float  # a token of an in-training validation
    score_token: float  # a token of a student that is scored
    compare_token: float  # a token of a student that is compared with the teacher
    memory: dict[str, float]  # peak bytes on the device, by stage


def estimate_rates(params: Params, device: Device, teacher: ModelWork, student: ModelWork, shard_row: float) -> Rates:
    """Estimate from sizes.

    Args:
        shard_row: bytes that are written for a position, its share of the states included.

    Raises:
        ConfigError: the device cannot compute in a precision of the parameters.
    """
    windows, capture, train = params.profile.windows, params.profile.teacher, params.profile.train
    lengths = {"teacher": windows.teacher_max_length - 1, "student": windows.student_max_length - 1}
    of_teacher, of_student = (
        NAMES[str(resolve_precision(each, device.capability))]
        for each in (capture.precision, params.experiment.precision)
    )
    micro = train.micro_batch_windows * lengths["student"]
    step = _seconds(training_flops(student, lengths["student"], train.gradient_checkpointing), device, of_student)
    step = max(step, _launches(student) * (4 if train.gradient_checkpointing else 3) / micro)
    forward = _seconds(forward_flops(student, lengths["student"]), device, "fp32")
    captured = capture.batch_windows * lengths["teacher"]
    capture_position = max(
        _seconds(body_flops(teacher, lengths["teacher"]), device, of_teacher), _launches(teacher) / captured
    )
    capture_position += _seconds(2 * teacher.head, device, "fp32")
    capture_position += SPARSIFY_PASSES * 4 * teacher.rows / device.bandwidth + shard_row / DISK_BYTES_PER_SECOND
    return Rates(
        capture_position=capture_position,
        training_token={stage: limit * step for stage, limit in STEP_LIMITS.items()},
        optimizer_step=OPTIMIZER_BYTES * student.parameters / device.bandwidth,
        target_window=TARGET_SECONDS,
        validation_token=max(forward, _launches(student) / micro),
        score_token=max(forward, _launches(student) / (params.profile.evaluate.batch_windows * lengths["student"])),
        compare_token=forward + TARGET_SECONDS / lengths["student"],
        memory=estimate_memory(params, device, teacher, student, of_teacher, of_student),
    )


def estimate_memory(
    params: Params, device: Device, teacher: ModelWork, student: ModelWork, of_teacher: str, of_student: str
) -> dict[str, float]:
    """Peak bytes on the device of one process, by stage.

    Args:
        of_teacher, of_student: precision of the capture, and of the training.
    """
    profile, fused = params.profile, device.fuses_attention
    windows, train, sizes = profile.windows, profile.train, {"fp32": 4, "fp16": 2, "bf16": 2}
    captured = Layers(sizes[of_teacher], windows.teacher_max_length - 1, fused)
    trained = Layers(sizes[of_student], windows.student_max_length - 1, fused)
    micro = train.micro_batch_windows * trained.length
    measured = evaluation_memory(
        student, Layers(4, trained.length, fused), profile.evaluate.batch_windows * trained.length
    )
    heads = (len(profile.teacher.hidden_layers) + 1) * student.hidden_size * teacher.hidden_size
    head_bytes = (teacher.head + teacher.last_block) * sizes[of_teacher] if teacher.experts else 0
    step = training_memory(student, trained, micro, train.chunk_tokens, train.gradient_checkpointing)
    with_states = training_memory(
        student, trained, micro, train.chunk_tokens, train.gradient_checkpointing, heads, head_bytes
    )
    return {
        "teacher": capture_memory(
            teacher,
            captured,
            profile.teacher.batch_windows * captured.length,
            profile.teacher.chunk_positions,
            len(profile.teacher.hidden_layers),
        ),
        "teacher_lead": measured,
        "train_kd": step,
        "train_router": with_states,
        "control": step,
        "evaluate": measured,
    }


def _seconds(flops: float, device: Device, precision: str) -> float:
    return flops / device.flops[precision]


def _launches(work: ModelWork) -> float:
    """Seconds that a forward pass of a batch takes at least."""
    return LAYER_SECONDS * work.layers * (1.5 if work.experts else 1.0)
