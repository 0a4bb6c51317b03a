"""teacher: run the teacher once over its windows; keep top-k, tail and states in fp16 shards."""

from functools import partial
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.models.corrected_teacher import teacher_to_capture
from moe_distill.pipeline.dvc_stage import stage_code
from moe_distill.pipeline.resumable_work import compute_once
from moe_distill.pipeline.stage_runner import run
from moe_distill.teacher.run import capture_key, run_teacher
from moe_distill.utils.files import fingerprint, folder_fingerprint, write_json

WINDOWS = Path("data/windows/teacher")


def main(params: Params) -> None:
    capture = params.profile.teacher
    teacher = teacher_to_capture(Path("models/teacher"), Path("models/teacher_corrected"))
    teacher_fingerprint = folder_fingerprint(teacher)  # once: it reads gigabytes
    key = fingerprint([stage_code("teacher"), capture_key(capture, WINDOWS, teacher_fingerprint)])
    # What the training will need is no dependency: it can only refuse.
    step_windows = params.profile.train.batch_windows if params.experiment.losses.terms_of_states() else None
    compute = partial(
        run_teacher, capture, WINDOWS, teacher, step_windows=step_windows, teacher_fingerprint=teacher_fingerprint
    )
    outputs = {"shards": Path("data/teacher_shards"), "head": Path("models/teacher_head")}
    metrics = compute_once("teacher", key, compute, outputs)
    write_json(Path("metrics/teacher.json"), metrics)


if __name__ == "__main__":
    run("teacher", main)
