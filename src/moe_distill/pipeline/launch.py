"""The processes of a stage: this one alone, or several that torchrun's engine starts, watches and ends together.

Several nodes are left to torchrun's own environment (docs/scaling.md): PET_NNODES and its like.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

from moe_distill.config.params import Params
from moe_distill.errors import ConfigError, ResourceError
from moe_distill.pipeline.rank import FAILURE_NAME, LOST_NAME, METRICS_NAME, WORK_VARIABLE, Compute, Failure
from moe_distill.utils.checksummed_json import read_json_object
from moe_distill.utils.machine import usable_cores
from moe_distill.utils.processes import ALONE
from moe_distill.utils.signals import raise_at_once

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # others do what they do to one process: `nohup` outlives its terminal
SECONDS_TO_END = 60  # that processes have after a signal, to finish a step and write a checkpoint
SHOWN_LENGTH = 300  # characters of what a library says


def in_processes(stage: str, params: Params, compute: Compute) -> Callable[[Path], dict[str, float]]:
    """How a stage computes in its work folder: by this process, or by as many as the profile wants.

    Raises:
        ConfigError, ResourceError: they cannot be started as the profile and the environment say.
    """
    processes, nodes = params.profile.launch.processes, os.environ.get("PET_NNODES", "1")
    if processes == 1 and nodes == "1":
        return lambda work: compute(params, work, ALONE)
    if nodes != "1" and not os.environ.keys() & {"PET_RDZV_ENDPOINT", "PET_MASTER_ADDR"}:
        raise ConfigError(
            f"{nodes} nodes do not know where to meet",
            "PET_NNODES is set, PET_MASTER_ADDR and PET_RDZV_ENDPOINT are not",
            "set PET_MASTER_ADDR to the first node's address on all of them: docs/scaling.md",
        )
    _check_gpus(processes)
    return partial(_launch, stage, processes)


def _check_gpus(processes: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise ResourceError(
            f"`launch.processes` is {processes}, and this machine has {torch.cuda.device_count()} GPUs",
            fix="lower `launch.processes`: each process has a GPU of its own",
        )


def _launch(stage: str, processes: int, work: Path) -> dict[str, float]:
    """Run the processes of a stage to their end.

    Raises:
        MoeDistillError: that ended the first one that failed.
        ResourceError: one was ended by the system, or they do not find each other.
        Terminated, KeyboardInterrupt: a signal has ended all.
    """
    from torch.distributed import DistError, run  # imported here: one process does not need it
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    metrics = work / METRICS_NAME
    for name in (FAILURE_NAME, LOST_NAME):
        (work / name).unlink(missing_ok=True)
    options = ["--nproc-per-node", str(processes), "--monitor-interval", "0.2"]
    with _own_signals(), _environment(processes, work):
        try:
            run.run(run.parse_args([*options, "-m", f"stages.{stage}"]))
        except SignalException as error:
            raise_at_once(error.sigval, None)
        except ChildFailedError as error:
            _raise_reason(work, min(each.exitcode for each in error.failures.values()))
        except (DistError, RendezvousError) as error:
            fix = "start all nodes, with the same PET_MASTER_ADDR and PET_MASTER_PORT that no other run has"
            raise ResourceError("the processes do not find each other", _one_line(error), fix) from error
    values = read_json_object(metrics)
    metrics.unlink()
    return {name: float(str(value)) for name, value in values.items()}


def _raise_reason(work: Path, exit_code: int) -> NoReturn:
    """Raise what ended the first of the processes; of a bug, show the traceback.

    Args:
        exit_code: negative where a signal has ended one of them, which explains what the others have lost.
    """
    failure, lost = work / FAILURE_NAME, work / LOST_NAME
    if not failure.is_file():
        how = f"by signal {-exit_code}" if exit_code < 0 else f"with code {exit_code}"
        told = lost.read_text(encoding="utf-8") if exit_code >= 0 and lost.is_file() else ""
        raise ResourceError(f"one of its processes was ended {how}", _one_line(told), "the same command continues")
    left = Failure.model_validate_json(failure.read_text(encoding="utf-8"))
    failure.unlink()
    known = left.to_error()
    if known is None:
        print(left.what, file=sys.stderr)
        sys.exit(1)
    raise known


def _one_line(told: object) -> str:
    return " ".join(str(told).split())[:SHOWN_LENGTH]


@contextmanager
def _own_signals() -> Iterator[None]:
    """torchrun's engine takes the signals over, and does not give them back."""
    taken = (*SIGNALS, signal.SIGHUP, signal.SIGQUIT)  # the last two by an older torch, which knows no choice
    previous = {number: signal.getsignal(number) for number in taken}
    logging.disable(logging.CRITICAL)  # it would tell of every process in lines of its own
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _environment(processes: int, work: Path) -> Iterator[None]:
    """What the processes find in their environment, and torchrun: as options, an older one would refuse these."""
    kept = dict(os.environ)
    os.environ[WORK_VARIABLE] = str(work)
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(each.name for each in SIGNALS)
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", str(SECONDS_TO_END))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    if os.environ.get("PET_NNODES", "1") == "1" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing leaves this machine
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
