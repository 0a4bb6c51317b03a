"""train_router: phase 2, hidden-state and router terms on the curriculum over replayed experts."""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import run_training
from moe_distill.training.phases import train_router
from moe_distill.training.stage_folders import TrainingInputs

STAGE = "train_router"


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_kd"),
        teacher_head=Path("models/teacher_head"),
        optimizer=Path("models/student_kd_optimizer"),
    )
    run_training(STAGE, params, inputs, train_router, Path("models/student_router"))


if __name__ == "__main__":
    run(STAGE, main)
