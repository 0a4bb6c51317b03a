"""Start and end of a stage: it reads the parameters, and its errors become exit codes."""

import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from safetensors import SafetensorError

from moe_distill.config.params import Params, load_params
from moe_distill.errors import MoeDistillError
from moe_distill.log import log
from moe_distill.pipeline.known_errors import known_error
from moe_distill.pipeline.rank import Compute, is_rank, run_rank
from moe_distill.pipeline.resumable_work import hold_workspace
from moe_distill.pipeline.stage_summary import summary
from moe_distill.pipeline.stage_times import record_time
from moe_distill.utils.signals import Terminated, raise_at_once

RESUMED = {"teacher_correction", "teacher", "train_kd", "train_router", "control"}  # those that keep unfinished work


def run(stage: str, main: Callable[[Params], None], compute: Compute | None = None) -> None:
    """Load the parameters, run `main` and exit: 0, or the code of the error, which is printed as one line.

    With `--debug` the traceback of such an error is shown too.

    Args:
        compute: the part of the stage that several processes can share; each of them runs that alone.
    """
    signal.signal(signal.SIGTERM, raise_at_once)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if compute is not None and is_rank():
        run_rank(stage, compute)
    began = datetime.now(UTC)
    try:
        with hold_workspace(stage):
            main(load_params())
            record_time(stage, began)
        log(summary(stage, (datetime.now(UTC) - began).total_seconds()))
    except (MoeDistillError, OSError, SafetensorError, RuntimeError) as error:
        known = known_error(stage, error)
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
