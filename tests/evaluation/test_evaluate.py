"""All figures together, of a real small chain whose four students are the untrained one."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.config.params import Params
from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate, gain_metrics
from moe_distill.evaluation.measure import Score
from moe_distill.evaluation.metrics import resampled_gain
from moe_distill.evaluation.report import kd_weight_told, sample_texts, write_report
from moe_distill.models.tokenizer_files import load_tokenizer
from tests.chain import Chain
from tests.correction.conftest import PARAMS as CORRECTION
from tests.params import ROOT, fixed_params
from tests.stores import BYTES, Stores

TEMPLATES = ROOT / "src/moe_distill/evaluation/templates"
TRAININGS = {  # what the stage adds
    "teacher_tokens_per_second": 1.0,
    "student_steps": 24.0,
    "student_stopped_early": 1.0,
    "lm_only_steps": 22.0,
    "lm_only_stopped_early": 0.0,
}
NLL = ([20.0, 3.0, 40.0, 12.0, 55.0], [18.0, 4.0, 31.0, 12.5, 50.0])  # of each window: LM alone, student


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
    assert "**Whether distillation gained cannot be told**: +0.0000" in report, "student and LM baseline are one"
    assert f"| bytes of the weights | {figures['teacher_bytes']:,.0f} " in report
    assert f"| {figures['student_bytes']:,.0f} (fp32" in report
    assert "corrected" not in report

    values = chain.params.model_dump()
    values["profile"]["models"]["teacher_correction"] = CORRECTION.model_dump()
    corrected = Params.model_validate(values)
    write_report(corrected, figures | TRAININGS, tmp_path, student, tmp_path)
    assert "| teacher, corrected on the training text | " in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("steps", "gain"),
    [
        (24.0, "over the same training without the teacher\n"),
        (22.0, "without the teacher, of another number of steps\n"),
    ],
)
def test_report_tells_the_steps_that_were_made(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: float, gain: str
) -> None:
    monkeypatch.setattr("moe_distill.evaluation.report.plot_bits_per_byte", lambda *_: None)
    monkeypatch.setattr("moe_distill.evaluation.report.plot_experts", lambda *_: False)
    names = re.findall(r"metrics\.(\w+)", (TEMPLATES / "report.md.jinja").read_text())
    figures = dict.fromkeys(names, 1.0) | TRAININGS | {"lm_only_steps": steps}
    write_report(chain.params, figures, tmp_path, chain.folder / "models/student_init", tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "Of at most 20, the student was trained for 24 optimizer steps (stopped early),\n" in report
    assert f"the same student with LM only for {steps:.0f} optimizer steps.\n" in report
    assert gain in report


def test_a_sample_text_ends_where_the_windows_do(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    tokenizer = load_tokenizer(student)
    [(prompt, long)], [(_, short)] = (sample_texts(student, 1, 50, limit) for limit in (1000, 10))
    n_prompt = 1 + len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    assert long.startswith(short.rstrip("\ufffd"))
    assert len(tokenizer.encode(short, add_special_tokens=False).ids) <= 10 - n_prompt < 50
    assert len(short) < len(long)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.01, 0.03), "**Distillation gained 0.0200 bits per byte** over the same training"),
        ((-0.03, -0.01), "**Distillation lost 0.0200 bits per byte** against the same training"),
        ((-0.01, 0.05), "**Whether distillation gained cannot be told**: +0.0200 bits per byte"),
    ],
    ids=["gained", "lost", "cannot be told"],
)
def test_the_report_begins_with_what_distillation_has_brought(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: tuple[float, float], verdict: str
) -> None:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, student, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu")) | TRAININGS
    gain = -0.02 if interval[1] < 0 else 0.02
    figures |= {
        "gain_over_lm_only": gain,
        "gain_over_lm_only_low": interval[0],
        "gain_over_lm_only_high": interval[1],
    }
    monkeypatch.setattr("moe_distill.evaluation.report.plot_bits_per_byte", lambda *_: None)
    monkeypatch.setattr("moe_distill.evaluation.report.plot_experts", lambda *_: False)
    write_report(chain.params, figures, tmp_path, student, tmp_path)
    first, second = (tmp_path / "report.md").read_text().split("\n\n")[1:3]
    assert first.startswith(verdict)
    assert f"({interval[0]:+.4f} to {interval[1]:+.4f} in 95% of resamples" in first
    assert "not over seeds" in first
    assert second.startswith("Profile")


def test_the_report_tells_what_the_teacher_had_earned_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "train_router_validation.tsv").write_text("step\tkd_weight\n10\t0.9\n20\t0.625\n")
    params = fixed_params()
    assert kd_weight_told(params, tmp_path) == "0.9"
    experiment = params.experiment.model_copy(update={"kd_weight": "auto"})
    assert kd_weight_told(params.model_copy(update={"experiment": experiment}), tmp_path) == "auto (0.625 at the end)"


def test_a_gain_is_of_documents_where_there_are_many_and_else_of_windows(stores: Stores) -> None:
    """Five windows of three documents: windows. Were three many, windows of one document would go together."""
    lm_only, student = (Score(torch.tensor(nll, dtype=torch.float64), 49, 147, 1.0) for nll in NLL)
    by_window = gain_metrics(student, lm_only, stores.student)
    gain_W = torch.tensor([a - b for a, b in zip(*NLL, strict=True)], dtype=torch.float64)
    bytes_W = torch.tensor(BYTES)
    assert (by_window["gain_over_lm_only_low"], by_window["gain_over_lm_only_high"]) == resampled_gain(gain_W, bytes_W)
    assert by_window["gain_over_lm_only"] == pytest.approx(float(gain_W.sum()) / math.log(2) / 147)


def test_windows_of_a_document_are_resampled_together(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_distill.evaluation.evaluate.FEW_DOCUMENTS", 3)
    lm_only, student = (Score(torch.tensor(nll, dtype=torch.float64), 49, 147, 1.0) for nll in NLL)
    found = gain_metrics(student, lm_only, stores.student)
    gain_W = [a - b for a, b in zip(*NLL, strict=True)]
    of_documents = torch.tensor([gain_W[0] + gain_W[1], gain_W[2], gain_W[3] + gain_W[4]], dtype=torch.float64)
    bytes_of_documents = torch.tensor([BYTES[0] + BYTES[1], BYTES[2], BYTES[3] + BYTES[4]])
    low, high = resampled_gain(of_documents, bytes_of_documents)
    assert (found["gain_over_lm_only_low"], found["gain_over_lm_only_high"]) == (low, high)
