"""How a stage starts and ends: parameters in, exit code out."""

import signal
import sys
from collections.abc import Callable

from moe_distill.config import Params, load_params
from moe_distill.errors import MoeDistillError
from moe_distill.interruption import Terminated, raise_at_once
from moe_distill.work import hold_workspace


def run(stage: str, main: Callable[[Params], None]) -> None:
    """Load the parameters, run `main` and exit: 0, or the code of the error, which is printed as one line.

    `--debug` shows the traceback of such an error too.
    """
    signal.signal(signal.SIGTERM, raise_at_once)
    try:
        with hold_workspace(stage):
            main(load_params())
    except MoeDistillError as error:
        if "--debug" in sys.argv[1:]:
            raise
        print(f"{stage}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print(f"{stage}: terminated; the same command continues", file=sys.stderr)
        sys.exit(143)
