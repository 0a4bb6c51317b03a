"""student: the trained student as others load it, with its card and results, and a tokenizer that adds the prefix."""

import json
from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.models.shared_model import share_model
from moe_distill.pipeline.stage_runner import run
from moe_distill.reporting.model_card import write_model_card
from moe_distill.utils.files import fresh_folder

STUDENT = Path("models/student")


def main(params: Params) -> None:
    metrics: dict[str, float] = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    with fresh_folder(STUDENT) as folder:
        tokenizer_class = share_model(Path("models/student_router"), folder)
        write_model_card(params, metrics, tokenizer_class, folder)
    log(f"student: {STUDENT}; {STUDENT}/README.md says how to load it")


if __name__ == "__main__":
    run("student", main)
