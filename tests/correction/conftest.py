"""Corrections of the chain's tiny teacher: a Qwen3-MoE of 4 experts, tuned for a few steps."""

from pathlib import Path

import pytest

from moe_distill.config.model_keys import TeacherCorrection
from moe_distill.correction.correct import correct_teacher
from tests.chain import Chain

PARAMS = TeacherCorrection(
    steps=6,
    learning_rate=2e-2,
    rank=4,
    train_experts=True,
    train_router=True,
    batch_windows=8,
    micro_batch_windows=4,
    gradient_checkpointing=False,
    validation_windows=6,
    checkpoint_every=2,
)
Corrected = tuple[Path, dict[str, float]]


def correct(chain: Chain, output: Path, **changes: object) -> dict[str, float]:
    """Correct a chain's teacher; returns the metrics."""
    params = TeacherCorrection.model_validate(PARAMS.model_dump() | changes)
    return correct_teacher(
        params, 0, "fp32", chain.folder / "data/windows/teacher", chain.folder / "models/teacher", output
    )


@pytest.fixture(scope="session")
def corrected(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Corrected:
    """The work folder of a correction, and its metrics."""
    folder = tmp_path_factory.mktemp("corrected")
    return folder, correct(chain, folder)
