"""control: the same student, steps, seed and text with LM alone, as the baseline of distillation; or, where the profile
says `baseline: none`, a marker in its place and no figure at all."""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.pipeline.stage_runner import run
from moe_distill.pipeline.training_stage import CURVES, run_training
from moe_distill.tracking.curves import Curve
from moe_distill.training.phases import control
from moe_distill.training.recorder import curve_columns
from moe_distill.training.stage_folders import TrainingInputs
from moe_distill.utils.files import fresh_folder, write_json

STAGE, OUTPUT = "control", Path("models/student_lm_only")


def main(params: Params) -> None:
    if params.profile.baseline == "none":
        _write_markers()
        log("control: the profile says `baseline: none`; what distillation gains over plain training is not measured")
        return
    inputs = TrainingInputs(
        windows=Path("data/windows/student"),
        targets=None,
        student=Path("models/student_init"),
        teacher_head=None,
        optimizer=None,
    )
    run_training(STAGE, params, inputs, control, OUTPUT)


def _write_markers() -> None:
    """What stands in place of the outputs: a folder without a model, curves without a row, metrics without a figure."""
    with fresh_folder(OUTPUT) as folder:
        write_json(folder / "baseline.json", {"baseline": "none"})
    for name in (STAGE, f"{STAGE}_validation"):
        Curve(CURVES / f"{name}.tsv", curve_columns(("lm",), num_experts=0), last_step=0)
    write_json(Path(f"metrics/{STAGE}.json"), {})


if __name__ == "__main__":
    run(STAGE, main)
