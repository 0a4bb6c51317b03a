"""Kill a real stage inside a chosen operation, and start it again."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.conftest import clean_environment

# Forks a process per stage: the imports, seconds long, are paid once. It computes nothing itself, so a fork is whole.
FORKER = """
import importlib, os, sys, traceback
from moe_distill.pipeline.stage_runner import run
stages = {name: importlib.import_module(f"stages.{name}") for name in
          ("corpus", "tokenize", "teacher", "train_kd", "train_router", "evaluate")}
import mlflow
for line in sys.stdin:
    stage, log = line.split()
    child = os.fork()
    if not child:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1), os.dup2(written, 2)
        code = 0
        try:
            run(stage, stages[stage].main)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
NO_STORE = "sqlite:////proc/no/such/folder/mlflow.db"  # tracking fails at once, which must not matter


@dataclass
class Run:
    """A stage that was started."""

    pid: int
    log: Path
    forker: subprocess.Popen[str]

    def wait(self) -> int:
        assert self.forker.stdout is not None
        return int(self.forker.stdout.readline())

    @property
    def said(self) -> str:
        return self.log.read_text()

    def signal_when(self, is_time: Callable[[], bool], number: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal while `is_time` holds, the process being stopped meanwhile; False if it ended before."""
        while self._state() not in "Z":
            if is_time():
                os.kill(self.pid, signal.SIGSTOP)
                while self._state() not in "TZ":
                    time.sleep(0.0005)
                if is_time() and self._state() == "T":
                    os.kill(self.pid, number)
                    os.kill(self.pid, signal.SIGCONT)
                    return True
                os.kill(self.pid, signal.SIGCONT)
            time.sleep(0.0005)
        return False

    def _state(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "Z"

    def steps(self) -> list[int]:
        """Steps that were logged."""
        return [int(number) for number in re.findall(r": step (\d+)/", self.said)]

    def resumed_at(self) -> int:
        found = re.search(r"resumed at step (\d+)", self.said)
        return int(found[1]) if found else 0


class Stages:
    """Starts stages in a checkout."""

    def __init__(self, folder: Path, forker: subprocess.Popen[str]) -> None:
        self.folder, self._forker, self._count = folder, forker, 0

    def start(self, stage: str) -> Run:
        self._count += 1
        log = self.folder / f"{stage}-{self._count}.log"
        log.touch()
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write(f"{stage} {log}\n")
        self._forker.stdin.flush()
        return Run(int(self._forker.stdout.readline()), log, self._forker)

    def exists(self, pattern: str) -> Callable[[], bool]:
        """Whether a path of the checkout matches, asked again and again."""
        return lambda: any(True for _ in self.folder.glob(pattern))


@contextmanager
def stages_of(folder: Path) -> Iterator[Stages]:
    forker = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": "src:.", "MLFLOW_TRACKING_URI": NO_STORE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Stages(folder, forker)
    finally:
        forker.kill()
        forker.communicate()
