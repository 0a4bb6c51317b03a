"""Run a stage as `python -m stages.<name>` does, and write down what it took when it ends.

It stands behind the name `python` in a workspace of benchmarks/stage_runs.py: `dvc repro` runs stages through it.
"""

import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(".work/measured")  # one file a stage: the fields of `StageCost` (stage_runs.py)
SAMPLE_SECONDS = 0.01


def main() -> None:
    _flag, module, *arguments = sys.argv[1:]
    sys.path[0] = os.getcwd()  # noqa: PTH109  # as `-m` has it: text
    spent, most = timed_tracking(), sampled_memory()
    began = time.perf_counter()
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        found = {
            "peak_bytes": most[0],
            "seconds": time.perf_counter() - began,
            "tracking_seconds": sum(spent),
            "first_tracking_seconds": sum(spent[:1]),
        }
        FOLDER.mkdir(parents=True, exist_ok=True)
        name = "@".join([module.removeprefix("stages."), *arguments])
        (FOLDER / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


def timed_tracking() -> list[float]:
    """Seconds of every call that writes a curve or asks MLflow for something, as the calls are made."""
    from moe_distill.tracking import mlflow_runs
    from moe_distill.tracking.curves import Curve

    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent.append(time.perf_counter() - began)

        return wrapper

    mlflow_runs._safely = timed(mlflow_runs._safely)
    Curve.append, Curve.publish = timed(Curve.append), timed(Curve.publish)  # type: ignore[method-assign]
    return spent


def sampled_memory() -> list[int]:
    """The most memory that this process was seen to hold by itself, one value that goes up.

    Pages of files that it maps, as it does shards, are not among it: they are the system's cache, there as long as
    nothing else needs the room. The kernel's own peak (VmHWM) has them in it, so it grows with what is read.
    """
    most = [held_bytes()]

    def sample() -> None:
        while True:
            most[0] = max(most[0], held_bytes())
            time.sleep(SAMPLE_SECONDS)

    threading.Thread(target=sample, daemon=True).start()
    return most


def held_bytes() -> int:
    """Anonymous memory, which Linux alone tells of a process by itself."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


if __name__ == "__main__":
    main()
