"""teacher_correction: where the profile says so, tune the teacher lightly on the training text."""

from functools import partial
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.models.corrected_teacher import CORRECTION_NAME
from moe_distill.pipeline.dvc_stage import stage_code
from moe_distill.pipeline.resumable_work import compute_once
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.files import fingerprint, fresh_folder, write_json

STAGE = "teacher_correction"
WINDOWS, TEACHER, OUTPUT = Path("data/windows/teacher"), Path("models/teacher"), Path("models/teacher_corrected")


def main(params: Params) -> None:
    models, precision = params.profile.models, params.profile.teacher.precision
    correction, metrics = models.teacher_correction, {"corrected": 0.0}
    if correction is None:
        with fresh_folder(OUTPUT) as folder:
            write_json(folder / CORRECTION_NAME, {"corrected": False})
    else:
        # Imported here: torch and peft take seconds, which a teacher that is captured as it is does not need.
        from moe_distill.correction.correct import TEACHER_FOLDER, correct_teacher, correction_key

        key = correction_key(correction, models.seed, precision, WINDOWS, TEACHER)
        compute = partial(correct_teacher, correction, models.seed, precision, WINDOWS, TEACHER)
        metrics = compute_once(STAGE, fingerprint([stage_code(STAGE), key]), compute, {TEACHER_FOLDER: OUTPUT})
    write_json(Path(f"metrics/{STAGE}.json"), metrics)


if __name__ == "__main__":
    run(STAGE, main)
