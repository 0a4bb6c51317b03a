"""How a stage starts and ends: parameters in, exit code out."""

import signal
import sys
import traceback
from collections.abc import Callable

from safetensors import SafetensorError

from moe_distill.config.params import Params, load_params
from moe_distill.errors import MoeDistillError, ResourceError
from moe_distill.pipeline.resumable_work import hold_workspace
from moe_distill.utils.disk_space import disk_full
from moe_distill.utils.signals import Terminated, raise_at_once

TRAINING_KEYS = "`train.micro_batch_windows` or `train.chunk_tokens`"
MEMORY_KEYS = {  # what bounds the memory of a stage that computes on the GPU
    "models@teacher": "`models.teacher.batch_windows`",
    "teacher": "`teacher.batch_windows` or `teacher.chunk_positions`",
    "train_kd": TRAINING_KEYS,
    "train_router": TRAINING_KEYS,
    "control": TRAINING_KEYS,
    "evaluate": "`evaluate.batch_windows`",
}


def run(stage: str, main: Callable[[Params], None]) -> None:
    """Load the parameters, run `main` and exit: 0, or the code of the error, which is printed as one line.

    `--debug` shows the traceback of such an error too.
    """
    signal.signal(signal.SIGTERM, raise_at_once)
    try:
        with hold_workspace(stage):
            main(load_params())
    except (MoeDistillError, OSError, SafetensorError, RuntimeError) as error:
        known = error if isinstance(error, MoeDistillError) else disk_full(error) or _out_of_memory(stage, error)
        if known is None:
            raise
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        print(f"{stage}: error: {known}", file=sys.stderr, flush=True)
        sys.exit(known.exit_code)
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print(f"{stage}: terminated; the same command continues", file=sys.stderr)
        sys.exit(143)


def _out_of_memory(stage: str, error: Exception) -> ResourceError | None:
    """The error to show where the GPU's memory did not suffice; else None."""
    from torch import OutOfMemoryError  # seconds that `check` need not wait for

    if not isinstance(error, OutOfMemoryError):
        return None
    why = " ".join(str(error).split())
    return ResourceError(f"{stage} needs more memory than the GPU has", why, f"lower {MEMORY_KEYS[stage]}")
