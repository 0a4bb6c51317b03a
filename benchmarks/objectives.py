"""Which objective distils best across tokenizers? (docs/log.md)

Same teacher, same shards, same initial student, same steps and the same search of weight and learning rate for every
objective; a variant of ours has the weight of ours, the native ceilings that of `native_full`. Two regimes: all of the
training text, and a quarter of it repeated. Two ceilings, both full-vocabulary KD: `same_full` into a student that
shares the teacher's tokenizer, its gain counted from its own LM-only run, and `native_full`, the fair one, into our
student from a teacher that has the student's tokenizer. After `dvc repro` with profile tiny, from the project's folder:

    python benchmarks/objectives.py prepare            # windows, shards and models under .work/benchmarks
    python benchmarks/objectives.py weights            # quarter, seed 0, all steps: every weight
    python benchmarks/objectives.py rates              # quarter, seed 0, all steps: every learning rate
    python benchmarks/objectives.py compare            # quarter, three seeds, each objective's best rate
    python benchmarks/objectives.py compare --regimes quarter,whole --steps 400 --rate 4e-3
    python benchmarks/objectives.py variants           # of ours: maps, temperature, order, inside teacher tokens
    python benchmarks/objectives.py variants --names native_mapped,native_masked  # see native.py
    python benchmarks/objectives.py table

Every finished run is a line of .work/benchmarks/runs.tsv, and its student lies under .work/benchmarks/students; an
interrupted command continues there. It does not know of which code a line is: `prepare` begins anew.
"""

import math
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import astuple
from multiprocessing import get_context
from pathlib import Path

import typer
from comparison_run import HOME, NATIVE_TEACHER, OURS, SAME_STUDENT, STUDENT, TEACHER, Run, execute
from native import NATIVE

from moe_distill.alignment.corpus_windows import write_windows
from moe_distill.config.model_keys import TinyStudent, TinyTeacher
from moe_distill.config.params import load_params
from moe_distill.models.tiny_student import make_tiny_student
from moe_distill.models.tiny_teacher import train_tiny_teacher
from moe_distill.teacher.run import run_teacher

RUNS = HOME / "runs.tsv"
REGIMES = {"whole": 1.0, "quarter": 0.25}
OBJECTIVES = ("lm", "ours", "shared_strings", "uld", "alm_1", "alm_100", "same_lm", "same_full", "native_full")
CEILINGS = ("same_lm", "same_full"), ("lm", "native_full")  # each and the LM alone that its gain is counted from
WEIGHTS, SEEDS = (0.5, 0.7, 0.9), (0, 1, 2)
STEPS, SEARCH_RATE = 800, 4e-3
NATIVE_STEPS = 1_280  # of the teacher with the student's tokenizer
RATES = "2e-3,4e-3,8e-3"
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
    # windows as long as the student's, for as many bytes of context; steps that make it as good as the profile's
    changes = {"tokenizer": models.student.tokenizer, "max_length": models.student.max_length, "steps": NATIVE_STEPS}
    texts = corpus / "train.parquet", corpus / "validation.parquet"
    train_tiny_teacher(models.teacher.model_copy(update=changes), models.seed, *texts, NATIVE_TEACHER)


@app.command()
def weights(objectives: str = ",".join(OBJECTIVES), processes: int = 2) -> None:
    """Every weight of distillation, over all steps."""
    asked = objectives.split(",")
    names = [(name, weight) for name in asked for weight in ((0.0,) if name.endswith("lm") else WEIGHTS)]
    run_all([Run("quarter", name, 0, SEARCH_RATE, weight, STEPS) for name, weight in names], processes)


@app.command()
def rates(
    objectives: str = ",".join(OBJECTIVES), steps: int = STEPS, candidates: str = RATES, processes: int = 2
) -> None:
    """Every learning rate, each objective with its best weight."""
    names = [(float(rate), name) for rate in candidates.split(",") for name in objectives.split(",")]
    run_all([Run("quarter", name, 0, rate, best_weight(name), steps) for rate, name in names], processes)


