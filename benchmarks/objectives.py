"""Which objective distils best across tokenizers? (docs/log.md)

Same teacher, same shards, same initial student, same steps and the same search of learning rate and weight for every
objective. Two regimes: all of the training text, and a quarter of it repeated. The ceiling is full-vocabulary KD into
a student that shares the teacher's tokenizer, its gain counted from its own LM-only run. After `dvc repro` with
profile tiny, from the project's folder:

    python benchmarks/objectives.py prepare            # windows, shards and students under .work/benchmarks
    python benchmarks/objectives.py search             # quarter, seed 0, half the steps, every learning rate and weight
    python benchmarks/objectives.py compare            # both regimes, three seeds, each objective's best pair
    python benchmarks/objectives.py compare --steps 800 --rate 2e-3    # the profile's own schedule: less noise
    python benchmarks/objectives.py variants           # of ours: maps, temperature and order; quarter, three seeds
    python benchmarks/objectives.py native             # ceilings of the student's own tokenizer; quarter, seed 0
    python benchmarks/objectives.py table

Every finished run is a line of .work/benchmarks/runs.tsv; an interrupted command continues there.
"""

import math
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path

import typer
from comparison_run import HOME, NATIVE_TEACHER, OURS, SAME_STUDENT, STUDENT, TEACHER, Run, execute

from moe_distill.alignment.corpus_windows import write_windows
from moe_distill.config import load_params
from moe_distill.models.tiny_student import make_tiny_student
from moe_distill.models.tiny_teacher import train_tiny_teacher
from moe_distill.profile import TinyStudent, TinyTeacher
from moe_distill.teacher.run import run_teacher

RUNS = HOME / "runs.tsv"
REGIMES = {"whole": 1.0, "quarter": 0.25}
OBJECTIVES = ("lm", "ours", "shared_strings", "uld", "alm_1", "alm_100", "same_lm", "same_full")
WEIGHTS, SEEDS = (0.5, 0.9), (0, 1, 2)
SEARCH_STEPS, STEPS = 200, 400
app = typer.Typer(add_completion=False)


@app.command()
def prepare() -> None:
    """Write windows and shards of both regimes, and a student with the teacher's tokenizer."""
    params = load_params()
    models = params.profile.models
    assert isinstance(models.student, TinyStudent)
    assert isinstance(models.teacher, TinyTeacher)
    same = models.student.model_copy(update={"tokenizer": models.teacher.tokenizer})
    corpus = Path("data/corpus")
    shutil.rmtree(HOME, ignore_errors=True)
    make_tiny_student(same, models.seed, corpus / "train.parquet", SAME_STUDENT)
    capture = params.profile.teacher.model_copy(update={"hidden_fraction": 0.0})
    for regime, fraction in REGIMES.items():
        windows = params.profile.windows.model_copy(update={"train_fraction": fraction})
        write_windows(windows, corpus, TEACHER, STUDENT, HOME / regime / "windows")
        write_windows(windows, corpus, TEACHER, SAME_STUDENT, HOME / regime / "windows_same")
        run_teacher(capture, HOME / regime / "windows/teacher", TEACHER, HOME / regime)


@app.command()
def search(rates: str = "2e-3,4e-3", processes: int = 2) -> None:
    """Every learning rate and weight, on a quarter of the text with seed 0."""
    runs = []
    for objective in OBJECTIVES:
        weights = (0.0,) if objective.endswith("lm") else WEIGHTS
        pairs = [(float(rate), weight) for rate in rates.split(",") for weight in weights]
        runs += [Run("quarter", objective, 0, rate, weight, SEARCH_STEPS) for rate, weight in pairs]
    run_all(runs, processes)


@app.command()
def compare(
    regimes: str = "quarter,whole",
    objectives: str = ",".join(OBJECTIVES),
    steps: int = STEPS,
    rate: float | None = None,
    processes: int = 2,
) -> None:
    """Every objective with the best of its search, or at another rate and number of steps, three seeds."""
    best = searched()
    chosen = [best[name] for name in objectives.split(",")]
    runs = [replace(run, regime=regime, seed=seed) for regime in regimes.split(",") for seed in SEEDS for run in chosen]
    run_all([at(run, steps, rate) for run in runs], processes)


