"""One of several processes that compute a stage together: it has the stage's work folder, and touches nothing else.

The process that started them (launch.py) holds the locks and publishes. What ended the first of them that failed lies
in a file of the work folder; the others only lose it. What the first to lose another was told of that lies in a second
file: where no process has failed by itself, such as when they cannot reach each other, it is all there is.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import BaseModel, ConfigDict

from moe_distill import errors
from moe_distill.config.params import Params, load_params
from moe_distill.pipeline.known_errors import known_error
from moe_distill.utils.files import write_json
from moe_distill.utils.signals import Terminated

if TYPE_CHECKING:
    from moe_distill.utils.processes import Processes

WORK_VARIABLE = "MOE_DISTILL_WORK"  # the work folder, for rank 0
FAILURE_NAME, LOST_NAME, METRICS_NAME = "failure.json", "peer_lost.txt", "metrics.json"

Compute = Callable[[Params, Path, "Processes"], dict[str, float]]


class Failure(BaseModel):
    """What ended a process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: str  # name of a class of errors.py; empty for a bug of this project
    what: str  # of a bug: the traceback
    why: str
    fix: str

    def to_error(self) -> errors.MoeDistillError | None:
        """The error that it was; None for a bug."""
        if not self.error:
            return None
        known: type[errors.MoeDistillError] = getattr(errors, self.error)
        return known(self.what, self.why, self.fix)


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_rank(stage: str, compute: Compute) -> NoReturn:
    """Compute this process's part and exit: 0, or a code that says nothing; the reason is in the work folder."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # torch takes seconds, which `check` does not need
    from moe_distill.utils.processes import PeerLostError, joined_processes

    wanted = os.environ.get(WORK_VARIABLE, "")  # another node learns it from rank 0
    work = Path(wanted) if wanted else None
    try:
        params = load_params()
        with joined_processes() as processes:
            work = Path(processes.text(wanted))
            if not processes.is_first:
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # rank 0 speaks for all
            metrics = compute(params, work, processes)
            if processes.is_first:
                write_json(work / METRICS_NAME, metrics)
    except (KeyboardInterrupt, Terminated):
        _exit(1)
    except PeerLostError as error:
        _leave_word(work, LOST_NAME, str(error))
        _exit(1)
    except Exception as error:
        _leave_word(work, FAILURE_NAME, _failure(known_error(stage, error)).model_dump_json())
        _exit(1)
    _exit(0)


def _failure(known: errors.MoeDistillError | None) -> Failure:
    if known is None:
        return Failure(error="", what=traceback.format_exc(), why="", fix="")
    return Failure(error=type(known).__name__, what=known.what, why=known.why, fix=known.fix)


def _leave_word(work: Path | None, name: str, word: str) -> None:
    """Write why this process ends, unless another one has; before rank 0 has said where, to the console."""
    if work is None:
        print(word, file=sys.stderr)
        return
    try:
        with (work / name).open("x", encoding="utf-8") as file:
            file.write(word)
    except FileExistsError:
        return


def _exit(code: int) -> NoReturn:
    """End now: threads of a process group that has lost a member may not."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_the_parent() -> None:
    """Whatever has ended it: nobody else would ever end this process."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
