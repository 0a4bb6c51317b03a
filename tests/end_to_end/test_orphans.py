"""`dvc` killed alone: its stage goes on, no second writer comes, and the next `dvc repro` is told who works."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from moe_distill.utils.files import folder_fingerprint
from tests.end_to_end.conftest import Checkout, clean_environment, ran


@pytest.fixture
def long_training(own_checkout: Checkout) -> Checkout:
    """`train_kd` will run again, and for a while."""
    own_checkout.edit("profiles/test.yaml", "max_steps: 60", "max_steps: 1200")
    return own_checkout


@contextmanager
def dvc_repro(checkout: Checkout, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        command = ["dvc", "repro", "train_kd"]
        process = subprocess.Popen(
            command, cwd=checkout.folder, env=clean_environment(), stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its stage too: the session's group outlives its leader
        process.wait()


def wait_for(log: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not re.search(pattern, log.read_text()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_r21_a_stage_outlives_its_dvc_and_no_second_one_starts(
    long_training: Checkout, tmp_path: Path, number: signal.Signals
) -> None:
    checkout, log = long_training, tmp_path / "log"
    with dvc_repro(checkout, log) as dvc:
        wait_for(log, r"train_kd: step 3/")
        dvc.send_signal(number)
        dvc.wait()
        pid = int((checkout.folder / ".work/workspace.owner").read_text().split()[1])
        os.kill(pid, signal.SIGSTOP)  # so that it is not done before it has been asked about
        output = checkout.run("dvc", "repro", "train_kd", code=None)
        assert f"train_kd already runs in this workspace as process {pid}; wait for it" in output
        assert ran(output) == {"check"}  # it was refused there, before anything was removed
        assert Path(f"/proc/{pid}").exists()
        assert f"train_kd runs here as process {pid}" in checkout.run("moe-distill", "doctor", code=None)
        checkout.run("python", "-m", "stages.check", code=4, PYTHONPATH="src")

        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGTERM)
        wait_for(log, r"train_kd: terminated; the same command continues")
        last = max(int(step) for step in re.findall(r": step (\d+)/", log.read_text()))
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)
    with dvc_repro(checkout, tmp_path / "again"):
        wait_for(tmp_path / "again", rf"resumed at step {last}\n")


@pytest.mark.slow
def test_r21_an_orphaned_stage_ends_its_work_and_the_next_run_takes_it(long_training: Checkout, tmp_path: Path) -> None:
    checkout, log = long_training, tmp_path / "log"
    checkout.edit("profiles/test.yaml", "max_steps: 1200", "max_steps: 120")
    with dvc_repro(checkout, log) as dvc:
        wait_for(log, r"train_kd: step 3/")
        dvc.kill()
        dvc.wait()
        pid = int((checkout.folder / ".work/workspace.owner").read_text().split()[1])
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
    made = folder_fingerprint(checkout.folder / "models/student_kd")
    output = checkout.run("dvc", "repro", "train_kd")
    assert "its result is taken" in output
    assert "step " not in output
    assert folder_fingerprint(checkout.folder / "models/student_kd") == made
    assert ran(checkout.run("dvc", "repro", "train_kd")) == {"check"}
    assert "train_kd: step" in checkout.run("dvc", "repro", "-f", "-s", "train_kd")  # nobody waits: it computes again
