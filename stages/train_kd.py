"""train_kd: phase 1, LM and KD from the cached shards."""

from functools import partial
from pathlib import Path

from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import TrainingStage, compute_training, run_training
from moe_distill.training.phases import train_kd
from moe_distill.training.stage_folders import TrainingInputs

STAGE = TrainingStage(
    name="train_kd",
    inputs=TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_init"),
        teacher_head=Path("models/teacher_head"),
        optimizer=None,
    ),
    train=train_kd,
    student=Path("models/student_kd"),
    optimizer=Path("models/student_kd_optimizer"),
)

if __name__ == "__main__":
    run(STAGE.name, partial(run_training, STAGE), partial(compute_training, STAGE))
