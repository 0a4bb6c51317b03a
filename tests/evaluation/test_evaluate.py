"""All figures together, of a real small chain whose four students are the untrained one."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate
from moe_distill.evaluation.report import sample_texts, write_report
from moe_distill.models.tokenizer_files import load_tokenizer
from tests.chain import Chain
from tests.correction.conftest import PARAMS as CORRECTION
from tests.params import ROOT

TEMPLATES = ROOT / "src/moe_distill/evaluation/templates"
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
    assert "corrected" not in report

    values = chain.params.model_dump()
    values["profile"]["models"]["teacher_correction"] = CORRECTION.model_dump()
    corrected = Params.model_validate(values)
    write_report(corrected, figures | TRAININGS, tmp_path, student, tmp_path)
    assert "| teacher, corrected on the training text | " in (tmp_path / "report.md").read_text()
    assert "and was tuned on the training text first" in (tmp_path / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("steps", "experts", "gain", "teacher"),
    [
        (24.0, 0.0, "over the same training without the teacher.", "distilled from a teacher of\n"),
        (22.0, 4.0, "their numbers of steps differ.", "distilled from a Mixture-of-Experts teacher of\n"),
    ],
)
def test_report_and_card_tell_the_steps_that_were_made(
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: float,
    experts: float,
    gain: str,
    teacher: str,
) -> None:
    monkeypatch.setattr("moe_distill.evaluation.report.plot_bits_per_byte", lambda *_: None)
    monkeypatch.setattr("moe_distill.evaluation.report.plot_experts", lambda *_: False)
    names = re.findall(r"metrics\.(\w+)", (TEMPLATES / "report.md.jinja").read_text())
    figures = dict.fromkeys(names, 1.0) | TRAININGS | {"lm_only_steps": steps, "teacher_experts": experts}
    write_report(chain.params, figures, tmp_path, chain.folder / "models/student_init", tmp_path)
    report, card = ((tmp_path / name).read_text() for name in ("report.md", "MODEL_CARD.md"))
    assert "Of at most 20, the student was trained for 24 optimizer steps (stopped early),\n" in report
    assert f"the same student with LM only for {steps:.0f} optimizer steps.\n" in report
    assert gain in report
    assert "24 optimizer steps of 8 windows, stopped early (at most 20)" in card
    assert teacher in card


def test_a_sample_text_ends_where_the_windows_do(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    tokenizer = load_tokenizer(student)
    [(prompt, long)], [(_, short)] = (sample_texts(student, 1, 50, limit) for limit in (1000, 10))
    n_prompt = 1 + len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    assert long.startswith(short.rstrip("\ufffd"))
    assert len(tokenizer.encode(short, add_special_tokens=False).ids) <= 10 - n_prompt < 50
    assert len(short) < len(long)
