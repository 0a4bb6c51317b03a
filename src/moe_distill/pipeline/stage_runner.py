"""Start and end of a stage: it reads the parameters, and its errors become exit codes."""

import signal
import sys
import traceback
from collections.abc import Callable

from safetensors import SafetensorError

from moe_distill.config.params import Params, load_params
from moe_distill.errors import MoeDistillError, ResourceError
from moe_distill.pipeline.memory_keys import memory_fix
from moe_distill.pipeline.resumable_work import hold_workspace
from moe_distill.utils.disk_space import disk_full
from moe_distill.utils.signals import Terminated, raise_at_once


def run(stage: str, main: Callable[[Params], None]) -> None:
    """Load the parameters, run `main` and exit: 0, or the code of the error, which is printed as one line.

    With `--debug` the traceback of such an error is shown too.
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
    """The error to show where the GPU ran out of memory; None for any other error."""
    from torch import OutOfMemoryError  # imported here: it takes seconds, which `check` does not need

    if not isinstance(error, OutOfMemoryError):
        return None
    why = " ".join(str(error).split())
    return ResourceError(f"{stage} needs more memory than the GPU has", why, memory_fix(stage))
