"""train_router: phase 2, hidden-state and router terms on the curriculum over replayed experts."""

from functools import partial
from pathlib import Path

from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import TrainingStage, compute_training, run_training
from moe_distill.training.phases import train_router
from moe_distill.training.stage_folders import TrainingInputs

STAGE = TrainingStage(
    name="train_router",
    inputs=TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_kd"),
        teacher_head=Path("models/teacher_head"),
        optimizer=Path("models/student_kd_optimizer"),
    ),
    train=train_router,
    student=Path("models/student_router"),
)
main, compute = partial(run_training, STAGE), partial(compute_training, STAGE)

if __name__ == "__main__":
    run(STAGE.name, main, compute)
