"""models: put teacher or student into a local folder (`python -m stages.models teacher`)."""

import sys
from functools import partial
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.models.provide import provide_student, provide_teacher
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.files import write_json

ROLES = ("teacher", "student")


def main(role: str, params: Params) -> None:
    models, corpus = params.profile.models, Path("data/corpus")
    if role == "teacher":
        metrics = provide_teacher(models.teacher, models.seed, corpus, Path("models/teacher"))
    else:
        metrics = provide_student(models.student, models.seed, corpus, Path("models/student_init"))
    write_json(Path(f"metrics/models_{role}.json"), metrics)


if __name__ == "__main__":
    asked = [each for each in sys.argv[1:] if each in ROLES]
    if len(asked) != 1:
        print("usage: python -m stages.models teacher|student [--debug]", file=sys.stderr)
        sys.exit(2)
    run(f"models@{asked[0]}", partial(main, asked[0]))
