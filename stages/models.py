"""models: put teacher or student into a local folder (`python -m stages.models teacher`)."""

import sys
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.models.provide import provide_student, provide_teacher
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.files import write_json


def main(params: Params) -> None:
    models, corpus = params.profile.models, Path("data/corpus")
    if sys.argv[1] == "teacher":
        metrics = provide_teacher(models.teacher, models.seed, corpus, Path("models/teacher"))
    else:
        metrics = provide_student(models.student, models.seed, corpus, Path("models/student_init"))
    write_json(Path(f"metrics/models_{sys.argv[1]}.json"), metrics)


if __name__ == "__main__":
    run(f"models@{sys.argv[1]}", main)
