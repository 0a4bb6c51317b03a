"""What share of a reading stage goes into verification: hashes of files and checks of values, against the whole stage.

Runs a stage in this process after `dvc repro`, in the same workspace, and leaves its outputs as they were made:

    PYTHONPATH=src:. python benchmarks/verification_cost.py train_kd
"""

import importlib
import time
from collections.abc import Callable
from typing import Any

import typer

from moe_distill.config.params import load_params
from moe_distill.replay import head
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import WindowStore

spent = 0.0


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any) -> Any:
        global spent
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent += time.perf_counter() - began

    return wrapper


def main(stage: str) -> None:
    ShardReader._verified = timed(ShardReader._verified)  # type: ignore[method-assign]
    WindowStore._check = timed(WindowStore._check)  # type: ignore[method-assign]
    head.sha256_file, head.check_finite = timed(head.sha256_file), timed(head.check_finite)  # type: ignore[attr-defined]
    module = importlib.import_module(f"stages.{stage}")
    began = time.perf_counter()
    module.main(load_params())
    total = time.perf_counter() - began
    print(f"{stage}: verification {spent:.3f} s of {total:.2f} s: {spent / total:.2%}")


if __name__ == "__main__":
    typer.run(main)
