"""What the stages train_kd, train_router and control share: work folder, published outputs, tracking in MLflow."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.pipeline.dvc_stage import stage_code, stage_parameters
from moe_distill.pipeline.resumable_work import compute_once
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.tracking.mlflow_runs import track, tracked
from moe_distill.tracking.stage_figures import ENDED, STARTED
from moe_distill.training.loop import Result, result_metrics
from moe_distill.training.stage_folders import (
    OPTIMIZER_FOLDER,
    STUDENT_FOLDER,
    TrainingInputs,
    TrainingOutputs,
    inputs_key,
)
from moe_distill.utils.files import fingerprint, write_json

CURVES = Path("metrics/curves")


def run_training(
    stage: str,
    params: Params,
    inputs: TrainingInputs,
    train: Callable[[Params, TrainingInputs, TrainingOutputs], Result],
    student: Path,
    optimizer: Path | None = None,
) -> None:
    """Train in the stage's work folder, publish the student and its curves, write metrics/<stage>.json.

    Args:
        stage: name of the stage in dvc.yaml.
        inputs: folders that the training reads.
        train: the training itself; continues where a killed run ended.
        student: where the trained model is published.
        optimizer: where the optimizer's moments are published, for the phase that follows; None: nowhere.
    """

    def on_validation() -> None:
        track(params, [stage], running=True)

    def compute(work: Path) -> dict[str, float]:
        outputs = TrainingOutputs(
            work=work,
            student=work / STUDENT_FOLDER,
            optimizer=None if optimizer is None else work / OPTIMIZER_FOLDER,
            curves=CURVES,
            on_validation=on_validation,
        )
        started = _first_start(work)
        with tracked(params, stage, started):
            metrics = result_metrics(train(params, inputs, outputs))
        return metrics | {STARTED: started, ENDED: time.time()}

    published: Mapping[str, Path] = {
        STUDENT_FOLDER: student,
        **({} if optimizer is None else {OPTIMIZER_FOLDER: optimizer}),
        CURVE_NAME: CURVES / f"{stage}.tsv",
        VALIDATION_CURVE_NAME: CURVES / f"{stage}_validation.tsv",
    }
    key = fingerprint([stage_code(stage), stage_parameters(stage, params), inputs_key(inputs)])
    write_json(Path(f"metrics/{stage}.json"), compute_once(stage, key, compute, published))
    track(params, [stage])


def _first_start(work: Path) -> float:
    """When the training began, in Unix seconds: now, or earlier, where it continues in a killed one's work folder."""
    path = work / "started.json"
    if not path.is_file():
        write_json(path, time.time())
    return float(json.loads(path.read_text(encoding="utf-8")))
