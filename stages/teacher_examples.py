"""teacher_examples: what the teacher says at a few positions, and writes after a few beginnings, for the report."""

from pathlib import Path

from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.config.params import Params
from moe_distill.models.corrected_teacher import teacher_to_capture
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.pipeline.stage_runner import run
from moe_distill.reporting.model_facts import read_model_facts
from moe_distill.reporting.teacher_examples import Teacher, TeacherExamples, teacher_positions, teacher_samples
from moe_distill.utils.device import make_runtime
from moe_distill.utils.files import write_json

STAGE, OUTPUT = "teacher_examples", Path("data/teacher_examples.json")
WINDOWS, TARGETS = Path("data/windows"), Path("data/teacher_shards")
TEACHER, CORRECTED = Path("models/teacher"), Path("models/teacher_corrected")


def main(params: Params) -> None:
    profile, folder = params.profile, teacher_to_capture(TEACHER, CORRECTED)
    spelled = token_bytes(load_tokenizer(TEACHER), "of the teacher").table
    samples = []
    if profile.evaluate.samples:
        runtime = make_runtime(profile.teacher.precision)
        model = load_causal_lm(folder, runtime.dtype, runtime.device)
        teacher = Teacher(model, spelled, profile.windows.teacher_max_length)
        samples = teacher_samples(WINDOWS, teacher, profile.evaluate)
    examples = TeacherExamples(
        about=read_model_facts(TEACHER), positions=teacher_positions(WINDOWS, TARGETS, spelled), samples=samples
    )
    write_json(OUTPUT, examples.model_dump(mode="json"))


if __name__ == "__main__":
    run(STAGE, main)
