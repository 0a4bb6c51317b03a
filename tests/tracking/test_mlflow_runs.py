"""Tracking: whatever happens to processes and stores, MLflow ends up with what the files say, once."""

import contextlib
import json
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from moe_distill.cli import app
from moe_distill.config.profile import Launch
from moe_distill.errors import ResourceError
from moe_distill.tracking import mlflow_runs as tracking
from moe_distill.tracking import mlflow_store
from moe_distill.tracking.mlflow_runs import track
from moe_distill.tracking.run_tree import experiment_key
from tests.tracking.experiments import (
    ALL,
    BEGAN,
    Store,
    make_params,
    start,
    write_curve,
    write_everything,
    write_figures,
)


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines said since the last call; nothing else may have been printed."""
    captured = capfd.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_everything_of_an_experiment(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commit = "git init -q; git -c user.name=a -c user.email=a commit -q --allow-empty -m first; git rev-parse HEAD"
    head = subprocess.run(commit, shell=True, capture_output=True, text=True, check=True).stdout.strip()
    index = Path("data/teacher_shards/train/index.json")
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"fingerprint": "f" * 64}))
    write_everything()
    params = make_params(hidden_layers=tuple(range(2000)))

    track(params, ALL)

    store = Store(root)
    parent = store.only_parent()
    assert parent.info.run_name == "tiny"
    assert parent.info.status == "FINISHED"
    figures = {"final/student_bits_per_byte": 1.5, "final/retention": 0.9}
    assert figures.items() <= parent.data.metrics.items()
    assert store.points()["tiny", "train/loss"] == store.points()["train_router", "train/loss"]  # of the student
    tags = ("profile", "git_commit", "shard_fingerprint", "moe_distill.experiment")
    assert [parent.data.tags.get(tag) for tag in tags] == ["tiny", head, "f" * 64, experiment_key(params)]
    assert "dvc_experiment" not in parent.data.tags
    assert parent.data.params["temperature"] == "2.0"
    assert parent.data.params["train.max_steps"] == "40"
    assert parent.data.params["curriculum.phase1_share"] == "0.25"
    assert parent.data.params["profile"] == "tiny"
    assert len(parent.data.params["teacher.hidden_layers"]) == 6000  # MLflow's limit; the list is longer
    nested = store.nested(parent)
    assert {name: run.info.status for name, run in nested.items()} == dict.fromkeys(ALL, "FINISHED")
    assert {run.info.run_name for run in nested.values()} == {f"{stage} (tiny)" for stage in ALL}
    assert all(run.data.params == parent.data.params for run in nested.values())
    assert nested["evaluate"].data.metrics == figures
    assert nested["train_router"].data.metrics["final/student_bits_per_byte"] == 1.5
    assert store.points()["train_kd", "train/loss"] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert store.points()["train_kd", "train/router"] == [(step, step / 7) for step in (20, 30, 40)]
    assert store.points()["control", "validation/loss"] == [(20, 2 / 20), (40, 2 / 40)]
    assert store.points()["control", "final/steps"] == [(0, 40.0)]
    artifact = root / "mlartifacts" / parent.info.run_id / "artifacts/reports/report.md"
    assert artifact.read_text() == "bits per byte 1.0"
    assert artifact.stat().st_mode & stat.S_IWUSR, "a read-only artifact could not be replaced"
    assert not Path("mlruns").exists()
    assert told(capfd) == []


def test_runs_are_found_on_every_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_everything()
    with monkeypatch.context() as small_pages:
        small_pages.setattr(MlflowClient, "search_runs", partialmethod(MlflowClient.search_runs, max_results=1))
        for temperature in (2.0, 3.0, 2.0):
            track(make_params(temperature), ALL)
    assert len(Store(root).runs()) == 2 * (1 + len(ALL))


def test_repeated_calls_add_nothing(root: Path) -> None:
    write_everything()
    track(make_params(), ALL)
    first = Store(root).points()
    ended = {run.info.run_id: run.info.end_time for run in Store(root).runs()}
    track(make_params(), ALL)
    for stage in ALL:
        track(make_params(), [stage])
    assert Store(root).points() == first
    assert {run.info.run_id: run.info.end_time for run in Store(root).runs()} == ended


def test_changed_figures_and_report_replace_the_old(root: Path) -> None:
    write_everything()
    track(make_params(), ALL)
    write_figures("evaluate", student_bits_per_byte=1.25, retention=0.9)
    Path("reports/report.md").unlink()
    Path("reports/report.md").write_text("new")
    track(make_params(), ["evaluate"])
    parent = Store(root).only_parent()
    for run in (parent, Store(root).nested(parent)["evaluate"], Store(root).nested(parent)["train_router"]):
        assert run.data.metrics["final/student_bits_per_byte"] == 1.25
    assert (root / "mlartifacts" / parent.info.run_id / "artifacts/reports/report.md").read_text() == "new"


@pytest.mark.parametrize(("fails", "share"), [(False, 1 / 200), (True, 1 / 10)])
def test_tracking_takes_a_bounded_share_of_a_training(
    monkeypatch: pytest.MonkeyPatch, fails: bool, share: float
) -> None:
    """By a clock that only calls and steps move: a call takes 3 seconds, and comes at every step of 0.1 seconds."""
    monkeypatch.setattr(tracking, "PAUSE", 200)
    now, calls = [1000.0], [0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def act(_patience: float) -> None:
        now[0] += 3
        calls[0] += 1
        if fails:
            raise OSError("out of reach")

    steps = 100_000
    for _ in range(steps):
        now[0] += 0.1
        tracking._safely(act, running=True)
    assert 0.9 * share < 3 * calls[0] / (0.1 * steps) <= share + 3 / (0.1 * steps)
    assert tracking._safely(act) is not fails, "the end of a stage waits for nothing"


def test_a_call_that_comes_too_soon_is_made_up_for_at_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAUSE", 1e6)
    write_curve("train_kd", range(10, 30, 10))
    assert track(make_params(), ["train_kd"], running=True) == ["train_kd"]
    write_curve("train_kd", range(10, 50, 10))
    assert track(make_params(), ["train_kd"], running=True) is None
    assert Store(root).points()["train_kd", "train/loss"] == [(10, 1 / 10), (20, 1 / 20)]
    track(make_params(), ["train_kd"])
    assert Store(root).points()["train_kd", "train/loss"] == [(step, 1 / step) for step in (10, 20, 30, 40)]


def test_a_growing_file_and_a_half_written_line(root: Path) -> None:
    params = make_params()
    assert track(params, ["train_kd"], running=True) == []
    assert Store(root).runs() == [], "without files there is no run"

    write_curve("train_kd", range(10, 30, 10), tail="30\t0.0")
    track(params, ["train_kd"], running=True)
    assert Store(root).points()["train_kd", "train/loss"] == [(10, 1 / 10), (20, 1 / 20)]
    run = Store(root).nested(Store(root).only_parent())["train_kd"]
    assert run.info.status == Store(root).only_parent().info.status == "RUNNING"

    write_curve("train_kd", range(10, 40, 10), tail="40\t0.03")
    track(params, ["train_kd"], running=True)
    assert Store(root).points()["train_kd", "train/loss"] == [(step, 1 / step) for step in (10, 20, 30)]
    assert Store(root).points()["train_kd", "train/router"] == [(step, step / 7) for step in (20, 30)]

    write_curve("train_kd", range(10, 50, 10))
    write_figures("train_kd", loss=0.5, ended_at=BEGAN)
    track(params, ["train_kd"])
    ended = Store(root).nested(Store(root).only_parent())["train_kd"]
    assert (ended.info.run_id, ended.info.status) == (run.info.run_id, "FINISHED")
    assert Store(root).points()["train_kd", "train/loss"] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert Store(root).points()["train_kd", "final/loss"] == [(0, 0.5)], "a figure named like a curve stays apart"


def test_the_figures_of_an_older_run_do_not_end_one_that_goes_on(root: Path) -> None:
    write_curve("train_kd", range(10, 30, 10))
    write_figures("train_kd", steps=40.0, started_at=BEGAN, ended_at=BEGAN + 60)
    track(make_params(), ["train_kd"], running=True)
    run = Store(root).nested(Store(root).only_parent())["train_kd"]
    assert run.info.status == "RUNNING"
    assert not [name for name in run.data.metrics if name.startswith("final/")]


def test_a_resumed_training_goes_on_in_its_run(root: Path) -> None:
    """Killed at step 40 with a checkpoint at 20: the file begins again after 20, with other digits (as on a GPU)."""
    params = make_params()
    write_curve("train_kd", range(10, 50, 10))
    track(params, ["train_kd"], running=True)
    (run,) = Store(root).nested(Store(root).only_parent()).values()

    lines = Path("metrics/curves/train_kd.tsv").read_text().splitlines(keepends=True)
    Path("metrics/curves/train_kd.tsv").write_text("".join(lines[:3]))
    track(params, ["train_kd"], running=True)
    Path("metrics/curves/train_kd.tsv").write_text("".join(lines[:3]) + "30\t0.034\t4\n40\t0.026\t5\n50\t0.02\t6\n")
    write_figures("train_kd", steps=50.0)
    track(params, ["train_kd"])

    (resumed,) = Store(root).nested(Store(root).only_parent()).values()
    assert (resumed.info.run_id, resumed.info.status) == (run.info.run_id, "FINISHED")
    steps = [step for step, _ in Store(root).points()["train_kd", "train/loss"]]
    assert steps == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("change", ["from the first row", "after the first row"])
def test_a_training_by_other_code_gets_a_parent_of_its_own(root: Path, change: str) -> None:
    """The old parent keeps what it had; what did not come of the training moves to the new one."""
    write_everything()
    track(make_params(), ALL)
    before = Store(root).points()
    write_curve("train_kd", range(10, 50, 10), scale=2.0)
    if change == "after the first row":
        lines = Path("metrics/curves/train_kd.tsv").read_text().splitlines(keepends=True)
        lines[1] = f"10\t{1 / 10!r}\t\n"
        Path("metrics/curves/train_kd.tsv").write_text("".join(lines))
    track(make_params(), ["train_kd"])
    write_curve("train_router", range(50, 90, 10), scale=2.0)
    track(make_params(), ALL)
    store = Store(root)
    assert set(store.parents()) == {"tiny", "tiny (earlier)"}
    old, new = (store.nested(store.parents()[name]) for name in ("tiny (earlier)", "tiny"))
    assert (set(old), set(new)) == ({"train_kd", "train_router", "evaluate"}, set(ALL))
    history = store.client.get_metric_history
    for parent, nested, scale in (("tiny (earlier)", old, 1), ("tiny", new, 2)):
        last = (40, scale / 40)
        points = history(nested["train_kd"].info.run_id, "train/loss")
        assert max((point.step, point.value) for point in points) == last
        curve = {p.step: p.value for p in history(store.parents()[parent].info.run_id, "train/loss")}
        assert curve[40] == scale / 40, "the parent shows the curves of its own training"
    assert len(curve) == 8, "of both phases"
    assert store.points()["control", "train/loss"] == before["control", "train/loss"]


def test_a_training_by_other_code_is_seen_while_it_runs(root: Path) -> None:
    write_everything()
    track(make_params(), ALL)
    Path("metrics/train_kd.json").unlink()  # as DVC does before it runs a stage again
    Path("metrics/curves/train_kd_validation.tsv").unlink()
    write_curve("train_kd", range(10, 30, 10), scale=2.0)
    track(make_params(), ["train_kd"], running=True)
    parents = Store(root).parents()
    statuses = {name: Store(root).nested(run)["train_kd"].info.status for name, run in parents.items()}
    assert statuses == {"tiny": "RUNNING", "tiny (earlier)": "FINISHED"}
    assert {name: run.info.status for name, run in parents.items()} == statuses


def test_a_kill_between_batches_doubles_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    original: Callable[..., None] = SqlAlchemyStore.log_batch
    batches = []

    def killed_at_the_third(store: SqlAlchemyStore, run_id: str, metrics: list[Any], **rest: Any) -> None:
        batches.append(len(metrics))
        if len([size for size in batches if size]) == 3:
            raise KeyboardInterrupt
        original(store, run_id, metrics, **rest)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", killed_at_the_third)
    write_curve("train_kd", range(1, 1501))
    with pytest.raises(KeyboardInterrupt):
        track(make_params(), ["train_kd"])
    assert batches == [0, 0, 1000, 1000, 981]
    assert sum(map(len, Store(root).points().values())) == 2000
    track(make_params(), ["train_kd"])
    points = Store(root).points()
    assert points["train_kd", "train/loss"] == [(step, 1 / step) for step in range(1, 1501)]
    assert points["train_kd", "train/router"] == [(step, step / 7) for step in range(20, 1501)]


def test_no_value_that_is_not_finite_is_stored(root: Path) -> None:
    Path("metrics/curves").mkdir(parents=True)
    Path("metrics/curves/train_kd.tsv").write_text("step\tloss\tnorm\n1\t1.0\tinf\n2\tnan\t-0.0\n3\t2.0\t-inf\n")
    Path("metrics/train_kd.json").write_text('{"figure": NaN, "other": -Infinity, "huge": 1e999, "books (old)": 1.0}')
    for _ in range(2):
        track(make_params(), ["train_kd"])
    points = {name: values for (run, name), values in Store(root).points().items() if run == "train_kd"}
    assert points == {"train/loss": [(1, 1.0), (3, 2.0)], "train/norm": [(2, 0.0)], "final/books _old_": [(0, 1.0)]}
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection:
        stored = connection.execute("SELECT value, is_nan FROM metrics").fetchall()
    assert all(abs(value) < 3 and not is_nan for value, is_nan in stored)


def test_two_experiments_side_by_side(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, temperature in [("warm-lynx", 3.0), ("cool-lynx", 1.0)]:
        monkeypatch.setenv("DVC_EXP_NAME", name)
        write_everything(scale=temperature)
        track(make_params(temperature), ALL)
    parents = Store(root).parents()
    assert {name: run.data.tags["dvc_experiment"] for name, run in parents.items()} == {
        "tiny warm-lynx": "warm-lynx",
        "tiny cool-lynx": "cool-lynx",
    }
    table = {
        name: (run.data.params["temperature"], run.data.metrics["final/student_bits_per_byte"])
        for name, run in parents.items()
    }
    assert table == {"tiny warm-lynx": ("3.0", 4.5), "tiny cool-lynx": ("1.0", 1.5)}
    for run in parents.values():
        assert set(Store(root).nested(run)) == set(ALL)
        assert {each.data.params["temperature"] for each in Store(root).nested(run).values()} == {
            run.data.params["temperature"]
        }
    found = Store(root).client.search_runs([run.info.experiment_id], "params.temperature = '3.0'")
    assert len(found) == 5


def test_a_dvc_name_used_again_with_other_parameters_is_another_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "warm-lynx")
    write_everything()
    track(make_params(3.0), ALL)
    track(make_params(4.0), ALL)
    runs = [run for run in Store(root).runs() if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.data.params["temperature"] for run in runs) == ["3.0", "4.0"]
    assert {run.info.run_name for run in runs} == {"tiny warm-lynx", "tiny T=4.0 warm-lynx"}


def test_stages_out_of_the_cache_are_filled_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_everything()
    track(make_params(), ALL)
    monkeypatch.setenv("DVC_EXP_NAME", "second")  # only evaluate runs, all else came from the cache
    track(make_params(), ALL)
    first, second = (Store(root).nested(Store(root).parents()[name]) for name in ("tiny", "tiny second"))
    histories = [
        {
            (stage, metric): [
                (point.step, point.value)
                for point in Store(root).client.get_metric_history(runs[stage].info.run_id, metric)
            ]
            for stage in ALL
            for metric in runs[stage].data.metrics
        }
        for runs in (first, second)
    ]
    assert len(histories[0]["train_kd", "train/loss"]) == 4
    assert histories[0] == histories[1]


def test_the_key_is_the_name_or_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert experiment_key(make_params(2.0)) == experiment_key(make_params(2.0)) != experiment_key(make_params(3.0))
    assert len(experiment_key(make_params())) == 16
    profile = make_params().profile.model_copy(update={"launch": Launch(processes=8)})
    shared = make_params().model_copy(update={"profile": profile})
    assert experiment_key(shared) == experiment_key(make_params()), "a killed training goes on in its own run"
    monkeypatch.setenv("DVC_EXP_NAME", "warm-lynx")
    assert experiment_key(make_params(2.0)) == experiment_key(make_params(3.0)) == "warm-lynx"


def test_a_temporary_workspace_logs_into_the_main_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = root / ".dvc/tmp/exps/tmp1"
    workspace.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(workspace)
    write_everything()
    track(make_params(), ALL)
    parent = Store(root).only_parent()
    assert (root / "mlartifacts" / parent.info.run_id / "artifacts/reports/report.md").is_file()
    assert sorted(path.name for path in workspace.iterdir()) == ["metrics", "reports"]


def test_another_store_may_be_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    shutil.copyfile(root / "mlflow.db", tmp_path / "other/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other/mlflow.db'}")
    write_everything()
    track(make_params(), ALL)
    assert Store(tmp_path / "other").parents()
    assert not Store(root).parents()


def test_four_processes_on_a_fresh_checkout_where_a_fifth_was_killed(fresh: Path) -> None:
    """None fails over another's half-made tables, none says a word, none connects to anything."""
    write_everything()
    process = start("track(make_params(), ALL)")
    unfinished = fresh / "mlflow.db.new" / "mlflow.db"
    while not (unfinished.exists() and unfinished.stat().st_size > 100_000):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (fresh / "mlflow.db").exists()

    code = """
import socket, time
def refuse(*args, **named): print("network:", args, flush=True); raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
assert "mlflow" not in sys.modules, "importing tracking must not import MLflow"
track(make_params(), ALL)
assert "mlflow" in sys.modules and "torch" not in sys.modules
time.sleep(1)  # telemetry would be sent by a thread
"""
    processes = [start(code, DVC_EXP_NAME=f"lynx-{number % 2}") for number in range(4)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, output, errors) == (0, "", "")
    store = Store(fresh)
    assert [experiment.name for experiment in store.client.search_experiments()].count("moe-distill") == 1
    assert sorted(store.parents()) == ["tiny lynx-0", "tiny lynx-1"]
    assert [set(store.nested(parent)) for parent in store.parents().values()] == [set(ALL)] * 2
    assert len(store.runs()) == 10
    for run in store.runs():
        for metric in run.data.metrics:
            steps = [point.step for point in store.client.get_metric_history(run.info.run_id, metric)]
            assert len(steps) == len(set(steps))
    assert sorted(path.name for path in fresh.iterdir()) == [".work", "metrics", "mlartifacts", "mlflow.db", "reports"]


