"""evaluate: bits per byte of all students and the teacher, agreement, calibration, and the report."""

import json
import time
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import Evaluation, EvaluationInputs, evaluate, headlines, training_metrics
from moe_distill.evaluation.watched_windows import watched_metrics
from moe_distill.pipeline.collect_facts import collect_facts
from moe_distill.pipeline.stage_runner import run
from moe_distill.reporting.report import write_report
from moe_distill.reporting.report_inputs import ReportFolders, read_report_inputs
from moe_distill.tracking.mlflow_runs import track, tracked
from moe_distill.tracking.run_tree import STAGES
from moe_distill.utils.device import make_runtime, seed_everything
from moe_distill.utils.files import fresh_folder, write_json

STAGE = "evaluate"
WINDOWS, TARGETS = Path("data/windows"), Path("data/teacher_shards")
INIT, KD, LM_ONLY, STUDENT = (
    Path("models", name) for name in ("student_init", "student_kd", "student_lm_only", "student_router")
)
FOLDERS = ReportFolders(WINDOWS, TARGETS, Path("data/teacher_examples.json"), STUDENT, Path("metrics/curves"))


def main(params: Params) -> None:
    with tracked(params, STAGE, time.time()):
        measure_and_report(params)
    track(params, STAGES)


def measure_and_report(params: Params) -> None:
    profile = params.profile
    seed_everything(params.experiment.seed)
    inputs = EvaluationInputs(WINDOWS, TARGETS, INIT, KD, LM_ONLY if profile.baseline == "full" else None, STUDENT)
    measured = evaluate(inputs, profile.evaluate, make_runtime("fp32").device)
    metrics = measured.metrics | watched_metrics(WINDOWS, TARGETS, profile.train.validation_windows)
    metrics |= training_metrics(_metrics("teacher"), _metrics("train_router"), _metrics("control"))
    write_json(Path("metrics/evaluate.json"), metrics)
    write_json(Path("metrics/summary.json"), headlines(metrics))
    with fresh_folder(Path("reports")) as folder:
        tables = _metrics("corpus"), _metrics("tokenize")
        found = Evaluation(metrics, measured.calibration)
        write_report(read_report_inputs(params, found, *tables, FOLDERS, collect_facts(params)), folder)


def _metrics(stage: str) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(Path(f"metrics/{stage}.json").read_text(encoding="utf-8"))
    return metrics


if __name__ == "__main__":
    run(STAGE, main)
