"""Measure, and write the figures: `make bench`, `make bench-full`.

    python benchmarks/bench.py                       # every topic, meant for 10 minutes on 2 idle cores
    python benchmarks/bench.py --full                # every topic at its full size
    python benchmarks/bench.py --only steps,encoding # these; the lines of the others stay as they were

The last result of each topic stands in docs/benchmarks.json, of which the whole table of docs/benchmarks.md is made.
A line that cannot be measured here says why, and what would be needed: MOE_DISTILL_ASSETS (bench_texts.py),
MOE_DISTILL_TRL (row_uld.py), MOE_DISTILL_BENCH_MODEL (row_encoding.py), a GPU.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import row_encoding
import row_gpu
import row_loss_memory
import row_stages
import row_startup
import row_step_cost
import row_teacher_in_loop
import row_teacher_pass
import row_tokenize
import row_uld
import typer
from bench_row import Row, Size
from bench_table import Result, commit, machine, ratio, read_results, write_results, write_table

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs/benchmarks.json", ROOT / "docs/benchmarks.md"
TOPICS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "steps": row_step_cost.rows,
    "uld": row_uld.rows,
    "teacher_in_loop": row_teacher_in_loop.rows,
    "teacher_pass": row_teacher_pass.rows,
    "encoding": row_encoding.rows,
    "tokenize": row_tokenize.rows,
    "loss_memory": row_loss_memory.rows,
    "stages": row_stages.rows,
    "startup": row_startup.rows,
    "gpu": row_gpu.rows,
}


def main(
    full: Annotated[bool, typer.Option("--full", help="every topic at its full size")] = False,
    only: Annotated[str, typer.Option(help=f"topics, by commas: {', '.join(TOPICS)}")] = "",
) -> None:
    """Measure every topic, write its figures, and write the table."""
    chosen = only.split(",") if only else list(TOPICS)
    if unknown := [name for name in chosen if name not in TOPICS]:
        raise typer.BadParameter(f"no topic {', '.join(unknown)}: {', '.join(TOPICS)}", param_hint="--only")
    size, code = Size.FULL if full else Size.SHORT, commit(ROOT)
    for name in chosen:
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        rows = []
        for row in TOPICS[name](size):
            rows.append(row)
            print(f"  {row.what}: {row.ours} {ratio(row.ratio)} {row.note}".rstrip(), flush=True)
        results = read_results(RESULTS) | {name: Result(size.value, machine(), code, rows)}
        results = {each: results[each] for each in TOPICS if each in results}
        write_results(RESULTS, results)
        write_table(PAGE, list(results.values()))
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    print(f"table: {PAGE}")


if __name__ == "__main__":
    typer.run(main)
