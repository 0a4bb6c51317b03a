"""train_router: phase 2, hidden-state and router terms on the curriculum over replayed experts."""

from functools import partial
from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.tracking import track
from moe_distill.training.figures import training_figures
from moe_distill.training.phases import TrainingInputs, TrainingOutputs, train_router, training_key
from moe_distill.workspace import publish, work_folder, write_json

STAGE, CURVES = "train_router", Path("metrics/curves")


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_kd"),
        teacher_head=Path("models/teacher_head"),
        optimizer=Path("models/student_kd_optimizer"),
    )
    with work_folder(STAGE, training_key(STAGE, params, inputs)) as work:
        outputs = TrainingOutputs(work, work / "export", None, CURVES, partial(track, params, [STAGE], running=True))
        result = train_router(params, inputs, outputs)
        publish(outputs.student, Path("models/student"))
    write_json(Path(f"metrics/{STAGE}.json"), training_figures(result))
    track(params, [STAGE])


if __name__ == "__main__":
    run(STAGE, main)
