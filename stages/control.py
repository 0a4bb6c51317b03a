"""control: the same student, steps, seed and text with LM alone: what distillation is measured against."""

from functools import partial
from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.tracking import track
from moe_distill.training.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.training.figures import training_figures
from moe_distill.training.phases import TrainingInputs, TrainingOutputs, control, training_key
from moe_distill.work import compute_once, stage_code
from moe_distill.workspace import fingerprint, write_json

STAGE, CURVES = "control", Path("metrics/curves")


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=None,
        student=Path("models/student_init"),
        teacher_head=None,
        optimizer=None,
    )

    def compute(work: Path) -> dict[str, float]:
        on_validation = partial(track, params, [STAGE], running=True)
        outputs = TrainingOutputs(work, work / "export", None, CURVES, on_validation)
        return training_figures(control(params, inputs, outputs))

    published = {
        "export": Path("models/student_lm_only"),
        CURVE_NAME: CURVES / f"{STAGE}.tsv",
        VALIDATION_CURVE_NAME: CURVES / f"{STAGE}_validation.tsv",
    }
    key = fingerprint([stage_code(STAGE), training_key(STAGE, params, inputs)])
    write_json(Path(f"metrics/{STAGE}.json"), compute_once(STAGE, key, compute, published))
    track(params, [STAGE])


if __name__ == "__main__":
    run(STAGE, main)
