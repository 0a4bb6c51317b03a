"""All figures together, of a real small chain whose four students are the untrained one."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.evaluation.evaluate import (
    HEADLINES,
    EvaluationInputs,
    evaluate,
    gain_metrics,
    headlines,
    training_metrics,
)
from moe_distill.evaluation.measure import Score
from moe_distill.evaluation.metrics import resampled_gain
from moe_distill.reporting.report import kd_weight_told
from tests.chain import Chain
from tests.params import fixed_params
from tests.stores import BYTES, Stores

NLL = ([20.0, 3.0, 40.0, 12.0, 55.0], [18.0, 4.0, 31.0, 12.5, 50.0])  # of each window: LM alone, student


def test_r27_parameters_and_bytes_of_both_models_are_reported(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, student, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu")).metrics
    for role, folder in (("teacher", "teacher"), ("student", "student_init")):
        weights = load_file(chain.folder / "models" / folder / "model.safetensors").values()
        assert figures[f"{role}_parameters"] == sum(weight.numel() for weight in weights)
        assert figures[f"{role}_bytes"] == sum(weight.nbytes for weight in weights)
    assert figures["bytes_ratio"] == figures["teacher_bytes"] / figures["student_bytes"]
    assert headlines(figures) == {name: figures[name] for name in HEADLINES}


def test_without_a_baseline_no_figure_of_it_is_made_up(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, None, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu")).metrics
    assert not [name for name in (*figures, *headlines(figures)) if "lm_only" in name]
    assert {"student_bits_per_byte", "student_kd_bits_per_byte", "top1_agreement"} <= set(figures)
    figures |= training_metrics({"positions_per_second": 9.0}, {"steps": 4.0, "stopped_early": 0.0}, {})
    assert not [name for name in figures if "lm_only" in name]
    assert (figures["student_steps"], figures["teacher_tokens_per_second"]) == (4.0, 9.0)


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
