"""Results shared: a clone that only pulls, and experiments that run at the same time."""

import json
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.end_to_end.conftest import Checkout, ran, runs_of

pytestmark = pytest.mark.slow
# In every Python process of the clone: what it opens goes to a file, and no connection leaves the machine.
WATCH = """
import os, sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "models/teacher" in arguments[0]:
        with_name = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(with_name, (arguments[0] + "\\n").encode())
        os.close(with_name)
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not arguments[1][0].startswith("127."):
        raise OSError(f"connection to {arguments[1]}")
sys.addaudithook(watch)
"""


def test_r16_a_clone_trains_and_evaluates_on_what_it_pulls(own_checkout: Checkout, tmp_path: Path) -> None:
    own_checkout.run("dvc", "remote", "add", "-f", "-d", "shared", str(tmp_path / "remote"))
    own_checkout.run("dvc", "push")
    own_checkout.run("git", "clone", "-q", str(own_checkout.folder), str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone")
    shutil.copy(own_checkout.folder / ".dvc/config", clone.folder / ".dvc/config")
    shutil.copy(own_checkout.folder / "dvc.lock", clone.folder / "dvc.lock")
    shutil.copytree(own_checkout.folder / "metrics", clone.folder / "metrics", dirs_exist_ok=True)
    shutil.rmtree(clone.folder / "metrics/curves")
    clone.run("dvc", "pull", "data/windows/student", "data/windows/teacher", "data/teacher_shards")
    clone.run("dvc", "pull", "models/teacher_head", "models/student_init", "data/teacher_examples.json")
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    for stage in ("train_kd", "train_router", "control", "evaluate"):
        clone.run(
            "python", "-m", f"stages.{stage}", PYTHONPATH=f"src:{tmp_path / 'watch'}", OPENED=str(tmp_path / "opened")
        )
    opened = (tmp_path / "opened").read_text().splitlines()
    assert any("models/teacher_head/" in path for path in opened)  # the watch works
    assert [path for path in opened if not re.search(r"models/teacher_head(/|$)", path)] == []
    assert not (clone.folder / "models/teacher").exists()
    figures = [json.loads((each.folder / "metrics/evaluate.json").read_text()) for each in (own_checkout, clone)]
    assert figures[0]["student_bits_per_byte"] == figures[1]["student_bits_per_byte"]


def test_four_experiments_at_once_on_a_fresh_checkout(checkout: Checkout, tmp_path: Path) -> None:
    """Each is whole, and all lie in the main store."""
    checkout.run("git", "clone", "-q", str(checkout.folder), str(tmp_path / "fresh"))
    fresh = Checkout(tmp_path / "fresh")
    temperatures = ("1.0", "2.0", "3.0", "4.0")
    fresh.run("dvc", "exp", "run", "--queue", "-S", f"temperature={','.join(temperatures)}")
    fresh.run("dvc", "queue", "start", "--jobs", "4")
    fresh.run("dvc", "exp", "run", "--run-all", "--jobs", "4")
    output = fresh.run("dvc", "queue", "status")
    assert output.count("Success") == 4, output
    client = MlflowClient(f"sqlite:///{fresh.folder / 'mlflow.db'}")
    runs = runs_of(client)
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.data.params["temperature"] for run in parents) == sorted(temperatures)
    for parent in parents:
        nested = {
            run.data.tags["moe_distill.stage"]: run
            for run in runs
            if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        }
        assert {"train_kd", "train_router", "evaluate"} <= set(nested)
        history = client.get_metric_history(nested["train_router"].info.run_id, "train/lm")
        assert sorted(metric.step for metric in history) == list(range(6, 61))  # none lost, none twice
        assert "final/student_bits_per_byte" in parent.data.metrics
    assert ran(fresh.run("dvc", "queue", "logs", parents[0].data.tags["dvc_experiment"])) >= {"train_kd"}
