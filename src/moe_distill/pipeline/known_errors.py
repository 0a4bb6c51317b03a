"""What a library raises for want of memory or disk, as an error of ours that names the keys to change."""

from moe_distill.errors import MoeDistillError, ResourceError
from moe_distill.pipeline.memory_keys import memory_fix
from moe_distill.utils.disk_space import disk_full, read_only

LOST_WORKER = "DataLoader worker (pid"  # as torch begins to say it; of an error that a worker raises it says the name


def known_error(stage: str, error: Exception) -> MoeDistillError | None:
    """The error to show for what ended a stage; None for a bug of this project."""
    if isinstance(error, MoeDistillError):
        return error
    return disk_full(error) or read_only(error) or _lost_worker(error) or _out_of_memory(stage, error)


def _lost_worker(error: Exception) -> ResourceError | None:
    """The error where the system has ended a process that makes batches ready, for want of memory as a rule."""
    if not isinstance(error, RuntimeError) or not str(error).startswith(LOST_WORKER):
        return None
    fix = "lower `train.loader_workers` or `train.target_memory_mb`; in a container, raise its shared memory"
    return ResourceError("a process that makes batches ready was ended", " ".join(str(error).split()), fix)


def _out_of_memory(stage: str, error: Exception) -> ResourceError | None:
    from torch import OutOfMemoryError  # imported here: it takes seconds, which `check` does not need

    if not isinstance(error, OutOfMemoryError):
        return None
    why = " ".join(str(error).split())
    return ResourceError(f"{stage} needs more memory than the GPU has", why, memory_fix(stage))
