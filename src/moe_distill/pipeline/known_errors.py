"""What a library raises for want of memory or disk, as an error of ours that names the keys to change."""

from moe_distill.errors import MoeDistillError, ResourceError
from moe_distill.utils.disk_space import disk_full

TRAINING_KEYS = "`train.micro_batch_windows` or `train.chunk_tokens`"
MEMORY_KEYS = {  # the keys that bound the memory of a stage on the GPU
    "models@teacher": "`models.teacher.batch_windows`",
    "self_test": "`windows.teacher_max_length` or `windows.student_max_length`",
    "teacher_correction": "`models.teacher_correction.micro_batch_windows`",
    "teacher": "`teacher.batch_windows` or `teacher.chunk_positions`",
    "train_kd": TRAINING_KEYS,
    "train_router": TRAINING_KEYS,
    "control": TRAINING_KEYS,
    "teacher_examples": "`windows.teacher_max_length`",
    "teacher_lead": "`evaluate.batch_windows`",
    "evaluate": "`evaluate.batch_windows`",
}


def known_error(stage: str, error: Exception) -> MoeDistillError | None:
    """The error to show for what ended a stage; None for a bug of this project."""
    if isinstance(error, MoeDistillError):
        return error
    return disk_full(error) or _out_of_memory(stage, error)


def _out_of_memory(stage: str, error: Exception) -> ResourceError | None:
    from torch import OutOfMemoryError  # imported here: it takes seconds, which `check` does not need

    if not isinstance(error, OutOfMemoryError):
        return None
    why = " ".join(str(error).split())
    return ResourceError(f"{stage} needs more memory than the GPU has", why, f"lower {MEMORY_KEYS[stage]}")
