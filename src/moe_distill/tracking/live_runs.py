"""Which runs have a process behind them: the others must not stay RUNNING.

A process locks a file of its run, and the operating system lets go of it when the process is gone, however it ended. So
no pid is compared, which another process may have by now, or which means nothing in a copy of the project elsewhere.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from moe_distill.tracking.mlflow_store import MLFLOW_ENVIRONMENT, MlflowStore, find_runs, open_store
from moe_distill.utils.files import project_root

if TYPE_CHECKING:
    from mlflow.entities import Run

PLACE_TAG, PARENT_TAG = "moe_distill.place", "mlflow.parentRunId"
_held: dict[str, FileLock] = {}  # run id -> its lock, while this process is behind it


@contextmanager
def opened_store(patience: float) -> Iterator[MlflowStore]:
    """The store, for this process alone; runs whose process is gone have been ended.

    Args:
        patience: seconds to wait for another process.

    Raises:
        OSError, Timeout, MlflowException: it is none, or out of reach.
    """
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # takes seconds: imported before the lock is held

    with FileLock(project_root() / ".work/mlflow.lock", timeout=patience):
        store = open_store()
        end_orphans(store)
        yield store


def place() -> str:
    """Where the locks of this project's runs lie: machine and folder."""
    return f"{platform.node()}:{project_root()}"


def hold(run_id: str) -> None:
    """Be the process behind a run, until `let_go` or the end of the process."""
    if run_id not in _held:
        path = _lock_file(run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=1.0)
        _held[run_id] = lock


def held() -> list[str]:
    """The runs that this process is behind."""
    return list(_held)


def let_go(run_id: str) -> None:
    """End what `hold` began, if it did."""
    if run_id in _held:
        _lock_file(run_id).unlink(missing_ok=True)
        _held.pop(run_id).release()


def end_orphans(store: MlflowStore) -> None:
    """Set runs that are RUNNING without a process to KILLED, at the time of their last sign of life.

    A parent run is alive as long as one nested in it is. In a store that several projects share, only runs of this
    place are judged.
    """
    running = find_runs(store, "attributes.status = 'RUNNING'")
    known = [run for run in running if store.is_own or run.data.tags.get(PLACE_TAG) == place()]
    nested = [run for run in known if PARENT_TAG in run.data.tags]
    alive = [run for run in nested if _is_alive(run.info.run_id)]
    alive_parents = {run.data.tags[PARENT_TAG] for run in alive}
    for run in known:
        if run not in alive and run.info.run_id not in alive_parents:
            signs = [run, *(each for each in nested if each.data.tags[PARENT_TAG] == run.info.run_id)]
            store.client.set_terminated(run.info.run_id, "KILLED", max(map(_last_sign, signs)))


def _lock_file(run_id: str) -> Path:
    return project_root() / ".work/mlflow_runs" / run_id


def _is_alive(run_id: str) -> bool:
    path = _lock_file(run_id)
    if run_id in _held or not path.is_file():
        return run_id in _held
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
            return False
    except Timeout:
        return True


def _last_sign(run: "Run") -> int:
    """Time of the last thing that is known of a run, in milliseconds since 1970."""
    return max([int(run.info.start_time), *(int(metric.timestamp) for metric in run.data.to_proto().metrics)])
