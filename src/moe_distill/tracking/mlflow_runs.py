"""Fill in MLflow from the files of a run; `track` may be called any number of times.

The files are `metrics/curves/<stage>.tsv`, `metrics/curves/<stage>_validation.tsv`, `metrics/<stage>.json` and
`reports/`. `track` asks the MLflow store what it has and adds the rest. So it needs no special case for a stage whose
outputs came from DVC's cache, for a killed training, or for a store that was out of reach. An error of the store is
reported in one line, and training goes on.
"""

import contextlib
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import copyfile, copytree, rmtree
from subprocess import DEVNULL, CalledProcessError, check_output
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.utils.files import fingerprint, folder_fingerprint, project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Curves = Mapping[str, Mapping[int, float]]  # name -> step -> value

EXPERIMENT = "moe-distill"
PARAM_LENGTH = 6000  # the most MLflow accepts, in characters
PROBE_SECONDS, LOCK_SECONDS, RUNNING_LOCK_SECONDS = 2.0, 30.0, 2.0  # the longest waits for other processes
PAUSE_FACTOR = 10  # a failing store costs a running training at most a tenth of its time
KEY_TAG, PARAMS_TAG, STAGE_TAG = "moe_distill.key", "moe_distill.params", "moe_distill.stage"
FIRST_ROW_TAG, REPORTS_TAG, PARENT_TAG = "moe_distill.first_row", "moe_distill.reports", "mlflow.parentRunId"
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # instead of its tracebacks `track` logs one line
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}
_failures: dict[str, float] = {}  # reason that was logged -> time until which a running training does not try again


def track(params: Params, stages: Sequence[str], running: bool = False) -> None:
    """Add to MLflow what the files of `stages` in the current folder have beyond it; raises no error.

    One parent run holds the experiment's parameters, the metrics of `evaluate` and `reports/`; each stage that
    has files is a run nested in it.

    Args:
        running: the caller is a training that goes on: a stage without final metrics stays RUNNING.
    """
    started = time.monotonic()
    if running and started < max(_failures.values(), default=0.0):
        return
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: F401  # takes a second: imported before the lock is held

        with FileLock(project_root() / ".work/mlflow.lock", timeout=RUNNING_LOCK_SECONDS if running else LOCK_SECONDS):
            _fill_in(_open_store(), params, stages, running)
    except Exception as error:  # any at all: hours of training are worth more than their copy in a database
        reason = str(error).partition("\n")[0].removesuffix(".") or type(error).__name__
        reason = re.sub(r" (object )?at 0x[0-9a-f]+", "", reason)[:300]  # an address makes no new reason
        if reason not in _failures:
            way_out = "the curves stay in metrics/curves and are filled in by the next stage or `moe-distill track`"
            log(f"tracking: {reason}; {way_out}")
        _failures[reason] = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - started)


def experiment_key(params: Params) -> str:
    """The key that executions of one experiment share: DVC's name for it, else a fingerprint of the parameters."""
    return os.environ.get("DVC_EXP_NAME") or fingerprint(params.model_dump(mode="json"))[:16]


