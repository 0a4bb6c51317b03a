"""evaluate: bits per byte of all students and the teacher, agreement, calibration, and the report."""

import json
import time
from pathlib import Path

from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import Evaluation, EvaluationInputs, evaluate, training_metrics
from moe_distill.evaluation.model_facts import licence_facts, read_model_facts
from moe_distill.evaluation.report import ReportInputs, write_report
from moe_distill.evaluation.student_examples import load_student, student_positions, student_samples
from moe_distill.evaluation.teacher_examples import TeacherExamples
from moe_distill.evaluation.watched_windows import watched_metrics
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.pipeline.collect_facts import collect_facts
from moe_distill.pipeline.stage_runner import run
from moe_distill.tracking.mlflow_runs import track, tracked
from moe_distill.tracking.run_tree import STAGES
from moe_distill.utils.device import make_runtime, seed_everything
from moe_distill.utils.files import fresh_folder, write_json

STAGE = "evaluate"
WINDOWS, TARGETS, EXAMPLES = Path("data/windows"), Path("data/teacher_shards"), Path("data/teacher_examples.json")
INIT, KD, LM_ONLY, STUDENT = (
    Path("models", name) for name in ("student_init", "student_kd", "student_lm_only", "student_router")
)


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
    with fresh_folder(Path("reports")) as folder:
        write_report(_report_inputs(params, Evaluation(metrics, measured.calibration)), folder)


def _report_inputs(params: Params, measured: Evaluation) -> ReportInputs:
    examples = TeacherExamples.model_validate_json(EXAMPLES.read_bytes())
    spelled = token_bytes(load_tokenizer(STUDENT), "of the student").table
    student = load_student(STUDENT, spelled, params.profile.windows.student_max_length)
    positions = student_positions(WINDOWS, TARGETS, student, examples.positions)
    samples = student_samples(student, examples.samples, params.profile.evaluate.sample_tokens)
    models, before = params.profile.models, (_metrics("corpus"), _metrics("tokenize"))
    teacher = examples.about | licence_facts(models.teacher)
    own, curves = read_model_facts(STUDENT) | licence_facts(models.student), Path("metrics/curves")
    return ReportInputs(params, measured, *before, curves, teacher, own, positions, samples, collect_facts(params))


def _metrics(stage: str) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(Path(f"metrics/{stage}.json").read_text(encoding="utf-8"))
    return metrics


if __name__ == "__main__":
    run(STAGE, main)
