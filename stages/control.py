"""control: the same student, steps, seed and text with LM alone, as the baseline of distillation."""

from functools import partial
from pathlib import Path

from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import TrainingStage, compute_training, run_training
from moe_distill.training.phases import control
from moe_distill.training.stage_folders import TrainingInputs

STAGE = TrainingStage(
    name="control",
    inputs=TrainingInputs(
        windows=Path("data/windows/student"),
        targets=None,
        student=Path("models/student_init"),
        teacher_head=None,
        optimizer=None,
    ),
    train=control,
    student=Path("models/student_lm_only"),
)

if __name__ == "__main__":
    run(STAGE.name, partial(run_training, STAGE), partial(compute_training, STAGE))
