"""Fill in MLflow from the files of a run; `track` may be called any number of times.

The files are `metrics/curves/<stage>.tsv`, `metrics/curves/<stage>_validation.tsv`, `metrics/<stage>.json` and
`reports/`. `track` asks the MLflow store what it has and adds the rest. So it needs no special case for a stage whose
outputs came from DVC's cache, for a killed training, or for a store that was out of reach. An error of the store is
reported in one line, and training goes on.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.tracking.live_runs import PARENT_TAG, held, hold, let_go, opened_store
from moe_distill.tracking.mlflow_store import MlflowStore, what_failed
from moe_distill.tracking.run_contents import latest_values, log_reports, log_values, set_tags
from moe_distill.tracking.run_tree import (
    TRAININGS,
    make_nested,
    nested_runs,
    origin_tags,
    parent_run,
    set_parent_status,
    supersede,
)
from moe_distill.tracking.stage_figures import Curves, StageFigures, figure_of, read_stage

if TYPE_CHECKING:
    from mlflow.entities import Run

LOCK_SECONDS, RUNNING_LOCK_SECONDS = 30.0, 2.0  # the longest waits for other processes
# how long a running training does without the store, in what it has just cost: it costs 0.5% of the training's time at
# most, and a tenth where it fails, which is soon tried again
PAUSE, PAUSE_AFTER_FAILURE = 200, 10
FIRST_ROW_TAG = "moe_distill.first_row"


@dataclass
class _Pace:
    """What this process has to remember of earlier calls."""

    next_at: float = 0.0  # seconds of `time.monotonic`, before which a running training does not try again
    logged: set[str] = field(default_factory=set)  # reasons of failures


_pace = _Pace()


def track(params: Params, stages: Sequence[str], running: bool = False) -> list[str] | None:
    """Add to MLflow what the files of `stages` in the current folder have beyond it; raises no error.

    One parent run holds the experiment's parameters, the metrics of `evaluate` and `reports/`; each stage that
    has files is a run nested in it.

    Args:
        running: the caller is a training that goes on: its run stays RUNNING, and figures that are there are an older
            one's, as where DVC has not removed them. Nothing is done soon after a call that took long.

    Returns:
        The stages that have files, whose runs are now up to date; without any, no run is made. None: the store was out
        of reach, which has been logged, or it was too soon.
    """
    found: dict[str, StageFigures] = {}

    def fill_in(patience: float) -> None:
        read = {stage: read_stage(stage, is_running=running) for stage in stages}
        found.update({stage: figures for stage, figures in read.items() if figures})
        if found:
            with opened_store(patience) as store:
                _fill_in(store, params, found, running)

    return list(found) if _safely(fill_in, running) else None


@contextlib.contextmanager
def tracked(params: Params, stage: str, started: float) -> Iterator[None]:
    """The run of a stage is RUNNING inside the block, and FAILED or KILLED if an error ends it; else `track` ends it.

    A process that can say so no more is noticed by whatever opens the store next.

    Args:
        started: Unix seconds; to make a store can take some.
    """

    def begin(patience: float) -> None:
        with opened_store(patience) as store:
            _begin(store, params, stage, started)

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
    """Do something with the store, and say whether that went well; a running training waits a while after it.

    Args:
        act: is given the seconds that it may wait for another process.
    """
    began = time.monotonic()
    if running and began < _pace.next_at:
        return False
    try:
        act(RUNNING_LOCK_SECONDS if running else LOCK_SECONDS)
        succeeded, pause = True, PAUSE if running else 0
    except Exception as error:  # any at all: hours of training are worth more than their copy in a database
        succeeded, pause = False, PAUSE_AFTER_FAILURE
        reason = what_failed(error)
        if reason not in _pace.logged:
            way_out = "the curves stay in metrics/curves and are filled in by the next stage or `moe-distill track`"
            log(f"tracking: {reason}; {way_out}")
        _pace.logged.add(reason)
    now = time.monotonic()
    _pace.next_at = now + pause * (now - began)
    return succeeded


def _begin(store: MlflowStore, params: Params, stage: str, started: float) -> None:
    """Make the run of a stage that begins; a killed training goes on in its own."""
    parent = parent_run(store, params, started)
    nested = nested_runs(store, parent)
    if stage in nested and stage in TRAININGS and nested[stage].info.status == "FINISHED":
        parent = supersede(store, params, parent, [stage], started)
    run = nested_runs(store, parent).get(stage) or make_nested(store, params, parent, stage, started)
    hold(run.info.run_id)
    for each in (run, parent):
        store.client.update_run(each.info.run_id, status="RUNNING")
    set_tags(store, parent, origin_tags(params))


def _end(store: MlflowStore, status: str) -> None:
    """End the runs that this process is behind, and their parents."""
    for run_id in held():
        parent = store.client.get_run(run_id).data.tags[PARENT_TAG]
        for each in (run_id, parent):
            store.client.set_terminated(each, status)
        let_go(run_id)


def _fill_in(store: MlflowStore, params: Params, found: Mapping[str, StageFigures], running: bool) -> None:
    started = min((each.started for each in found.values() if each.started is not None), default=time.time())
    parent = parent_run(store, params, started)
    nested = nested_runs(store, parent)
    others = [stage for stage, figures in found.items() if stage in nested and not _same(nested[stage], figures)]
    if others:
        parent = supersede(store, params, parent, others, started)
        nested = nested_runs(store, parent)
    for stage, figures in found.items():
        _fill_in_stage(store, params, parent, nested.get(stage), stage, figures, running)
    log_values(store, parent, _student_curves(found), {})
    if "evaluate" in found:
        for stage, run in nested_runs(store, parent).items():
            log_values(store, run, {}, figure_of(stage))
        log_values(store, parent, {}, found["evaluate"].figures)  # the columns of the UI's table of experiments
        log_reports(store, parent)
    tags = origin_tags(params).items()
    is_new = found.keys() - nested.keys()
    set_tags(store, parent, {name: tag for name, tag in tags if is_new or name not in parent.data.tags})
    set_parent_status(store, parent)


def _student_curves(found: Mapping[str, StageFigures]) -> Curves:
    """The curves of the student over both phases, whose steps are counted on: what a parent run shows of itself."""
    kd = found.get("train_kd") or (read_stage("train_kd") if "train_router" in found else StageFigures())
    router = found.get("train_router", StageFigures())
    names = {**kd.curves, **router.curves}
    return {name: {**kd.curves.get(name, {}), **router.curves.get(name, {})} for name in names}


def _fill_in_stage(
    store: MlflowStore,
    params: Params,
    parent: "Run",
    run: "Run | None",
    stage: str,
    found: StageFigures,
    running: bool,
) -> None:
    """Fill in the nested run of a stage that has files."""
    is_new = run is None
    run = run or make_nested(store, params, parent, stage, found.started or time.time())
    set_tags(store, run, {FIRST_ROW_TAG: found.first_row} if found.first_row else {})
    log_values(store, run, found.curves, found.figures)
    if found.ended is not None:
        if run.info.status != "FINISHED":
            store.client.set_terminated(run.info.run_id, "FINISHED", round(found.ended * 1000))
        let_go(run.info.run_id)
    elif running:
        hold(run.info.run_id)
        store.client.update_run(run.info.run_id, status="RUNNING")
    elif is_new:  # files that a killed training has left
        store.client.set_terminated(run.info.run_id, "KILLED")


def _same(run: "Run", found: StageFigures) -> bool:
    """Whether a run's curves are those of the files, and not of a training with equal parameters and other code.

    A resumed training keeps its first row, and on a GPU may write later rows again with other digits. So the last
    values must agree only where the training has ended and its curves go no further than the logged ones.
    """
    curves, first_row = found.curves, found.first_row
    latest = [(curves[name], step, value) for name, (step, value) in latest_values(run).items() if name in curves]
    agree = all(max(values) > step or values.get(step) == value for values, step, value in latest)
    is_first = not first_row or run.data.tags.get(FIRST_ROW_TAG, first_row) == first_row
    return is_first and (agree or found.ended is None)
