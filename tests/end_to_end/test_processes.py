"""A training by two and three processes is that of one: its figures to 1e-5; killed, it goes on with another number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.chain import Chain
from tests.params import ROOT, make_workspace

STEPS = 8
CHANGES = {  # six micro-batches a step
    "max_steps": STEPS,
    "batch_windows": 12,
    "micro_batch_windows": 2,
    "checkpoint_every": 2,
    "validate_every": 4,
    "validation_windows": 7,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def prepared(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after train_kd by one process."""
    folder = tmp_path_factory.mktemp("processes") / "workspace"
    for name in ("data", "models"):
        shutil.copytree(chain.folder / name, folder / name)
    train = chain.params.profile.train.model_copy(update=CHANGES)
    make_workspace(folder, chain.params.profile.model_copy(update={"train": train}))
    for name in ("src", "stages"):
        (folder / name).symlink_to(ROOT / name)
    assert run(folder, "train_kd").returncode == 0
    return folder


def copied(workspace: Path, folder: Path, processes: int) -> Path:
    shutil.copytree(workspace, folder, symlinks=True)
    set_processes(folder, processes)
    return folder


def set_processes(folder: Path, processes: int) -> None:
    path = folder / "profiles/test.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"launch": {"processes": processes}}))


def start(folder: Path, stage: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": "src", "DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"stages.{stage}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(folder: Path, stage: str) -> subprocess.Popen[str]:
    process = start(folder, stage)
    process.communicate()
    return process


def figures(folder: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((folder / "metrics/train_router.json").read_text())
    return {name: value for name, value in values.items() if not name.endswith(("per_second", "_at"))}


@pytest.fixture(scope="module")
def of_one(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied(prepared, tmp_path_factory.mktemp("one") / "workspace", 1)
    assert run(folder, "train_router").returncode == 0
    return folder


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_as_one_does(prepared: Path, of_one: Path, tmp_path: Path, processes: int) -> None:
    folder = copied(prepared, tmp_path / "workspace", processes)
    assert run(folder, "train_router").returncode == 0
    assert figures(folder) == pytest.approx(figures(of_one), abs=1e-5)
    curve, expected = (each / "metrics/curves/train_router.tsv" for each in (folder, of_one))
    assert len(curve.read_text().splitlines()) == len(expected.read_text().splitlines()), "one process records"


def test_killed_beside_another_it_goes_on_alone(prepared: Path, of_one: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path / "workspace", 2)
    process = start(folder, "train_router")
    while not list((folder / ".work/train_router").glob("*/checkpoint_*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(psutil.Process(process.pid).children()[1].pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 4
    assert said.splitlines()[-1].endswith("was ended by signal 9; the same command continues")
    set_processes(folder, 1)
    again = start(folder, "train_router")
    shown, _ = again.communicate()
    assert again.returncode == 0
    assert "resumed at step" in shown
    assert figures(folder) == pytest.approx(figures(of_one), abs=1e-5)


def test_a_step_that_cannot_be_shared_evenly_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path / "workspace", 4)
    process = start(folder, "train_router")
    _, said = process.communicate()
    assert process.returncode == 2
    assert "4 processes cannot share a step of 6 micro-batches evenly" in said
    assert "Traceback" not in said
