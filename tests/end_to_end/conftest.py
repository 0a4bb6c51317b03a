"""A copy of the project, as a new git repository, through which the real pipeline has run once (tests/params.yaml)."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.params import PARAMS, ROOT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Checkout:
    folder: Path

    def run(self, *command: str, code: int | None = 0, **environment: str) -> str:
        """Run a command in the checkout; returns what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=clean_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert code is None or done.returncode == code, f"{command} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def stage(self, name: str, *arguments: str, code: int | None = 0) -> str:
        return self.run("python", "-m", f"stages.{name}", *arguments, code=code, PYTHONPATH="src")

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    identity = {
        f"GIT_{role}_{key}": "test@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    return kept | identity | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def ran(output: str) -> set[str]:
    """Names of the stages that DVC says it ran."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def runs_of(client: "MlflowClient") -> list["Run"]:
    """All runs of the project's experiment."""
    experiment = client.get_experiment_by_name("moe-distill")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def copy_of_the_project(folder: Path) -> Checkout:
    """Put the project's files, committed or not, into `folder` as a new git repository with the tests' params.yaml."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    generated = ("metrics/", "dvc.lock")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(generated):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy(PARAMS, folder)
    made = Checkout(folder)
    made.run("git", "init", "-q", "-b", "main")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-q", "-m", "start")
    return made


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return copy_of_the_project(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def first_run(checkout: Checkout) -> str:
    """What the first `dvc repro` printed."""
    return checkout.run("dvc", "repro")


@pytest.fixture
def own_checkout(checkout: Checkout, first_run: str, tmp_path: Path) -> Checkout:
    """The finished checkout, copied, for a test that changes it."""
    assert first_run
    shutil.copytree(checkout.folder, tmp_path / "checkout", symlinks=True)
    return Checkout(tmp_path / "checkout")
