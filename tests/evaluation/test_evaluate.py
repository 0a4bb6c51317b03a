"""All figures together, of a real small chain whose four students are the untrained one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate
from moe_distill.evaluation.report import write_report
from tests.chain import Chain
from tests.correction.conftest import PARAMS as CORRECTION


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
    write_report(chain.params, figures | {"teacher_tokens_per_second": 1.0}, tmp_path, student, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert f"| bytes of the weights | {figures['teacher_bytes']:,.0f} " in report
    assert f"| {figures['student_bytes']:,.0f} (fp32" in report
    assert "corrected" not in report

    values = chain.params.model_dump()
    values["profile"]["models"]["teacher_correction"] = CORRECTION.model_dump()
    corrected = Params.model_validate(values)
    write_report(corrected, figures | {"teacher_tokens_per_second": 1.0}, tmp_path, student, tmp_path)
    assert "| teacher, corrected on the training text | " in (tmp_path / "report.md").read_text()
    assert "and was tuned on the training text first" in (tmp_path / "MODEL_CARD.md").read_text()
