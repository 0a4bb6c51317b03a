"""control: the same student, steps, seed and text with LM alone: what distillation is measured against."""

from functools import partial
from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.tracking import track
from moe_distill.training.figures import training_figures
from moe_distill.training.phases import TrainingInputs, TrainingOutputs, control, training_key
from moe_distill.workspace import publish, work_folder, write_json

STAGE, CURVES = "control", Path("metrics/curves")


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=None,
        student=Path("models/student_init"),
        teacher_head=None,
        optimizer=None,
    )
    with work_folder(STAGE, training_key(STAGE, params, inputs)) as work:
        outputs = TrainingOutputs(work, work / "export", None, CURVES, partial(track, params, [STAGE], running=True))
        result = control(params, inputs, outputs)
        publish(outputs.student, Path("models/student_lm_only"))
    write_json(Path(f"metrics/{STAGE}.json"), training_figures(result))
    track(params, [STAGE])


if __name__ == "__main__":
    run(STAGE, main)
