"""Fill in MLflow from the files of a run; `track` may be called any number of times.

The files are `metrics/curves/<stage>.tsv`, `metrics/curves/<stage>_validation.tsv`, `metrics/<stage>.json` and
`reports/`. `track` asks the MLflow store what it has and adds the rest. So it needs no special case for a stage whose
outputs came from DVC's cache, for a killed training, or for a store that was out of reach. An error of the store is
reported in one line, and training goes on.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import TYPE_CHECKING

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.tracking.live_runs import PARENT_TAG, PLACE_TAG, held, hold, let_go, opened_store, place
from moe_distill.tracking.mlflow_store import MlflowStore, one_line
from moe_distill.tracking.run_contents import latest_values, log_parameters, log_reports, log_values, set_tags
from moe_distill.tracking.run_names import committed_parameters, run_name
from moe_distill.tracking.stage_figures import StageFigures, figure_of, read_stage
from moe_distill.utils.files import fingerprint

if TYPE_CHECKING:
    from mlflow.entities import Run

STAGES = ("train_kd", "train_router", "control", "evaluate")
LOCK_SECONDS, RUNNING_LOCK_SECONDS = 30.0, 2.0  # the longest waits for other processes
PAUSE_FACTOR = 10  # a failing store costs a running training at most a tenth of its time
KEY_TAG, PARAMS_TAG, STAGE_TAG = "moe_distill.experiment", "moe_distill.params", "moe_distill.stage"
FIRST_ROW_TAG = "moe_distill.first_row"
NOTE = """**train/**: batches of the steps. **validation/**: the same sample of the validation windows each time.
**final/**: after training, `..._bits_per_byte` on all validation windows; `sample_bits_per_byte` on the sample.
`_weighted`: as the term enters the total. The report is under Artifacts."""
_failures: dict[str, float] = {}  # reason that was logged -> time until which a running training does not try again


def track(params: Params, stages: Sequence[str], running: bool = False) -> list[str] | None:
    """Add to MLflow what the files of `stages` in the current folder have beyond it; raises no error.

    One parent run holds the experiment's parameters, the metrics of `evaluate` and `reports/`; each stage that
    has files is a run nested in it.

    Args:
        running: the caller is a training that goes on: a stage without final metrics stays RUNNING.

    Returns:
        The stages that have files, whose runs are now up to date; without any, no run is made. None: the store was out
        of reach, which has been logged.
    """
    found: dict[str, StageFigures] = {}

    def fill_in(patience: float) -> None:
        found.update({stage: figures for stage in stages if (figures := read_stage(stage))})
        if found:
            with opened_store(patience) as store:
                _fill_in(store, params, found, running)

    return list(found) if _safely(fill_in, running) else None


@contextlib.contextmanager
def tracked(params: Params, stage: str) -> Iterator[None]:
    """The run of a stage is RUNNING inside the block, and FAILED or KILLED if an error ends it; else `track` ends it.

    A process that can say so no more is noticed by whatever opens the store next.
    """

    def begin(patience: float) -> None:
        with opened_store(patience) as store:
            _begin(store, params, stage)

    def end(status: str, patience: float) -> None:
        with opened_store(patience) as store:
            _end(store, status)

    _safely(begin)
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"  # a signal is no Exception
        if held():
            _safely(partial(end, status))
        raise


def _safely(act: Callable[[float], None], running: bool = False) -> bool:
    """Do something with the store, and say whether that went well; after an error a running training waits a while.

    Args:
        act: is given the seconds that it may wait for another process.
    """
    began = time.monotonic()
    if running and began < max(_failures.values(), default=0.0):
        return False
    try:
        act(RUNNING_LOCK_SECONDS if running else LOCK_SECONDS)
        return True
    except Exception as error:  # any at all: hours of training are worth more than their copy in a database
        reason = one_line(error)
        if reason not in _failures:
            way_out = "the curves stay in metrics/curves and are filled in by the next stage or `moe-distill track`"
            log(f"tracking: {reason}; {way_out}")
        _failures[reason] = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - began)
        return False


def experiment_key(params: Params) -> str:
    """The key that executions of one experiment share: DVC's name for it, else a fingerprint of the parameters."""
    return os.environ.get("DVC_EXP_NAME") or fingerprint(params.model_dump(mode="json"))[:16]


def _begin(store: MlflowStore, params: Params, stage: str) -> None:
    """Make the run of a stage that begins; a killed training goes on in its own."""
    parent = _parent(store, params, time.time())
    run = _nested(store, parent).get(stage)
    if run is not None and run.info.status == "FINISHED":
        _retire(store, run, stage)
        run = None
    run = run or _make_nested(store, parent, stage, time.time())
    log_parameters(store, run, params)
    hold(run.info.run_id)
    for each in (run, parent):
        store.client.update_run(each.info.run_id, status="RUNNING")
    set_tags(store, parent, _tags(params))


def _end(store: MlflowStore, status: str) -> None:
    """End the runs that this process is behind, and their parents."""
    for run_id in held():
        parent = store.client.get_run(run_id).data.tags[PARENT_TAG]
        for each in (run_id, parent):
            store.client.set_terminated(each, status)
        let_go(run_id)


def _fill_in(store: MlflowStore, params: Params, found: Mapping[str, StageFigures], running: bool) -> None:
    starts = [figures.started for figures in found.values() if figures.started is not None]
    parent = _parent(store, params, min(starts, default=time.time()))
    nested = _nested(store, parent)
    created = [
        _fill_in_stage(store, params, parent, nested.get(stage), stage, figures, running)
        for stage, figures in found.items()
    ]
    if "evaluate" in found:
        for stage, run in _nested(store, parent).items():
            log_values(store, run, {}, figure_of(stage))
        log_values(store, parent, {}, found["evaluate"].figures)  # the columns of the UI's table of experiments
        log_reports(store, parent)
    tags = _tags(params).items()
    set_tags(store, parent, {name: tag for name, tag in tags if any(created) or name not in parent.data.tags})
    _set_status_of_parent(store, parent)


def _parent(store: MlflowStore, params: Params, started: float) -> "Run":
    """The run of these parameters under this key; a DVC name used again with other parameters is another run."""
    key, digest = experiment_key(params), fingerprint(params.model_dump(mode="json"))
    others = store.client.search_runs([store.experiment], f"tags.`{KEY_TAG}` != ''")
    known = [run for run in others if (run.data.tags[KEY_TAG], run.data.tags.get(PARAMS_TAG)) == (key, digest)]
    if known:
        log_parameters(store, known[0], params)
        return known[0]
    name, taken = run_name(params, committed_parameters(params.experiment.profile)), _by_name(others)
    if name in taken:
        name = run_name(params, taken[name].data.params)
    if name in taken:
        name = f"{name} {digest[:6]}"
    tags = {KEY_TAG: key, PARAMS_TAG: digest, PLACE_TAG: place(), "mlflow.note.content": NOTE}
    run = store.client.create_run(store.experiment, round(started * 1000), tags, name)
    log_parameters(store, run, params)
    return run


def _by_name(runs: Sequence["Run"]) -> dict[str, "Run"]:
    return {run.info.run_name: run for run in reversed(runs)}


def _nested(store: MlflowStore, parent: "Run") -> dict[str, "Run"]:
    """The nested runs by stage."""
    runs = store.client.search_runs([store.experiment], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
    return {run.data.tags.get(STAGE_TAG, ""): run for run in runs}


def _make_nested(store: MlflowStore, parent: "Run", stage: str, started: float) -> "Run":
    tags = {STAGE_TAG: stage, PARENT_TAG: parent.info.run_id, PLACE_TAG: place(), "mlflow.note.content": NOTE}
    name = f"{stage} ({parent.info.run_name})"
    return store.client.create_run(store.experiment, round(started * 1000), tags, name)


def _retire(store: MlflowStore, run: "Run", stage: str) -> None:
    """Put the run of another training out of the way; it is kept."""
    store.client.update_run(run.info.run_id, name=f"{run.info.run_name} (earlier)")
    set_tags(store, run, {STAGE_TAG: f"{stage} (earlier)"})
    if run.info.status == "RUNNING":
        store.client.set_terminated(run.info.run_id, "KILLED")
    let_go(run.info.run_id)


def _fill_in_stage(
    store: MlflowStore,
    params: Params,
    parent: "Run",
    run: "Run | None",
    stage: str,
    found: StageFigures,
    running: bool,
) -> bool:
    """Fill in the nested run of a stage that has files; returns whether the run was created."""
    if run is not None and not _same_training(run, found):
        _retire(store, run, stage)
        run = None
    created = run is None
    run = run or _make_nested(store, parent, stage, found.started or time.time())
    log_parameters(store, run, params)
    set_tags(store, run, {FIRST_ROW_TAG: found.first_row} if found.first_row else {})
    log_values(store, run, found.curves, found.figures)
    if found.ended is not None:
        if run.info.status != "FINISHED":
            store.client.set_terminated(run.info.run_id, "FINISHED", round(found.ended * 1000))
        let_go(run.info.run_id)
    elif running:
        hold(run.info.run_id)
        store.client.update_run(run.info.run_id, status="RUNNING")
    elif created:  # files that a killed training has left
        store.client.set_terminated(run.info.run_id, "KILLED")
    return created


def _set_status_of_parent(store: MlflowStore, parent: "Run") -> None:
    """A parent runs while a stage does, and otherwise has ended as the worst of them, at the end of the last."""
    runs = [run for stage, run in _nested(store, parent).items() if stage in STAGES]
    status = next(
        (each for each in ("RUNNING", "FAILED", "KILLED") if each in {r.info.status for r in runs}), "FINISHED"
    )
    if status == "RUNNING":
        store.client.update_run(parent.info.run_id, status=status)
        return
    ended = max(run.info.end_time or 0 for run in runs)
    if (parent.info.status, parent.info.end_time) != (status, ended):
        store.client.set_terminated(parent.info.run_id, status, ended)


def _same_training(run: "Run", found: StageFigures) -> bool:
    """Whether a run's curves are those of the files, and not of a training with equal parameters and other code.

    A resumed training keeps its first row, and on a GPU may write later rows again with other digits. So the last
    values must agree only where the training has ended and its curves go no further than the logged ones.
    """
    curves, first_row, ended = found.curves, found.first_row, bool(found.figures)
    latest = [(curves[name], step, value) for name, (step, value) in latest_values(run).items() if name in curves]
    agree = all(max(values) > step or values.get(step) == value for values, step, value in latest)
    return (agree or not ended) and (not first_row or run.data.tags.get(FIRST_ROW_TAG, first_row) == first_row)


def _tags(params: Params) -> dict[str, str]:
    tags = {"profile": params.experiment.profile, "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    with contextlib.suppress(OSError, CalledProcessError):  # an unpacked archive, or no git
        tags["git_commit"] = check_output(["git", "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
    index = Path("data/teacher_shards/train/index.json")
    tags["shard_fingerprint"] = json.loads(index.read_text(encoding="utf-8"))["fingerprint"] if index.is_file() else ""
    return {name: value for name, value in tags.items() if value}
