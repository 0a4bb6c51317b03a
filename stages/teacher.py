"""teacher: run the teacher once over its windows; keep top-k, tail and states in fp16 shards."""

from functools import partial
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.models.corrected_teacher import teacher_to_capture
from moe_distill.pipeline.dvc_stage import stage_code
from moe_distill.pipeline.launch import in_processes
from moe_distill.pipeline.resumable_work import compute_once
from moe_distill.pipeline.stage_runner import run
from moe_distill.teacher.run import capture_key, run_teacher
from moe_distill.utils.files import fingerprint, folder_fingerprint, write_json
from moe_distill.utils.processes import Processes

WINDOWS = Path("data/windows/teacher")
TEACHERS = Path("models/teacher"), Path("models/teacher_corrected")


def main(params: Params) -> None:
    teacher_fingerprint = folder_fingerprint(teacher_to_capture(*TEACHERS))  # once: it reads gigabytes
    key = fingerprint([stage_code("teacher"), capture_key(params.profile.teacher, WINDOWS, teacher_fingerprint)])
    start = in_processes("teacher", params, partial(compute, teacher_fingerprint=teacher_fingerprint))
    outputs = {"shards": Path("data/teacher_shards"), "head": Path("models/teacher_head")}
    metrics = compute_once("teacher", key, start, outputs)
    write_json(Path("metrics/teacher.json"), metrics)


def compute(
    params: Params, work: Path, processes: Processes, teacher_fingerprint: str | None = None
) -> dict[str, float]:
    """Capture in a work folder, from where a killed run ended; returns the metrics."""
    # What the training will need is no dependency: it can only refuse.
    step_windows = params.profile.train.batch_windows if params.experiment.losses.terms_of_states() else None
    return run_teacher(
        params.profile.teacher,
        WINDOWS,
        teacher_to_capture(*TEACHERS),
        work,
        step_windows=step_windows,
        teacher_fingerprint=teacher_fingerprint,
        processes=processes,
    )


if __name__ == "__main__":
    run("teacher", main, compute)
