"""What the stages train_kd, train_router and control share: work folder, published outputs, tracking in MLflow."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.pipeline.dvc_stage import stage_code, stage_parameters
from moe_distill.pipeline.launch import in_processes
from moe_distill.pipeline.resumable_work import compute_once
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.tracking.mlflow_runs import track, tracked
from moe_distill.tracking.stage_figures import ENDED, STARTED
from moe_distill.training.result import Result, result_metrics
from moe_distill.training.stage_folders import (
    OPTIMIZER_FOLDER,
    STUDENT_FOLDER,
    TrainingInputs,
    TrainingOutputs,
    inputs_key,
)
from moe_distill.utils.files import fingerprint, write_json
from moe_distill.utils.processes import Processes

CURVES = Path("metrics/curves")


@dataclass(frozen=True)
class TrainingStage:
    """A stage that trains."""

    name: str  # in dvc.yaml
    inputs: TrainingInputs
    train: Callable[[Params, TrainingInputs, TrainingOutputs, Processes], Result]
    student: Path  # where the trained model is published
    optimizer: Path | None = None  # where the moments are published, for the phase that follows; None: nowhere


def compute_training(stage: TrainingStage, params: Params, work: Path, processes: Processes) -> dict[str, float]:
    """Train in a work folder, from where a killed run ended; returns the metrics."""

    def on_validation() -> None:
        track(params, [stage.name], running=True)

    outputs = TrainingOutputs(
        work=work,
        student=work / STUDENT_FOLDER,
        optimizer=None if stage.optimizer is None else work / OPTIMIZER_FOLDER,
        curves=CURVES,
        on_validation=on_validation,
    )
    with tracked(params, stage.name, _first_start(work)) if processes.is_first else nullcontext():
        return result_metrics(stage.train(params, stage.inputs, outputs, processes))


def run_training(stage: TrainingStage, params: Params) -> None:
    """Train in the stage's work folder, publish the student and its curves, write metrics/<stage>.json."""
    published: Mapping[str, Path] = {
        STUDENT_FOLDER: stage.student,
        **({} if stage.optimizer is None else {OPTIMIZER_FOLDER: stage.optimizer}),
        CURVE_NAME: CURVES / f"{stage.name}.tsv",
        VALIDATION_CURVE_NAME: CURVES / f"{stage.name}_validation.tsv",
    }
    key = fingerprint([stage_code(stage.name), stage_parameters(stage.name, params), inputs_key(stage.inputs)])
    train = in_processes(stage.name, params, partial(compute_training, stage))
    metrics = compute_once(stage.name, key, partial(_timed, train), published)
    write_json(Path(f"metrics/{stage.name}.json"), metrics)
    track(params, [stage.name])


def _timed(train: Callable[[Path], dict[str, float]], work: Path) -> dict[str, float]:
    """The metrics of a training, and its times in Unix seconds."""
    started = _first_start(work)
    return train(work) | {STARTED: started, ENDED: time.time()}


def _first_start(work: Path) -> float:
    """When the training began: now, or earlier, where it continues in a killed one's work folder."""
    path = work / "started.json"
    if not path.is_file():
        write_json(path, time.time())
    return float(json.loads(path.read_text(encoding="utf-8")))
