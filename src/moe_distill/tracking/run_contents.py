"""What is logged in a run: each thing once, however often it is asked for."""

import time
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile, copytree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from moe_distill.config.params import Params
from moe_distill.tracking.mlflow_store import MlflowStore
from moe_distill.tracking.run_names import flat_parameters
from moe_distill.tracking.stage_figures import Curves
from moe_distill.utils.files import folder_fingerprint

if TYPE_CHECKING:
    from mlflow.entities import Run

REPORTS_TAG = "moe_distill.reports"


def log_parameters(store: MlflowStore, run: "Run", params: Params) -> None:
    """Log the parameters that a run lacks: all, or those that a killed process has left."""
    from mlflow.entities import Param

    flat = flat_parameters(params)
    missing = [Param(name, flat[name]) for name in sorted(flat.keys() - run.data.params.keys())]
    store.client.log_batch(run.info.run_id, params=missing)


def latest_values(run: "Run") -> dict[str, tuple[int, float]]:
    """Last step of each metric of a run and the value there."""
    return {metric.key: (metric.step, metric.value) for metric in run.data.to_proto().metrics}


def log_values(store: MlflowStore, run: "Run", curves: Curves, figures: Mapping[str, float]) -> None:
    """Log the points after each curve's last step, and each figure whose value has changed as its next step.

    MLflow takes a batch entirely or not at all, and the batches are in each curve's order: a kill duplicates no point.
    """
    from mlflow.entities import Metric

    latest, now = latest_values(run), int(time.time() * 1000)
    points = [(name, value, now, step) for name, values in curves.items() for step, value in values.items()]
    batch = [Metric(*point) for point in points if point[0] not in latest or point[3] > latest[point[0]][0]]
    for name, value in figures.items():
        step, known = latest.get(name, (-1, None))
        batch += [] if known == value else [Metric(name, value, now, step + 1)]
    store.client.log_batch(run.info.run_id, metrics=batch)


def log_reports(store: MlflowStore, parent: "Run") -> None:
    """Log the folder `reports/`, unless it is the one that was logged last."""
    digest = folder_fingerprint(Path("reports"))
    if not Path("reports").is_dir() or parent.data.tags.get(REPORTS_TAG) == digest:
        return
    with TemporaryDirectory() as copy:  # DVC's files are read-only, and MLflow would keep them so
        copytree("reports", copy, copy_function=copyfile, dirs_exist_ok=True)
        store.client.log_artifacts(parent.info.run_id, copy, artifact_path="reports")
    set_tags(store, parent, {REPORTS_TAG: digest})


def set_tags(store: MlflowStore, run: "Run", tags: Mapping[str, str]) -> None:
    """Set the tags that differ."""
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            store.client.set_tag(run.info.run_id, name, value)
