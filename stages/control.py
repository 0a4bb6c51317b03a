"""control: the same student, steps, seed and text with LM alone, as the baseline of distillation."""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import run_training
from moe_distill.training.phases import control
from moe_distill.training.stage_folders import TrainingInputs

STAGE = "control"


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=None,
        student=Path("models/student_init"),
        teacher_head=None,
        optimizer=None,
    )
    run_training(STAGE, params, inputs, control, Path("models/student_lm_only"))


if __name__ == "__main__":
    run(STAGE, main)