def _open_store() -> "MlflowClient":
    """A client of MLFLOW_TRACKING_URI, else of `mlflow.db` in the main checkout."""
    from mlflow import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        if not path.exists():  # create it under another name: MLflow cannot repair one half created
            unfinished = path.with_name(f"{path.name}.new")
            rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            MlflowClient(tracking_uri=f"sqlite:///{unfinished / path.name}").search_experiments()
            (unfinished / path.name).rename(path)
            rmtree(unfinished)
        try:  # a locked database fails here in two seconds; MLflow would wait 20 s for each statement
            with contextlib.closing(sqlite3.connect(path, timeout=PROBE_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error
    return MlflowClient(tracking_uri=uri)


def _fill_in(client: "MlflowClient", params: Params, stages: Sequence[str], running: bool) -> None:
    found = client.get_experiment_by_name(EXPERIMENT)
    served = client.tracking_uri.startswith(("http", "databricks"))  # a server has its own place for artifacts
    artifacts = None if served else (project_root() / "mlartifacts").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, artifacts)
    parent = _parent(client, experiment, params)
    children = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
    nested = {run.data.tags.get(STAGE_TAG): run for run in children}
    created = [_fill_in_stage(client, parent, nested.get(stage), stage, running) for stage in stages]
    if "evaluate" in stages:  # the columns of the UI's table of experiments
        _log(client, parent, {}, _metrics("evaluate"))
        _log_reports(client, parent)
    tags = _tags(params).items()
    _set_tags(client, parent, {name: tag for name, tag in tags if any(created) or name not in parent.data.tags})
    _set_status(client, parent, running)


def _parent(client: "MlflowClient", experiment: str, params: Params) -> "Run":
    """The run of these parameters under this key; a DVC name used again with other parameters is another run."""
    from mlflow.entities import Param

    key, digest = experiment_key(params), fingerprint(params.model_dump(mode="json"))
    name = os.environ.get("DVC_EXP_NAME") or f"{params.experiment.profile}-{key}"
    alike = client.search_runs([experiment], f"tags.`{PARAMS_TAG}` = '{digest}'")
    known = [run for run in alike if run.data.tags.get(KEY_TAG) == key]
    run = known[0] if known else client.create_run(experiment, run_name=name, tags={KEY_TAG: key, PARAMS_TAG: digest})
    flat = dict(_flatten({**params.profile.model_dump(mode="json"), **params.experiment.model_dump(mode="json")}))
    missing = [Param(name, flat[name]) for name in sorted(flat.keys() - run.data.params.keys())]
    client.log_batch(run.info.run_id, params=missing)
    return run


def _flatten(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, str(value)[:PARAM_LENGTH]


def _fill_in_stage(client: "MlflowClient", parent: "Run", run: "Run | None", stage: str, running: bool) -> bool:
    """Fill in the nested run of a stage that has files; returns whether the run was created."""
    training, first_row = _read_curves(Path("metrics/curves", f"{stage}.tsv"))
    validation, _ = _read_curves(Path("metrics/curves", f"{stage}_validation.tsv"))
    curves = {**training, **{f"validation_{name}": values for name, values in validation.items()}}
    metrics = {f"final_{name}" if name in curves else name: value for name, value in _metrics(stage).items()}
    if not curves and not metrics:
        return False
    if run is not None and not _same_training(run, curves, first_row, ended=bool(metrics)):
        client.update_run(run.info.run_id, name=f"{stage} (earlier)")  # another training's: kept, out of the way
        _set_tags(client, run, {STAGE_TAG: f"{stage} (earlier)"})
        _set_status(client, run, running=False)
        run = None
    created = run is None
    tags = {STAGE_TAG: stage, PARENT_TAG: parent.info.run_id}
    run = run or client.create_run(parent.info.experiment_id, run_name=stage, tags=tags)
    _set_tags(client, run, {FIRST_ROW_TAG: first_row} if first_row else {})
    _log(client, run, curves, metrics)
    _set_status(client, run, running and not metrics)
    return created


def _same_training(run: "Run", curves: Curves, first_row: str, ended: bool) -> bool:
    """Whether a run's curves are those of the files, and not of a training with equal parameters and other code.

    A resumed training keeps its first row, and on a GPU may write later rows again with other digits. So the last
    values must agree only where the training has ended and its curves go no further than the logged ones.
    """
    latest = [(curves[name], step, value) for name, (step, value) in _latest(run).items() if name in curves]
    agree = all(max(values) > step or repr(values.get(step)) == value for values, step, value in latest)
    return (agree or not ended) and (not first_row or run.data.tags.get(FIRST_ROW_TAG, first_row) == first_row)


def _latest(run: "Run") -> dict[str, tuple[int, str]]:
    """Last step of each metric of a run and the value there, as text, since a NaN does not equal itself."""
    return {metric.key: (metric.step, repr(metric.value)) for metric in run.data.to_proto().metrics}


def _log(client: "MlflowClient", run: "Run", curves: Curves, metrics: Mapping[str, float]) -> None:
    """Log the points after each curve's last step, and each metric whose value has changed as its next step.

    MLflow takes a batch entirely or not at all, and the batches are in each curve's order: a kill duplicates no point.
    """
    from mlflow.entities import Metric

    latest, now = _latest(run), int(time.time() * 1000)
    points = [(name, value, now, step) for name, values in curves.items() for step, value in values.items()]
    batch = [Metric(*point) for point in points if point[0] not in latest or point[3] > latest[point[0]][0]]
    for name, value in metrics.items():
        step, known = latest.get(name, (-1, ""))
        batch += [] if known == repr(value) else [Metric(name, value, now, step + 1)]
    client.log_batch(run.info.run_id, metrics=batch)


def _log_reports(client: "MlflowClient", parent: "Run") -> None:
    digest = folder_fingerprint(Path("reports"))
    if not Path("reports").is_dir() or parent.data.tags.get(REPORTS_TAG) == digest:
        return
    with TemporaryDirectory() as copy:  # DVC's files are read-only, and MLflow would keep them so
        copytree("reports", copy, copy_function=copyfile, dirs_exist_ok=True)
        client.log_artifacts(parent.info.run_id, copy, artifact_path="reports")
    _set_tags(client, parent, {REPORTS_TAG: digest})


def _read_curves(path: Path) -> tuple[Curves, str]:
    """The curves of a TSV file, which may still be growing, and a fingerprint of its header and first row."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line.split("\t") for line in text.split("\n")[:-1]]  # a line without a newline is incomplete
    curves: dict[str, dict[int, float]] = {}
    for cells in lines[1:]:
        for name, cell in zip(lines[0], cells, strict=True):
            if name != "step" and cell:
                curves.setdefault(name, {})[int(cells[lines[0].index("step")])] = _storable(float(cell))
    return curves, fingerprint(lines[:2])[:16] if curves else ""


def _metrics(stage: str) -> dict[str, float]:
    """The numbers of `metrics/<stage>.json`, under names that MLflow allows: names of text sources may be anything."""
    path = Path("metrics", f"{stage}.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {re.sub(r"[^\w./ -]", "_", k): _storable(float(v)) for k, v in content.items() if type(v) in (int, float)}


def _storable(value: float) -> float:
    return min(max(value, -sys.float_info.max), sys.float_info.max) + 0.0  # no infinity, no -0; NaN stays NaN


def _tags(params: Params) -> dict[str, str]:
    tags = {"profile": params.experiment.profile, "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    with contextlib.suppress(OSError, CalledProcessError):  # an unpacked archive, or no git
        tags["git_commit"] = check_output(["git", "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
    index = Path("data/teacher_shards/train/index.json")
    tags["shard_fingerprint"] = json.loads(index.read_text(encoding="utf-8"))["fingerprint"] if index.is_file() else ""
    return {name: value for name, value in tags.items() if value}


def _set_tags(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run.info.run_id, name, value)


def _set_status(client: "MlflowClient", run: "Run", running: bool) -> None:
    if running and run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    elif not running and run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id)
