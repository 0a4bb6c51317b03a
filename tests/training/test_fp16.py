"""Teacher, both phases and the baseline in fp16 with a scaled loss end where fp32 does, from one chain of folders."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_distill.config.params import Params
from moe_distill.training.phases import control, train_kd, train_router
from moe_distill.training.result import Result
from moe_distill.training.stage_folders import TrainingOutputs
from tests.chain import Chain, capture

TOLERANCE = 1e-2  # bits per byte
STEPS = 50


def in_precision(params: Params, precision: str) -> Params:
    """The chain's parameters for 50 steps, half of which are of the first phase; teacher and student in `precision`."""
    experiment, profile = params.experiment, params.profile
    curriculum = experiment.curriculum.model_copy(update={"phase1_share": 0.5})
    train = {"max_steps": STEPS, "validate_every": STEPS, "checkpoint_every": STEPS, "micro_batch_windows": 8}
    return Params(
        experiment=experiment.model_copy(update={"precision": precision, "curriculum": curriculum}),
        profile=profile.model_copy(
            update={
                "teacher": profile.teacher.model_copy(update={"precision": precision}),
                "train": profile.train.model_copy(update=train),
            }
        ),
    )


def trained(chain: Chain, precision: str, folder: Path) -> dict[str, Result]:
    """Every stage from `teacher` on, in a precision."""
    params = in_precision(chain.params, precision)
    copied = replace(chain.copy(folder), params=params)
    capture(copied.folder, params)

    def outputs(stage: str) -> TrainingOutputs:
        work = copied.folder / stage
        optimizer = work / "optimizer" if stage == "train_kd" else None
        return TrainingOutputs(work, work / "export", optimizer, work / "curves", lambda: None)

    of_kd = outputs("train_kd")
    found = {"train_kd": train_kd(params, copied.inputs(), of_kd)}
    inputs = replace(copied.inputs(), student=of_kd.student, optimizer=of_kd.optimizer)
    found["train_router"] = train_router(params, inputs, outputs("train_router"))
    found["control"] = control(params, copied.inputs(with_targets=False), outputs("control"))
    return found


def test_fp16_ends_where_fp32_does(chain: Chain, tmp_path: Path) -> None:
    fp32 = trained(chain, "fp32", tmp_path / "fp32")
    fp16 = trained(chain, "fp16", tmp_path / "fp16")
    for stage in fp32:
        one, other = fp32[stage].final, fp16[stage].final
        assert other.bits_per_byte == pytest.approx(one.bits_per_byte, abs=TOLERANCE), stage
        assert one.nll_N is not None
        assert other.nll_N is not None
        assert not torch.equal(other.nll_N, one.nll_N), f"{stage}: a half that is not one; sums may agree by chance"
        assert fp16[stage].skipped_steps == 0
