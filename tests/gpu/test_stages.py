"""The teacher's pass, both phases, the baseline and the evaluation: they fit in 12 GB, and precision changes little."""

import pytest
import torch

from moe_distill.evaluation.measure import score
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.utils.device import PRECISIONS
from tests.gpu.conftest import WholeRuns

PEAK_BYTES = 12e9
TOLERANCE = 1e-3  # bits per byte


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_stage_fits_and_takes_every_step(runs: WholeRuns, precision: str) -> None:
    found = runs.of(precision)
    assert all(peak <= PEAK_BYTES for peak in found.peaks.values()), found.peaks
    for stage, result in found.results.items():
        assert result.skipped_steps == 0, stage
        assert result.final.bits_per_byte > 0.0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_in_reduced_precision_ends_where_fp32_does(runs: WholeRuns, precision: str) -> None:
    fp32, reduced = runs.of("fp32"), runs.of(precision)
    for stage, result in reduced.results.items():
        expected = fp32.results[stage].final.bits_per_byte
        assert result.final.bits_per_byte == pytest.approx(expected, abs=TOLERANCE), stage
        assert result.final.bits_per_byte != expected


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_teachers_text_is_as_likely_in_both_precisions(runs: WholeRuns, precision: str) -> None:
    """Each run's teacher has the same weights, but for their rounding."""
    likelihoods = [
        float(open_targets(runs.of(each).folders.root / "targets/validation").column("target_logprob", 0).mean())
        for each in ("fp32", precision)
    ]
    assert likelihoods[1] == pytest.approx(likelihoods[0], abs=TOLERANCE)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_student_is_measured_alike_in_every_precision(runs: WholeRuns, precision: str) -> None:
    root = runs.of("fp32").folders.root
    windows = WindowStore(root / "windows/validation", STUDENT_WINDOWS)
    models = [
        load_causal_lm(root / "train_router/export", PRECISIONS[each], runs.setting.device)
        for each in ("fp32", precision)
    ]
    runs.setting.require(precision)
    fp32, reduced = (score(model, windows, batch_windows=4).bits_per_byte for model in models)
    assert reduced == pytest.approx(fp32, abs=TOLERANCE)


@pytest.mark.parametrize("stage", ["train_kd", "train_router"])
def test_what_was_trained_has_learnt(runs: WholeRuns, stage: str) -> None:
    root = runs.of("fp16").folders.root
    windows = WindowStore(root / "windows/validation", STUDENT_WINDOWS)
    untrained = load_causal_lm(root / "student", torch.float32, runs.setting.device)
    assert runs.of("fp16").results[stage].final.bits_per_byte < score(untrained, windows, 4).bits_per_byte - 0.01
