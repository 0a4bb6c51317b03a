"""teacher: run the teacher once over its windows; keep top-k, tail and states in fp16 shards."""

from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.teacher.run import capture_key, run_teacher
from moe_distill.workspace import publish, work_folder, write_json

WINDOWS, TEACHER = Path("data/windows/teacher"), Path("models/teacher")


def main(params: Params) -> None:
    capture = params.profile.teacher
    with work_folder("teacher", capture_key(capture, WINDOWS, TEACHER)) as folder:
        figures = run_teacher(capture, WINDOWS, TEACHER, folder)
        publish(folder / "shards", Path("data/teacher_shards"))
        publish(folder / "head", Path("models/teacher_head"))
    write_json(Path("metrics/teacher.json"), figures)


if __name__ == "__main__":
    run("teacher", main)
