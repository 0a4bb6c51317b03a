"""teacher_lead: is the teacher ahead of the student, as it is before training, on the validation text?"""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.evaluation.teacher_lead import measure_lead, require_lead, told
from moe_distill.log import log
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.device import make_runtime
from moe_distill.utils.files import write_json

STAGE = "teacher_lead"


def main(params: Params) -> None:
    lead = measure_lead(
        Path("data/windows"),
        Path("data/teacher_shards"),
        Path("models/student_init"),
        params.profile.evaluate.batch_windows,
        make_runtime("fp32").device,
    )
    write_json(Path("metrics/teacher_lead.json"), lead)  # before it is judged: `moe-distill doctor` tells it
    log(f"{STAGE}: {told(lead)}")
    if params.experiment.teacher_must_lead:
        require_lead(lead)


if __name__ == "__main__":
    run(STAGE, main)
