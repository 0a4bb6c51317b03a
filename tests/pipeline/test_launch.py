"""Two processes of a stage end together, with one message and the code of what ended the first of them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from moe_distill.config.params import Params
from moe_distill.errors import ConfigError, ResourceError
from moe_distill.pipeline.launch import _environment, _own_signals, in_processes
from tests.params import ROOT, fixed_params, make_workspace

# A stage whose second process does what the test wants while the first waits for it.
STAGE = """
import os, signal, sys, time
from pathlib import Path
from moe_distill.errors import DataError
from moe_distill.pipeline.launch import in_processes
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.processes import Processes

def compute(params, work, processes):
    print("hello from", processes.rank, flush=True)
    (work / f"{{processes.rank}}.pid").write_text(str(os.getpid()))
    if processes.rank == 1:
        {act}
    processes.wait()
    return {{"count": float(processes.count)}}

def main(params):
    work = Path("work")
    work.mkdir(exist_ok=True)
    print(in_processes("example", params, compute)(work))

if __name__ == "__main__":
    run("example", main, compute)
"""
ENDS = {
    "pass": (0, "", "hello from 0\n{'count': 2.0}\nexample: done in <time>\n"),
    "raise DataError('what', 'why', 'fix')": (3, "example: error: what; why; fix\n", "hello from 0\n"),
    "from moe_distill.utils.processes import PeerLostError; raise PeerLostError('NCCL says no')": (
        4,
        "example: error: one of its processes was ended with code 1; NCCL says no; the same command continues\n",
        "hello from 0\n",
    ),
    "os.kill(os.getpid(), signal.SIGKILL)": (
        4,
        "example: error: one of its processes was ended by signal 9; the same command continues\n",
        "hello from 0\n",
    ),
}


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    params = two_processes()
    make_workspace(tmp_path, params.profile)
    (tmp_path / "stages").mkdir()

    def started(act: str) -> subprocess.Popen[str]:
        (tmp_path / "stages/example.py").write_text(STAGE.format(act=act))
        own = {"PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command, environment = [sys.executable, "-m", "stages.example"], os.environ | own
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    return started


def two_processes() -> Params:
    params = fixed_params()
    launch = params.profile.launch.model_copy(update={"processes": 2})
    return params.model_copy(update={"profile": params.profile.model_copy(update={"launch": launch})})


@pytest.mark.parametrize("act", ENDS)
def test_both_end_as_the_second_does(start: Callable[[str], subprocess.Popen[str]], act: str) -> None:
    process = start(act)
    shown, said = process.communicate()
    assert (process.returncode, said, re.sub(r"[\d:]+ min", "<time>", shown)) == ENDS[act]


def test_a_defect_in_one_shows_its_traceback_once(start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start("raise ZeroDivisionError('a defect')")
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.count("Traceback") == said.count("ZeroDivisionError: a defect") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_all(
    start: Callable[[str], subprocess.Popen[str]], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start("time.sleep(600)")
    files = [tmp_path / f"work/{rank}.pid" for rank in range(2)]
    while not all(file.is_file() and file.read_text() for file in files):
        assert process.poll() is None
        time.sleep(0.05)
    ranks = [int(file.read_text()) for file in files]
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert said.count("\n") == 1
        assert "the same command begins this stage anew" in said, "as of every stage that keeps no unfinished work"
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in ranks if psutil.pid_exists(pid)], timeout=30)
    assert not alive


def test_a_stage_under_nohup_outlives_its_terminal(start: Callable[[str], subprocess.Popen[str]]) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what a child inherits, as from `nohup`
    try:
        process = start("os.kill(os.getppid(), signal.SIGHUP)")
    finally:
        signal.signal(signal.SIGHUP, previous)
    _, said = process.communicate()
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_every_signal_that_torch_has_taken_over_is_given_back(number: signal.Signals) -> None:
    """An older one takes all of these, whatever it is told."""
    before = signal.getsignal(number)
    try:
        with _own_signals():
            signal.signal(number, signal.SIG_IGN)
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, before)


def test_nodes_that_do_not_find_each_other_are_told_so(
    start: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first node's address is misspelt, or that node was never started."""
    settings = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "RDZV_CONF": "timeout=1"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not answer
        for name, value in (settings | {"MASTER_PORT": str(taken.getsockname()[1])}).items():
            monkeypatch.setenv(f"PET_{name}", value)
        process = start("pass")
        _, said = process.communicate()
    assert process.returncode == 4
    last = said.splitlines()[-1]  # of the lines before, torch's own code writes some
    assert re.fullmatch(r"example: error: the processes do not find each other; .*; start all nodes, with .*", last)
    assert "Traceback" not in said


def test_processes_share_the_cores_that_the_stage_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Slurm gives a job some of a machine's cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(6)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with _environment(2, tmp_path):
        assert os.environ["OMP_NUM_THREADS"] == "3"


def test_nodes_that_do_not_know_where_to_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    with pytest.raises(ConfigError, match=r"2 nodes do not know where to meet.*PET_MASTER_ADDR"):
        in_processes("train_kd", fixed_params(), lambda *_: {})


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ResourceError, match=r"`launch.processes` is 2, and this machine has 1 GPUs"):
        in_processes("train_kd", two_processes(), lambda *_: {})