@app.command()
def compare(
    regimes: str = "quarter",
    objectives: str = ",".join(OBJECTIVES),
    steps: int = STEPS,
    rate: float | None = None,
    weight: float | None = None,
    processes: int = 2,
) -> None:
    """Three seeds of every objective at the best of its rates and weights, or at those that are told."""
    runs = [
        Run(regime, name, seed, rate or best_rate(name, steps), weight or best_weight(name), steps)
        for regime in regimes.split(",")
        for seed in SEEDS
        for name in objectives.split(",")
    ]
    run_all(runs, processes)


@app.command()
def variants(
    names: str = ",".join(OURS),
    seeds: str = "0,1,2",
    steps: int = STEPS,
    rate: float | None = None,
    weight: float | None = None,
    processes: int = 2,
) -> None:
    """Variants of our objective and ceilings with privileges taken away, each at its kind's weight and rate or told."""
    asked = [(name, int(seed)) for seed in seeds.split(",") for name in names.split(",")]
    runs = [
        Run("quarter", name, seed, rate or best_rate(name, steps), weight or best_weight(name), steps)
        for name, seed in asked
    ]
    run_all(runs, processes)


@app.command()
def table() -> None:
    """Mean and spread over the seeds at the best rate, gain over LM only, and its share of both ceilings' gains."""
    compared: dict[tuple[str, int], dict[str, list[float]]] = {}
    for run, value in finished():
        of_weights, of_rates = best_run(run.objective, STEPS), best_run(run.objective, run.steps)
        if of_weights is None or of_rates is None:
            continue
        if (run.weight, run.learning_rate) == (of_weights.weight, of_rates.learning_rate):
            of_kind = compared.setdefault((run.regime, run.steps), {})
            of_kind.setdefault(run.objective, []).append(value)
    for kind, values in compared.items():
        print_table(*kind, values)


def print_table(regime: str, steps: int, values: dict[str, list[float]]) -> None:
    means = {name: statistics.mean(found) for name, found in values.items()}
    of_same, of_native = (means.get(lm, math.nan) - means.get(full, math.nan) for lm, full in CEILINGS)
    print(f"\n{regime}, {steps} steps; shares of the gains of `same_full` and of `native_full`, the fair one\n")
    print("| objective | weight | rate | seeds | bits per byte | spread | gain | of `same_full` | of `native_full` |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, mean in means.items():
        gain = means.get("same_lm" if name.startswith("same") else "lm", math.nan) - mean
        spread = max(values[name]) - min(values[name])
        row = f"| {name} | {best_weight(name)} | {best_rate(name, steps)} | {len(values[name])} | {mean:.4f}"
        fair = "" if name.startswith("same") else f"{gain / of_native:.2f}"
        print(f"{row} | {spread:.4f} | {gain:.4f} | {gain / of_same:.2f} | {fair} |")


def kind_of(name: str) -> str:
    """The objective whose search a name shares: ours with its variants, `native_full` with the ceilings like it."""
    if name in OBJECTIVES:
        return name
    return "native_full" if name in NATIVE else "ours"


def best_weight(name: str) -> float:
    """What the search of weights found."""
    return searched(name, STEPS).weight


def best_rate(name: str, steps: int) -> float:
    """What the search of rates found."""
    return searched(name, steps).learning_rate


def searched(name: str, steps: int) -> Run:
    """`best_run`, where one is needed."""
    found = best_run(name, steps)
    if found is None:
        raise typer.BadParameter(f"no search has run {kind_of(name)} for {steps} steps: see `weights` and `rates`")
    return found


def best_run(name: str, steps: int) -> Run | None:
    """The best of its kind's search: on a quarter of the text, with seed 0; None: there was none."""
    asked = ("quarter", kind_of(name), 0, steps)
    found = [pair for pair in finished() if (pair[0].regime, pair[0].objective, pair[0].seed, pair[0].steps) == asked]
    return min(found, key=lambda pair: pair[1])[0] if found else None


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
