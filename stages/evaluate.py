"""evaluate: bits per byte of all students and the teacher, agreement, calibration, and the report."""

import json
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate
from moe_distill.evaluation.report import write_report
from moe_distill.pipeline.stage_runner import run
from moe_distill.tracking.mlflow_runs import track
from moe_distill.utils.device import make_runtime, seed_everything
from moe_distill.utils.files import fresh_folder, write_json

STAGES = ["train_kd", "train_router", "control", "evaluate"]


def main(params: Params) -> None:
    seed_everything(params.experiment.seed)
    inputs = EvaluationInputs(
        windows=Path("data/windows"),
        targets=Path("data/teacher_shards"),
        student_init=Path("models/student_init"),
        student_kd=Path("models/student_kd"),
        student_lm_only=Path("models/student_lm_only"),
        student=Path("models/student_router"),
    )
    metrics = evaluate(inputs, params.profile.evaluate, make_runtime("fp32").device)
    metrics["teacher_tokens_per_second"] = _metrics("teacher")["positions_per_second"]
    for name, stage in (("student", "train_router"), ("lm_only", "control")):
        trained = _metrics(stage)
        metrics |= {f"{name}_{key}": trained[key] for key in ("steps", "stopped_early")}
    write_json(Path("metrics/evaluate.json"), metrics)
    with fresh_folder(Path("reports")) as folder:
        write_report(params, metrics, Path("metrics/curves"), inputs.student, folder)
    track(params, STAGES)


def _metrics(stage: str) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(Path(f"metrics/{stage}.json").read_text(encoding="utf-8"))
    return metrics


if __name__ == "__main__":
    run("evaluate", main)
