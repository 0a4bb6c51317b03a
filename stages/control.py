"""control: the same student, steps, seed and text with LM alone, as the baseline of distillation; or, where the profile
says `baseline: none`, a marker in its place and no figure at all."""

from functools import partial
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import CURVES, TrainingStage, compute_training, run_training
from moe_distill.tracking.curves import Curve
from moe_distill.training.phases import control
from moe_distill.training.recorder import curve_columns
from moe_distill.training.stage_folders import TrainingInputs
from moe_distill.utils.files import fresh_folder, write_json

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
compute = partial(compute_training, STAGE)


def main(params: Params) -> None:
    if params.profile.baseline == "full":
        run_training(STAGE, params)
        return
    _write_markers()
    log("control: the profile says `baseline: none`; what distillation gains over plain training is not measured")


def _write_markers() -> None:
    """What stands in place of the outputs: a folder without a model, curves without a row, metrics without a figure."""
    with fresh_folder(STAGE.student) as folder:
        write_json(folder / "baseline.json", {"baseline": "none"})
    for name in (STAGE.name, f"{STAGE.name}_validation"):
        Curve(CURVES / f"{name}.tsv", curve_columns(("lm",), num_experts=0), last_step=0)
    write_json(Path(f"metrics/{STAGE.name}.json"), {})


if __name__ == "__main__":
    run(STAGE.name, main, compute)