@app.command()
def variants(
    names: str = ",".join(OURS),
    seeds: str = "0,1,2",
    steps: int = STEPS,
    rate: float | None = None,
    processes: int = 2,
) -> None:
    """Variants of our objective with the weight, and unless told with the rate, that `search` found for it."""
    best, numbers = searched()["ours"], map(int, seeds.split(","))
    runs = [replace(best, objective=name, seed=seed) for seed in numbers for name in names.split(",")]
    run_all([at(run, steps, rate) for run in runs], processes)


@app.command()
def native(
    teacher_steps: int = 1280, seeds: str = "0", steps: int = STEPS, rate: float = 2e-3, processes: int = 2
) -> None:
    """KD from a teacher that has the student's tokenizer: everywhere, and where ours has targets alone.

    Its windows are longer, for as many bytes of context; its steps are those that make it as good as the profile's.
    """
    params = load_params()
    models, corpus = params.profile.models, Path("data/corpus")
    assert isinstance(models.student, TinyStudent)
    assert isinstance(models.teacher, TinyTeacher)
    if not NATIVE_TEACHER.exists():
        changes = {
            "tokenizer": models.student.tokenizer,
            "max_length": models.student.max_length,
            "steps": teacher_steps,
        }
        teacher = models.teacher.model_copy(update=changes)
        train_tiny_teacher(
            teacher, models.seed, corpus / "train.parquet", corpus / "validation.parquet", NATIVE_TEACHER
        )
    run = replace(searched()["ours"], steps=steps, learning_rate=rate)
    names = ("native_full", "native_aligned")
    run_all([replace(run, objective=name, seed=int(seed)) for seed in seeds.split(",") for name in names], processes)


@app.command()
def table() -> None:
    """Mean and spread over the seeds, gain over LM only, and share of the ceiling's gain, for equal steps and rates."""
    best = searched()
    compared: dict[tuple[str, int, float], dict[str, list[float]]] = {}
    for run, value in finished():
        if run.steps > SEARCH_STEPS and run.weight == weight_of(run.objective, best):
            of_kind = compared.setdefault((run.regime, run.steps, run.learning_rate), {})
            of_kind.setdefault(run.objective, []).append(value)
    for kind, values in compared.items():
        print_table(*kind, values, {name: weight_of(name, best) for name in values})


def at(run: Run, steps: int, rate: float | None) -> Run:
    return replace(run, steps=steps, learning_rate=rate or run.learning_rate)


def weight_of(objective: str, best: dict[str, Run]) -> float:
    """What its search chose; a variant of ours shares the weight of ours."""
    return best.get(objective, best["ours"]).weight


def print_table(
    regime: str, steps: int, rate: float, values: dict[str, list[float]], weights: dict[str, float]
) -> None:
    means = {name: statistics.mean(found) for name, found in values.items()}
    ceiling = means["same_lm"] - means["same_full"] if {"same_lm", "same_full"} <= means.keys() else math.nan
    print(f"\n{regime}, {steps} steps, learning rate {rate}\n")
    print("| objective | weight | seeds | bits per byte | spread | gain | share of the ceiling's gain |")
    print("|---|---|---|---|---|---|---|")
    for name, mean in means.items():
        gain = means.get("same_lm" if name.startswith("same") else "lm", math.nan) - mean
        spread = max(values[name]) - min(values[name])
        row = f"| {name} | {weights[name]} | {len(values[name])} | {mean:.4f} | {spread:.4f}"
        print(f"{row} | {gain:.4f} | {gain / ceiling:.2f} |")


def searched() -> dict[str, Run]:
    """Each objective with the rate and weight that were best in its search, to be run in all steps."""
    by_value = sorted((pair for pair in finished() if pair[0].steps == SEARCH_STEPS), key=lambda pair: -pair[1])
    return {run.objective: replace(run, steps=STEPS) for run, _ in by_value}


def finished() -> Iterator[tuple[Run, float]]:
    """Runs done so far and their validation bits per byte."""
    for line in RUNS.read_text().splitlines() if RUNS.exists() else []:
        regime, objective, seed, rate, weight, steps, value = line.split("\t")
        yield Run(regime, objective, int(seed), float(rate), float(weight), int(steps)), float(value)


def run_all(runs: list[Run], processes: int) -> None:
    done = {run for run, _ in finished()}
    todo = [run for run in runs if run not in done]
    with get_context("spawn").Pool(processes, maxtasksperchild=1) as pool, RUNS.open("a") as file:
        for run, value in pool.imap_unordered(execute, todo):
            print(f"{run} {value:.4f}", flush=True)
            print(*astuple(run), value, sep="\t", file=file, flush=True)


if __name__ == "__main__":
    app()
