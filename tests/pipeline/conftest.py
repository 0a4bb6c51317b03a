"""A small project with the real dvc and git, edited by its user, and what must stand in it after a repair."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_distill.commands import doctor
from moe_distill.pipeline.dvc_repair import EXEC_REFS, QUEUED, killed_experiment, repair_repository

PARAMS = "temperature: 1.0 # of the softmax\nkd_weight: 0.9\n"
STAGES = """
stages:
  train:
    cmd: echo begun > begun; sleep 60
    params: [temperature]
    outs: [model]
"""
DVC = str(Path(sys.executable).parent / "dvc")
USERS = {"nötes.md": "first\nof the user\n", "params.yaml": PARAMS.replace("0.9", "0.8 # of the user")}
OF_HEAD = {"nötes.md": "first\n", "params.yaml": PARAMS}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    files = {
        "params.yaml": PARAMS,
        "dvc.yaml": STAGES,
        "nötes.md": "first\n",
        "old.md": "old\n",
        ".gitignore": "/begun\n/.work\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    commands = [
        ["git", "init", "-q", "-b", "topic"],
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@example.com"],
        [DVC, "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "start"],
    ]
    for command in commands:
        subprocess.run(command, cwd=folder, check=True, env=environment())
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Edited by its user: one file and one parameter, not committed."""
    shutil.copytree(template, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    write_users_edits(Path())
    return tmp_path / "project"


def write_users_edits(folder: Path) -> None:
    for name, content in USERS.items():
        (folder / name).write_text(content)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def head() -> str:
    return Path(".git/HEAD").read_text().strip()


def everything_is_in_place() -> None:
    assert head() == "ref: refs/heads/topic"
    assert git("diff", "--cached", "--name-only") == ""
    assert set(git("for-each-ref", "--format=%(refname)", EXEC_REFS).split()) <= {f"{EXEC_REFS}/EXEC_HEAD"}
    assert git("for-each-ref", QUEUED) == ""
    assert [path.name for path in Path(".git").rglob("*.lock")] == []
    assert killed_experiment() is None
    assert list(doctor._killed_dvc()) == []
    assert list(repair_repository(Path())) == []


def the_users_edits_stand() -> None:
    assert {name: Path(name).read_text() for name in USERS} == USERS


def kill_when(is_time: Callable[[], bool], *arguments: str) -> int:
    """Run `dvc exp run`, and kill it and its stage as soon as `is_time`; the pid of the dead dvc."""
    command = [DVC, "exp", "run", "-S", "temperature=3.0", *arguments]
    dvc = subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            os.killpg(dvc.pid, signal.SIGSTOP)  # so that it is still true when the kill arrives
            if is_time():
                return dvc.pid
            os.killpg(dvc.pid, signal.SIGCONT)
            assert dvc.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()


def stage_runs() -> bool:
    return Path("begun").is_file()
