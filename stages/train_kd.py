"""train_kd: phase 1, LM and KD from the cached shards."""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import run_training
from moe_distill.training.phases import train_kd
from moe_distill.training.stage_folders import TrainingInputs

STAGE = "train_kd"


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_init"),
        teacher_head=Path("models/teacher_head"),
        optimizer=None,
    )
    run_training(STAGE, params, inputs, train_kd, Path("models/student_kd"), Path("models/student_kd_optimizer"))


if __name__ == "__main__":
    run(STAGE, main)
