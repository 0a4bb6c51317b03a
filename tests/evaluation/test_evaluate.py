"""All figures together, of a real small chain whose four students are the untrained one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate
from moe_distill.evaluation.report import write_report
from tests.chain import Chain

TRAININGS = {  # what the stage adds
    "teacher_tokens_per_second": 1.0,
    "student_steps": 24.0,
    "student_stopped_early": 1.0,
    "lm_only_steps": 22.0,
    "lm_only_stopped_early": 0.0,
}


def test_r27_parameters_and_bytes_of_both_models_are_reported(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, student, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu"))
    for role, folder in (("teacher", "teacher"), ("student", "student_init")):
        weights = load_file(chain.folder / "models" / folder / "model.safetensors").values()
        assert figures[f"{role}_parameters"] == sum(weight.numel() for weight in weights)
        assert figures[f"{role}_bytes"] == sum(weight.nbytes for weight in weights)
    assert figures["bytes_ratio"] == figures["teacher_bytes"] / figures["student_bytes"]

    monkeypatch.setattr("moe_distill.evaluation.report.plot_bits_per_byte", lambda *_: None)
    monkeypatch.setattr("moe_distill.evaluation.report.plot_experts", lambda *_: False)
    write_report(chain.params, figures | TRAININGS, tmp_path, student, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert f"| bytes of the weights | {figures['teacher_bytes']:,.0f} " in report
    assert f"| {figures['student_bytes']:,.0f} (fp32" in report
