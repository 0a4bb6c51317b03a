"""check: refuse a wrong params.yaml or profile before anything runs. Needs no torch; takes well under a second."""

from pathlib import Path

from moe_distill.config import Params
from moe_distill.stage import run
from moe_distill.workspace import write_json

OUTPUT = Path("data/checked.json")


def main(_params: Params) -> None:
    write_json(OUTPUT, {"parameters": "valid"})  # a constant: no later stage changes because of it


if __name__ == "__main__":
    run("check", main)
