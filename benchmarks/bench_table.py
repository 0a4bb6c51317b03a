"""The last result of every topic, in one file of JSON, and the table of docs/benchmarks.md that is made of it."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase

import torch
from bench_row import Row
from interleaved import Spread
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

BEGIN, END = "<!-- table of `make bench` -->", "<!-- end of the table -->"
HEADER = ("what", "size", "ours", "reference", "ratio", "target", "holds", "machine, commit")
# Code, and all else that a line depends on.
READ = ("src", "stages", "benchmarks", "profiles", "tests/params.yaml", "dvc.yaml", ".dvc", ".dvcignore")


@dataclass(frozen=True)
class Result:
    """What one topic came to."""

    size: str
    machine: str
    commit: str  # with a + where files differed from it
    rows: list[Row]


def write_results(path: Path, results: dict[str, Result]) -> None:
    found = {topic: asdict(result) for topic, result in results.items()}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read_results(path: Path) -> dict[str, Result]:
    """By topic. The file must be there: a table without it would lose the lines of all topics not measured now."""
    return TypeAdapter(dict[str, Result]).validate_json(path.read_bytes())


def write_table(page: Path, results: Sequence[Result]) -> None:
    """Put the table between the page's two marks; all else stays as it is."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert BEGIN in text, f"{page} has no line {BEGIN}"
    assert END in rest, f"{page} has no line {END}"
    page.write_text("\n".join([before + BEGIN, *table(results), END + after]), encoding="utf-8")


def table(results: Sequence[Result]) -> Iterator[str]:
    """Markdown; machines have letters, and notes stand below."""
    machines = list(dict.fromkeys(result.machine for result in results))
    notes: list[str] = []
    yield line(HEADER)
    yield line(["---"] * len(HEADER))
    for result in results:
        for row in result.rows:
            what = row.what
            if row.note:
                notes.extend([row.note] if row.note not in notes else [])
                what += f" [{notes.index(row.note) + 1}]"
            holds = {None: "", True: "yes", False: "**no**"}[row.holds]
            asked = "" if row.target is None else str(row.target)
            where = f"{letters(machines.index(result.machine))}, {result.commit}"
            yield line([what, result.size, row.ours, row.reference, ratio(row.ratio), asked, holds, where])
    yield ""
    yield from (f"Machine {letters(number)}: {machine}.  " for number, machine in enumerate(machines))
    yield from (f"[{number}] {note}.  " for number, note in enumerate(notes, start=1))


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def letters(number: int) -> str:
    """A for 0, Z for 25, AA for 26."""
    return (letters(number // 26 - 1) if number >= 26 else "") + ascii_uppercase[number % 26]


def ratio(found: Spread | None) -> str:
    if found is None:
        return ""
    if found.count == 1:
        return f"{found.median:.3g}"
    return f"{found.median:.3g} ({found.low:.3g} to {found.high:.3g}; {found.count} pairs)"


def machine() -> str:
    """Processor, cores, threads that torch uses, GPU if there is one, and versions."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    parts = [
        names[0] if names else platform.processor() or platform.machine(),
        f"{cores} core{'s' * (cores > 1)}, {threads} thread{'s' * (threads > 1)}",
        *([torch.cuda.get_device_name()] if torch.cuda.is_available() else []),
        f"torch {torch.__version__}, Python {platform.python_version()}",
    ]
    return ", ".join(parts)


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def commit(root: Path) -> str:
    """The short name of the checked-out commit, with a + where a tracked file of `READ` differs from it."""
    name = _git(root, "rev-parse", "--short", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *READ)
    return f"{name}{'+' if changed else ''}" if name else "no commit"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
