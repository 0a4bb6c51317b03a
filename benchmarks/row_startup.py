"""Start-up of the command line."""

import os
import subprocess
import sys
from collections.abc import Iterator

from bench_row import Row, Size, at_most
from interleaved import child_clocks, spread
from stage_runs import ROOT

HELP = "from moe_distill.cli import main; main()"


def rows(size: Size) -> Iterator[Row]:
    """`moe-distill --help` beside an interpreter that does nothing."""
    works = {"help": ["-c", HELP, "--help"], "nothing": ["-c", "pass"]}
    rounds = size.pick(1, 10, 30)
    times = [{name: process_seconds(arguments) for name, arguments in works.items()} for _ in range(rounds + 1)][1:]
    wall = {name: spread([each[name][1] for each in times]) for name in works}
    yield Row(
        "`moe-distill --help`, wall time",
        ours=f"{wall['help'].median:.2f} s (CPU {spread([each['help'][0] for each in times]).median:.2f} s)",
        reference=f"{wall['nothing'].median:.2f} s (`python -c pass`)",
        ratio=spread([each["help"][1] / each["nothing"][1] for each in times]),
        target=at_most(0.3, "s"),
        value=wall["help"].median,
    )


def process_seconds(arguments: list[str]) -> tuple[float, float]:
    """CPU and wall time of an interpreter with these arguments, from its start to its end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    began = child_clocks()
    subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
    ended = child_clocks()
    return ended[0] - began[0], ended[1] - began[1]
