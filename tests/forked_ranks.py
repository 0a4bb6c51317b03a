"""Run a function in several processes of one group, as torchrun does: when one fails, the others are ended."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import distributed

from moe_distill.utils.processes import Processes, joined_processes

# A server that has imported everything forks each process, in a hundredth of the time that the imports take.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.forked_ranks", "tests.teacher.test_capture", "tests.training.conftest"])
HOST = "127.0.0.1"


def run_ranks(count: int, function: Callable[..., None], *arguments: Any) -> list[int]:
    """Run `function(processes, *arguments)` in `count` processes; returns their exit codes, 0 where all is well."""
    store = distributed.TCPStore(HOST, 0, None, True, wait_for_workers=False)  # type: ignore[attr-defined]
    ranks = [FORKS.Process(target=_rank, args=(rank, count, store.port, function, *arguments)) for rank in range(count)]
    for each in ranks:
        each.start()
    running = list(ranks)
    while running:
        wait([each.sentinel for each in running])
        if any(each.exitcode for each in ranks):
            for each in ranks:
                each.kill()
                each.join()
        running = [each for each in running if each.is_alive()]
    return [each.exitcode or 0 for each in ranks]


def _rank(rank: int, count: int, port: int, function: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the caller's, on a port that was free
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with joined_processes() as processes:
        assert processes == Processes(rank, count)
        function(processes, *arguments)