def test_a_locked_database_delays_nothing_and_is_filled_in_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_store, "PROBE_SECONDS", 0.5)
    write_curve("train_kd", range(10, 30, 10))
    track(make_params(), ["train_kd"], running=True)
    write_curve("train_kd", range(10, 50, 10))
    locker = sqlite3.connect(root / "mlflow.db")
    locker.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    for _ in range(100):
        track(make_params(), ["train_kd"], running=True)
    track(make_params(), ["train_kd"])
    assert time.monotonic() - began < 4, "MLflow alone waits 20 s for each statement"
    (line,) = told(capfd)
    assert line == (
        f"tracking: {root / 'mlflow.db'}: database is locked; the curves stay in metrics/curves and are filled in"
        " by the next stage or `moe-distill track`"
    )
    locker.close()
    track(make_params(), ["train_kd"])
    assert Store(root).points()["train_kd", "train/loss"] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert told(capfd) == []


def test_a_read_only_database(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_everything()
    with (root / "mlflow.db").open("r+b") as file:  # as root one may write to any file, so SQLite is told in its header
        file.seek(18)
        file.write(b"\x03")
    began = time.monotonic()
    for stage in ALL:
        track(make_params(), [stage])
    assert time.monotonic() - began < 5
    (line,) = told(capfd)
    assert "attempt to write a readonly database" in line
    with (root / "mlflow.db").open("r+b") as file:
        file.seek(18)
        file.write(b"\x01")
    track(make_params(), ALL)
    assert set(Store(root).nested(Store(root).only_parent())) == set(ALL)


def test_a_file_that_is_no_database(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_everything()
    (root / "mlflow.db").write_text("this is not the file you are looking for" * 100)
    began = time.monotonic()
    track(make_params(), ALL)
    assert time.monotonic() - began < 5
    (line,) = told(capfd)
    assert "file is not a database" in line


@pytest.mark.usefixtures("root")
def test_an_unreachable_server(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    write_everything()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    for _ in range(100):
        track(make_params(), ALL, running=True)
    assert time.monotonic() - began < 10
    (line,) = told(capfd)
    assert line.startswith("tracking: the store that MLFLOW_TRACKING_URI names: API request to http://127.0.0.1:9")


@pytest.mark.usefixtures("root")
def test_the_command_fails_where_the_store_does(monkeypatch: pytest.MonkeyPatch) -> None:
    write_everything()
    monkeypatch.setattr("moe_distill.cli.load_params", make_params)
    assert CliRunner().invoke(app, ["track"]).exit_code == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://bar")
    done = CliRunner().invoke(app, ["track"])
    assert done.exit_code == ResourceError.exit_code
    assert done.output.startswith("tracking: the store that MLFLOW_TRACKING_URI names: Model registry functionality")


def test_a_lock_held_by_another_process(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(tracking, "RUNNING_LOCK_SECONDS", 0.1)
    write_everything()
    with FileLock(root / ".work/mlflow.lock"):
        track(make_params(), ALL, running=True)
    (line,) = told(capfd)
    assert "mlflow.lock" in line
    track(make_params(), ALL)
    assert set(Store(root).nested(Store(root).only_parent())) == set(ALL)


@pytest.mark.usefixtures("root")
def test_a_damaged_curve_is_told_and_does_not_stop_the_caller(capfd: pytest.CaptureFixture[str]) -> None:
    write_curve("train_kd", range(10, 50, 10), tail="50\n")
    track(make_params(), ["train_kd"])
    assert len(told(capfd)) == 1
    assert Path("metrics/curves/train_kd.tsv").is_file()
