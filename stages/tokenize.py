"""tokenize: cut the corpus into windows for both tokenizers, align them by bytes, map the vocabularies."""

from pathlib import Path

from moe_distill.alignment.corpus_windows import write_windows
from moe_distill.config.params import Params
from moe_distill.config.profile import require_a_batch
from moe_distill.pipeline.stage_runner import run
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.utils.files import fresh_folder, write_json

WINDOWS = Path("data/windows")


def main(params: Params) -> None:
    with fresh_folder(WINDOWS) as folder:
        models = Path("models/teacher"), Path("models/student_init")
        metrics = write_windows(params.profile.windows, Path("data/corpus"), *models, folder)
        # What the training will need is no dependency: it can only refuse, and after the teacher's pass is late.
        n_windows = len(WindowStore(folder / "student/train", STUDENT_WINDOWS))
        require_a_batch(n_windows, params.profile.train.batch_windows)
    write_json(Path("metrics/tokenize.json"), metrics)


if __name__ == "__main__":
    run("tokenize", main)
