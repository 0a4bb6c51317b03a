"""The line that a stage ends with, and what `make run` ends with."""

import json
import shutil
from pathlib import Path

import pytest

from moe_distill.errors import DataError
from moe_distill.pipeline.stage_summary import FIGURES, STUDIED, result_lines, summary
from moe_distill.reporting.verdicts import gain
from tests.params import ROOT
from tests.reporting.crafted import METRICS, NO_BASELINE
from tests.repository.stage_modules import PIPELINE


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    Path("metrics").mkdir()


def test_a_stage_ends_with_time_figures_and_outputs() -> None:
    Path("metrics/models_teacher.json").write_text(json.dumps({"teacher_parameters": 1e6}))
    assert summary("models@teacher", 95.0) == "models@teacher: done in 1:35 min, 1,000,000 parameters -> models/teacher"
    Path("metrics/train_kd.json").write_text(json.dumps({"steps": 5.0, "validation_bits_per_byte": 1.25}))
    said = summary("train_kd", 3.0)
    assert (
        said
        == "train_kd: done in 0:03 min, 5 steps, 1.2500 bits per byte -> models/student_kd, models/student_kd_optimizer"
    )
    assert len(said) <= 120
    assert summary("teacher_lead", 1.0) == "teacher_lead: done in 0:01 min"


def test_figures_are_of_stages() -> None:
    assert {stage.partition("@")[0] for stage in (*FIGURES, *STUDIED)} <= set(PIPELINE["stages"])


def test_the_result_is_named_with_report_and_student() -> None:
    with pytest.raises(DataError, match="there is no result yet; run: dvc repro"):
        result_lines()
    figures = METRICS | {"teacher_bits_per_byte": 1.25}
    Path("metrics/evaluate.json").write_text(json.dumps(figures))
    Path("reports").mkdir()
    Path("reports/report.html").touch()
    assert result_lines() == [
        f"{gain(figures).headline}.",
        "validation bits per byte, less is better: teacher 1.2500, student 1.8000, the same student, LM only 1.9000",
        "report:  reports/report.html",
        "student: models/student",
    ]
    without = {name: value for name, value in figures.items() if name not in NO_BASELINE}  # `baseline: none`
    Path("metrics/evaluate.json").write_text(json.dumps(without))
    assert result_lines()[1] == "validation bits per byte, less is better: teacher 1.2500, student 1.8000"


def test_what_makes_a_result_doubtful_is_told_with_it() -> None:
    Path("metrics/evaluate.json").write_text(json.dumps(METRICS | {"kd_weight_at_the_end": 0.0, "retention": 1.25}))
    assert [line.partition(": ")[0] for line in result_lines()[2:]] == [
        "Retention is 1.250, above 1",
        "The teacher's weight fell to 0",
        "report",
        "student",
    ]


def test_a_result_of_other_parameters_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("metrics/evaluate.json").write_text(json.dumps(METRICS))
    now = result_lines()
    monkeypatch.setattr("moe_distill.pipeline.stage_summary.made_as_asked", lambda *stages: stages != STUDIED)
    assert result_lines()[1:] == now
    assert result_lines()[0].startswith("of an earlier run: ")
