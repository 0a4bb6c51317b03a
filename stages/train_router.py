"""train_router: phase 2, hidden-state and router terms on the curriculum over replayed experts."""

from functools import partial
from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.tracking import track
from moe_distill.training.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.training.figures import training_figures
from moe_distill.training.phases import TrainingInputs, TrainingOutputs, train_router, training_key
from moe_distill.work import compute_once, stage_code
from moe_distill.workspace import fingerprint, write_json

STAGE, CURVES = "train_router", Path("metrics/curves")


def main(params: Params) -> None:
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=Path("data/teacher_shards"),
        student=Path("models/student_kd"),
        teacher_head=Path("models/teacher_head"),
        optimizer=Path("models/student_kd_optimizer"),
    )

    def compute(work: Path) -> dict[str, float]:
        on_validation = partial(track, params, [STAGE], running=True)
        outputs = TrainingOutputs(work, work / "export", None, CURVES, on_validation)
        return training_figures(train_router(params, inputs, outputs))

    published = {
        "export": Path("models/student"),
        CURVE_NAME: CURVES / f"{STAGE}.tsv",
        VALIDATION_CURVE_NAME: CURVES / f"{STAGE}_validation.tsv",
    }
    key = fingerprint([stage_code(STAGE), training_key(STAGE, params, inputs)])
    write_json(Path(f"metrics/{STAGE}.json"), compute_once(STAGE, key, compute, published))
    track(params, [STAGE])


if __name__ == "__main__":
    run(STAGE, main)
