"""The files of an experiment without an experiment, what stands in a store, and other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from moe_distill.config.params import Curriculum, ExperimentParams, Params
from moe_distill.config.profile import Capture, Profile, Train
from moe_distill.tracking.mlflow_runs import track, tracked
from tests.params import ROOT

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = ["ALL", "BEGAN", "Store", "make_params", "start", "track", "tracked"]
__all__ += ["write_curve", "write_everything", "write_figures"]


def make_params(temperature: float = 2.0, hidden_layers: tuple[int, ...] = (0, 2)) -> Params:
    """A few keys of every kind: tracking takes whatever there is, so a new key in config.py changes nothing here."""
    return Params.model_construct(
        experiment=ExperimentParams.model_construct(
            profile="tiny", seed=1, temperature=temperature, curriculum=Curriculum.model_construct(phase1_share=0.25)
        ),
        profile=Profile.model_construct(
            teacher=Capture.model_construct(hidden_layers=list(hidden_layers)),
            train=Train.model_construct(max_steps=40),
        ),
    )


def write_curve(stage: str, steps: range, scale: float = 1.0, tail: str = "") -> None:
    """`loss` at every step, `router` from step 20 on."""
    rows = [f"{step}\t{scale / step!r}\t{step / 7 if step >= 20 else ''}\n" for step in steps]
    path = Path("metrics/curves", f"{stage}.tsv")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(["step\tloss\trouter\n", *rows, tail]))


def write_figures(stage: str, **figures: float) -> None:
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics", f"{stage}.json").write_text(json.dumps(figures))


def write_everything(scale: float = 1.0) -> None:
    """The files of a complete experiment, the report read-only as DVC leaves it."""
    for stage in ("train_kd", "train_router", "control"):
        write_curve(stage, range(10, 50, 10), scale)
        write_curve(f"{stage}_validation", range(20, 60, 20), 2 * scale)
        write_figures(stage, steps=40 * scale, started_at=BEGAN, ended_at=BEGAN + 60)
    write_figures("evaluate", student_bits_per_byte=1.5 * scale, retention=0.9)
    Path("reports").mkdir(exist_ok=True)
    Path("reports/report.md").unlink(missing_ok=True)
    Path("reports/report.md").write_text(f"bits per byte {scale}")
    Path("reports/report.md").chmod(0o444)


BEGAN = 1.7e9  # Unix seconds
ALL = ["train_kd", "train_router", "control", "evaluate"]


class Store:
    """What another program sees in `root/mlflow.db`."""

    def __init__(self, root: Path) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")

    def only_experiment(self) -> str:
        """Id of the project's experiment."""
        experiment = self.client.get_experiment_by_name("moe-distill")
        assert experiment is not None
        return str(experiment.experiment_id)

    def runs(self) -> list["Run"]:
        experiment = self.client.get_experiment_by_name("moe-distill")
        return list(self.client.search_runs([experiment.experiment_id])) if experiment else []

    def parents(self) -> dict[str, "Run"]:
        return {run.info.run_name: run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags}

    def nested(self, parent: "Run") -> dict[str, "Run"]:
        """By stage."""
        runs = [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        return {run.data.tags["moe_distill.stage"]: run for run in runs}

    def only_parent(self) -> "Run":
        (parent,) = self.parents().values()
        return parent

    def points(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """(stage, or the name of a parent run, and metric) -> every (step, value) ever logged, in order of steps."""
        return {
            (run.data.tags.get("moe_distill.stage", run.info.run_name), name): sorted(
                (point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, name)
            )
            for run in self.runs()
            for name in run.data.metrics
        }


def start(code: str, **environment: str) -> "subprocess.Popen[str]":
    """Another process in the current folder, not recognisable as part of a test or of a CI job."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "CI")}
    beginning = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.tracking.experiments import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", beginning + code],
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
