"""Start and end of a stage: it reads the parameters, and its errors become exit codes."""

import signal
import sys
import time
import traceback
from collections.abc import Callable

from safetensors import SafetensorError

from moe_distill.config.params import Params, load_params
from moe_distill.errors import MoeDistillError, ResourceError
from moe_distill.log import log
from moe_distill.pipeline.resumable_work import hold_workspace
from moe_distill.pipeline.stage_summary import summary
from moe_distill.utils.disk_space import disk_full, read_only
from moe_distill.utils.signals import Terminated, raise_at_once

TRAINING_KEYS = "`train.micro_batch_windows` or `train.chunk_tokens`"
RESUMED = {"teacher_correction", "teacher", "train_kd", "train_router", "control"}  # those that keep unfinished work
MEMORY_KEYS = {  # the keys that bound the memory of a stage on the GPU
    "models@teacher": "`models.teacher.batch_windows`",
    "self_test": "`windows.teacher_max_length` or `windows.student_max_length`",
    "teacher_correction": "`models.teacher_correction.micro_batch_windows`",
    "teacher": "`teacher.batch_windows` or `teacher.chunk_positions`",
    "train_kd": TRAINING_KEYS,
    "train_router": TRAINING_KEYS,
    "control": TRAINING_KEYS,
    "teacher_lead": "`evaluate.batch_windows`",
    "evaluate": "`evaluate.batch_windows`",
}


def run(stage: str, main: Callable[[Params], None]) -> None:
    """Load the parameters, run `main` and exit: 0, or the code of the error, which is printed as one line.

    With `--debug` the traceback of such an error is shown too.
    """
    signal.signal(signal.SIGTERM, raise_at_once)
    try:
        began = time.monotonic()
        with hold_workspace(stage):
            main(load_params())
        log(summary(stage, time.monotonic() - began))
    except (MoeDistillError, OSError, SafetensorError, RuntimeError) as error:
        known = error if isinstance(error, MoeDistillError) else disk_full(error) or read_only(error)
        known = known or _out_of_memory(stage, error)
        if known is None:
            raise
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        print(f"{stage}: error: {known}", file=sys.stderr, flush=True)
        sys.exit(known.exit_code)
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; {_way_on(stage)}", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print(f"{stage}: terminated; {_way_on(stage)}", file=sys.stderr)
        sys.exit(143)


def _way_on(stage: str) -> str:
    """What the same command does after an interruption."""
    return "the same command continues" if stage in RESUMED else "the same command begins this stage anew"


def _out_of_memory(stage: str, error: Exception) -> ResourceError | None:
    """The error to show where the GPU ran out of memory; None for any other error."""
    from torch import OutOfMemoryError  # imported here: it takes seconds, which `check` does not need

    if not isinstance(error, OutOfMemoryError):
        return None
    why = " ".join(str(error).split())
    return ResourceError(f"{stage} needs more memory than the GPU has", why, f"lower {MEMORY_KEYS[stage]}")
