"""Parent runs and the runs of stages nested in them: which there are, new ones, and what becomes of old ones."""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import TYPE_CHECKING

from moe_distill.config.params import Params
from moe_distill.tracking.live_runs import PARENT_TAG, PLACE_TAG, let_go, place
from moe_distill.tracking.mlflow_store import MlflowStore, find_runs
from moe_distill.tracking.run_contents import log_parameters, set_tags
from moe_distill.tracking.run_names import committed_parameters, run_name
from moe_distill.utils.files import fingerprint

if TYPE_CHECKING:
    from mlflow.entities import Run

TRAININGS = ("train_kd", "train_router", "control")
STAGES = (*TRAININGS, "evaluate")
RESULTS = {  # what comes of a stage, and is another's when it is trained anew
    "train_kd": ("train_kd", "train_router", "evaluate"),
    "train_router": ("train_router", "evaluate"),
    "control": ("control", "evaluate"),
    "evaluate": ("evaluate",),
}
KEY_TAG, PARAMS_TAG, STAGE_TAG = "moe_distill.experiment", "moe_distill.params", "moe_distill.stage"
NOTE_TAG = "mlflow.note.content"  # MLflow shows it as the run's description
NOTE = """**train/**: batches of the steps. **validation/**: the same sample of the validation windows each time.
**final/**: after training, `..._bits_per_byte` on all validation windows; `sample_bits_per_byte` on the sample.
`_weighted`: as a term enters the total. The report is under Artifacts."""


def experiment_key(params: Params) -> str:
    """The key that executions of one experiment share: DVC's name for it, else a fingerprint of the parameters."""
    return os.environ.get("DVC_EXP_NAME") or _digest(params)[:16]


def _digest(params: Params) -> str:
    """Of what can change a result: a killed training may go on with another number of processes, in its own run."""
    return fingerprint(params.model_dump(mode="json", exclude={"profile": {"launch"}}))


def parent_run(store: MlflowStore, params: Params, started: float) -> "Run":
    """The run of these parameters under this key; a DVC name used again with other parameters is another run.

    Args:
        started: Unix seconds, for a new run.
    """
    key, digest = experiment_key(params), _digest(params)
    parents = find_runs(store, f"tags.`{KEY_TAG}` != ''")
    known = [run for run in parents if (run.data.tags[KEY_TAG], run.data.tags.get(PARAMS_TAG)) == (key, digest)]
    if known:
        log_parameters(store, known[0], params)
        return known[0]
    taken = {run.info.run_name: run for run in reversed(parents)}
    name = run_name(params, committed_parameters(params.experiment.profile))
    if name in taken:
        name = run_name(params, taken[name].data.params)
    if name in taken:
        name = f"{name} {digest[:6]}"
    tags = {KEY_TAG: key, PARAMS_TAG: digest, PLACE_TAG: place(), NOTE_TAG: NOTE}
    run = store.client.create_run(store.experiment, round(started * 1000), tags, name)
    log_parameters(store, run, params)
    return run


def nested_runs(store: MlflowStore, parent: "Run") -> dict[str, "Run"]:
    """The nested runs by stage."""
    runs = find_runs(store, f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
    return {run.data.tags.get(STAGE_TAG, ""): run for run in runs}


def make_nested(store: MlflowStore, params: Params, parent: "Run", stage: str, started: float) -> "Run":
    """A new run of a stage, with all parameters: it is compared with those of other experiments."""
    tags = {STAGE_TAG: stage, PARENT_TAG: parent.info.run_id, PLACE_TAG: place(), NOTE_TAG: NOTE}
    name = f"{stage} ({parent.info.run_name})"
    run = store.client.create_run(store.experiment, round(started * 1000), tags, name)
    log_parameters(store, run, params)
    return run


def supersede(store: MlflowStore, params: Params, parent: "Run", stages: Sequence[str], started: float) -> "Run":
    """Begin a new parent run in place of `parent`, some of whose stages are trained anew under the same parameters.

    The old one is kept, named earlier, with the runs of these stages and of what came of them; the others move.
    """
    nested = nested_runs(store, parent)
    stay = {result for stage in stages for result in RESULTS[stage]}
    for run in (parent, *(run for stage, run in nested.items() if stage in stay)):
        status = "KILLED" if run.info.status == "RUNNING" else None
        store.client.update_run(run.info.run_id, status, f"{run.info.run_name} (earlier)")
        let_go(run.info.run_id)
    set_tags(store, parent, {KEY_TAG: f"{experiment_key(params)} (earlier)"})
    new = parent_run(store, params, started)
    for stage, run in nested.items():
        if stage not in stay:
            set_tags(store, run, {PARENT_TAG: new.info.run_id})
    return new


def set_parent_status(store: MlflowStore, parent: "Run") -> None:
    """A parent runs while a stage does; otherwise it has ended as the worst of them, at the end of the last."""
    runs = nested_runs(store, parent).values()
    found = {run.info.status for run in runs}
    status = next((each for each in ("RUNNING", "FAILED", "KILLED") if each in found), "FINISHED")
    if status == "RUNNING":
        store.client.update_run(parent.info.run_id, status)
        return
    ended = max((run.info.end_time for run in runs if run.info.end_time), default=round(time.time() * 1000))
    if (parent.info.status, parent.info.end_time) != (status, ended):
        store.client.set_terminated(parent.info.run_id, status, ended)


def origin_tags(params: Params) -> dict[str, str]:
    """Profile, DVC's name, commit and the teacher's shards, where they are known."""
    tags = {"profile": params.experiment.profile, "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    with contextlib.suppress(OSError, CalledProcessError):  # an unpacked archive, or no git
        tags["git_commit"] = check_output(["git", "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
    index = Path("data/teacher_shards/train/index.json")
    tags["shard_fingerprint"] = json.loads(index.read_text(encoding="utf-8"))["fingerprint"] if index.is_file() else ""
    return {name: value for name, value in tags.items() if value}
