"""Checkouts in memory, without a database and with an empty one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from moe_distill.tracking import live_runs, mlflow_runs, mlflow_store
from tests.tracking.experiments import Store

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where fsync, most of the time of a new database, is free


@pytest.fixture(scope="module")
def empty_database() -> Iterator[Path]:
    """A database without runs, made once: its tables take a second or more."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        Store(Path(folder)).client.search_experiments()
        yield Path(folder, "mlflow.db")


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_runs, "_pace", mlflow_runs._Pace())
    monkeypatch.setattr(mlflow_runs, "PAUSE", 0)
    monkeypatch.setattr(live_runs, "_held", {})
    for name in ("DVC_EXP_NAME", "DVC_ROOT", "MLFLOW_TRACKING_URI", *mlflow_store.MLFLOW_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def checkout_in_memory() -> Iterator[Path]:
    """A folder without a database; the blank in its name is part of the test."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        root = Path(folder, "main checkout")
        root.mkdir()
        yield root


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout without a database, the current folder."""
    with checkout_in_memory() as root:
        monkeypatch.chdir(root)
        yield root


@pytest.fixture
def root(fresh: Path, empty_database: Path) -> Path:
    shutil.copyfile(empty_database, fresh / "mlflow.db")
    return fresh
