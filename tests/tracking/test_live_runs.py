"""A run never stays RUNNING without a process, however that ended."""

import signal
import time
from pathlib import Path

import pytest

from moe_distill.tracking.live_runs import opened_store
from moe_distill.tracking.mlflow_runs import track, tracked
from moe_distill.utils.signals import Terminated
from tests.tracking.experiments import BEGAN, Store, make_params, start, write_curve, write_figures

TRAINING = """
write_curve("train_kd", range(10, 30, 10))
with tracked(make_params(), "train_kd", BEGAN):
    track(make_params(), ["train_kd"], running=True)
    print("trains", flush=True)
    time.sleep(300)
"""


def statuses(root: Path) -> dict[str, str]:
    parent = Store(root).only_parent()
    nested = {stage: run.info.status for stage, run in Store(root).nested(parent).items()}
    return {"parent": parent.info.status, **nested}


def test_a_killed_process_is_noticed_by_whatever_opens_the_store_next(root: Path) -> None:
    process = start("import time" + TRAINING)
    assert process.stdout is not None
    assert process.stdout.readline() == "trains\n", process.communicate()
    with opened_store(30.0):
        pass
    assert statuses(root) == {"parent": "RUNNING", "train_kd": "RUNNING"}, "another process leaves a live one alone"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with opened_store(30.0):
        pass
    assert statuses(root) == {"parent": "KILLED", "train_kd": "KILLED"}
    for run in Store(root).runs():
        assert BEGAN * 1000 == run.info.start_time <= run.info.end_time <= time.time() * 1000
    assert list((root / ".work/mlflow_runs").iterdir()) == []
    (killed,) = Store(root).nested(Store(root).only_parent()).values()

    write_figures("train_kd", steps=20.0, started_at=BEGAN, ended_at=BEGAN + 1)
    with tracked(make_params(), "train_kd", BEGAN):
        assert statuses(root) == {"parent": "RUNNING", "train_kd": "RUNNING"}, "it goes on in its run"
    track(make_params(), ["train_kd"])
    assert statuses(root) == {"parent": "FINISHED", "train_kd": "FINISHED"}
    (resumed,) = Store(root).nested(Store(root).only_parent()).values()
    assert resumed.info.run_id == killed.info.run_id


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (Terminated, "KILLED")]
)
def test_an_error_ends_the_run_at_once(root: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracked(make_params(), "control", BEGAN):
        raise error
    assert statuses(root) == {"parent": status, "control": status}


def test_files_of_a_training_that_was_killed_make_no_running_run(root: Path) -> None:
    write_curve("train_kd", range(10, 30, 10))
    assert track(make_params(), ["train_kd", "evaluate"]) == ["train_kd"]
    assert statuses(root) == {"parent": "KILLED", "train_kd": "KILLED"}


def test_a_training_anew_has_a_run_of_its_own_from_its_start(root: Path) -> None:
    write_curve("train_kd", range(10, 30, 10))
    write_figures("train_kd", steps=20.0, started_at=BEGAN, ended_at=BEGAN + 60)
    track(make_params(), ["train_kd"])
    first = Store(root).only_parent()
    assert (first.info.start_time, first.info.end_time) == (BEGAN * 1000, (BEGAN + 60) * 1000)
    (nested,) = Store(root).nested(first).values()
    assert (nested.info.start_time, nested.info.end_time) == (BEGAN * 1000, (BEGAN + 60) * 1000)
    with tracked(make_params(), "train_kd", BEGAN):
        found = {name: run.info.status for name, run in Store(root).parents().items()}
    assert found == {"tiny": "RUNNING", "tiny (earlier)": "FINISHED"}
