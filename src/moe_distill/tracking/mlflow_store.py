"""The MLflow store of a project: made once, whoever comes first, and its artifacts beside it wherever it is moved."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from moe_distill.utils.files import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "moe-distill"
PROBE_SECONDS = 2.0  # the longest wait for a locked database; MLflow would wait 20 s for each statement
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # instead of its tracebacks one line is logged
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}
SQLITE = "sqlite:///"
MOVE_EXPERIMENT = "UPDATE experiments SET artifact_location = ?1 WHERE experiment_id = ?2 AND artifact_location != ?1"
MOVE_RUNS = (
    "UPDATE runs SET artifact_uri = ?1 || '/' || run_uuid || '/artifacts'"
    " WHERE experiment_id = ?2 AND artifact_uri != ?1 || '/' || run_uuid || '/artifacts'"
)


@dataclass(frozen=True)
class MlflowStore:
    """An open store with the project's experiment in it."""

    client: "MlflowClient"
    experiment: str  # its id
    is_own: bool  # the project's own file, which moves with it; else it is named by MLFLOW_TRACKING_URI


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else `mlflow.db` in the main checkout, by its absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{project_root() / 'mlflow.db'}"


def open_store() -> MlflowStore:
    """Open the store, made if need be; to be called under a lock, since two of MLflow's own creations collide.

    Raises:
        OSError: the database cannot be written to, or is locked by another program.
        MlflowException: the store is none, or a server that cannot be reached.
    """
    from mlflow import MlflowClient

    uri, is_own = store_uri(), not os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = None  # a server has its own place for them
    if not uri.startswith(("http", "databricks")):
        artifacts = (project_root() / "mlartifacts").as_uri()
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE).partition("?")[0])
        if not path.exists():
            _create(path, lambda address: MlflowClient(tracking_uri=address).search_experiments())
        try:
            _probe(path, artifacts if is_own else None)
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return MlflowStore(client, found.experiment_id, is_own)
    made = client.create_experiment(EXPERIMENT, artifacts)
    return MlflowStore(client, made, is_own)


def find_runs(store: MlflowStore, where: str) -> list["Run"]:
    """All runs of the experiment that fulfil a condition in MLflow's words, the latest first."""
    page = store.client.search_runs([store.experiment], where)
    runs = list(page)
    while page.token:  # a page has a thousand
        page = store.client.search_runs([store.experiment], where, page_token=page.token)
        runs += page
    return runs


def what_failed(error: Exception) -> str:
    """The first line of an error of the store, after the name of the variable that named another than the project's.

    It has no addresses of objects, so that the same error is always the same line; and what a URI holds, such as a
    password, stands in it only where MLflow puts it there.
    """
    reason = str(error).partition("\n")[0].strip().removesuffix(".") or type(error).__name__
    named = "the store that MLFLOW_TRACKING_URI names: " if os.environ.get("MLFLOW_TRACKING_URI") else ""
    return named + re.sub(r" (object )?at 0x[0-9a-f]+", "", reason)[:300]


def _create(path: Path, fill: Callable[[str], object]) -> None:
    """Make the tables of a database under another name: MLflow cannot repair one half created."""
    unfinished = path.with_name(f"{path.name}.new")
    rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fill(f"{SQLITE}{unfinished / path.name}")
    (unfinished / path.name).rename(path)
    rmtree(unfinished)


def _probe(path: Path, artifacts: str | None) -> None:
    """Fail soon where a database cannot be written to; bring the places of artifacts up to date in the project's own.

    MLflow stores them as absolute addresses: in a copy of the project they would be the original's, and what is logged
    there would land in it. It has no call that changes them.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=PROBE_SECONDS)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name IN ('experiments', 'runs')").fetchall()
        if artifacts is None or len(tables) < 2:
            return
        row = connection.execute("SELECT experiment_id FROM experiments WHERE name = ?", [EXPERIMENT]).fetchone()
        if row is None:
            return
        connection.execute(MOVE_EXPERIMENT, (artifacts, row[0]))
        connection.execute(MOVE_RUNS, (artifacts, row[0]))
        connection.commit()
