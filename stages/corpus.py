"""corpus: collect the sources' documents and split them by hash into training and validation text."""

from pathlib import Path

from moe_distill.config import Params
from moe_distill.corpus.build import build_corpus
from moe_distill.stage import run
from moe_distill.workspace import write_json


def main(params: Params) -> None:
    write_json(Path("metrics/corpus.json"), build_corpus(params.profile.corpus, Path("data/corpus")))


if __name__ == "__main__":
    run("corpus", main)
