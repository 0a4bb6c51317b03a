"""All that a report tells, read from the folders of a finished run."""

from dataclasses import dataclass
from pathlib import Path

from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import Evaluation
from moe_distill.evaluation.metrics import Metrics
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.reporting.model_facts import ModelFacts, licence_facts, read_model_facts
from moe_distill.reporting.run_facts import RunFacts
from moe_distill.reporting.student_examples import Position, Sample, load_student, student_positions, student_samples
from moe_distill.reporting.teacher_examples import TeacherExamples


@dataclass(frozen=True)
class ReportFolders:
    """Where a run's outputs lie."""

    windows: Path
    targets: Path
    teacher_examples: Path
    student: Path
    curves: Path  # TSV files


@dataclass(frozen=True)
class ReportInputs:
    """All that a report tells."""

    params: Params
    measured: Evaluation
    corpus: Metrics  # metrics/corpus.json
    tokenize: Metrics  # metrics/tokenize.json
    curves: Path  # folder of the curves' TSV files
    teacher: ModelFacts
    student: ModelFacts
    positions: list[Position]
    samples: list[Sample]
    facts: RunFacts


def read_report_inputs(
    params: Params, measured: Evaluation, corpus: Metrics, tokenize: Metrics, folders: ReportFolders, facts: RunFacts
) -> ReportInputs:
    """Ask the student what the teacher was asked, and put it beside what was measured."""
    examples = TeacherExamples.model_validate_json(folders.teacher_examples.read_bytes())
    spelled = token_bytes(load_tokenizer(folders.student), "of the student").table
    student = load_student(folders.student, spelled, params.profile.windows.student_max_length)
    models = params.profile.models
    return ReportInputs(
        params=params,
        measured=measured,
        corpus=corpus,
        tokenize=tokenize,
        curves=folders.curves,
        teacher=examples.about | licence_facts(models.teacher),
        student=read_model_facts(folders.student) | licence_facts(models.student),
        positions=student_positions(folders.windows, folders.targets, student, examples.positions),
        samples=student_samples(student, examples.samples, params.profile.evaluate.sample_tokens),
        facts=facts,
    )
