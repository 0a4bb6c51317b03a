"""corpus: collect the sources' documents and split them by hash into training and validation text."""

from pathlib import Path

from moe_distill.config import Params
from moe_distill.corpus.build import build_corpus
from moe_distill.stage import run
from moe_distill.workspace import fresh_folder, write_json


def main(params: Params) -> None:
    with fresh_folder(Path("data/corpus")) as folder:
        figures = build_corpus(params.profile.corpus, folder)
    write_json(Path("metrics/corpus.json"), figures)


if __name__ == "__main__":
    run("corpus", main)
