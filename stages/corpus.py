"""corpus: collect the sources' documents and split them by hash into training and validation text."""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.corpus.build import build_corpus
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.files import fresh_folder, write_json


def main(params: Params) -> None:
    with fresh_folder(Path("data/corpus")) as folder:
        metrics = build_corpus(params.profile.corpus, folder)
    write_json(Path("metrics/corpus.json"), metrics)


if __name__ == "__main__":
    run("corpus", main)
