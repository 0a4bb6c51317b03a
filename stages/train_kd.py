"""train_kd: phase 1, LM and KD from the cached shards."""

from functools import partial
from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.tracking import track
from moe_distill.training.figures import training_figures
from moe_distill.training.phases import TrainingInputs, TrainingOutputs, train_kd, training_key
from moe_distill.workspace import publish, work_folder, write_json

STAGE, CURVES = "train_kd", Path("metrics/curves")


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_init"),
        teacher_head=Path("models/teacher_head"),
        optimizer=None,
    )
    with work_folder(STAGE, training_key(STAGE, params, inputs)) as work:
        outputs = TrainingOutputs(
            work, work / "export", work / "optimizer", CURVES, partial(track, params, [STAGE], running=True)
        )
        result = train_kd(params, inputs, outputs)
        publish(outputs.student, Path("models/student_kd"))
        publish(work / "optimizer", Path("models/student_kd_optimizer"))
    write_json(Path(f"metrics/{STAGE}.json"), training_figures(result))
    track(params, [STAGE])


if __name__ == "__main__":
    run(STAGE, main)
