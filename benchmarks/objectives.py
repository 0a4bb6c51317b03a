"""Which objective distils best across tokenizers? (docs/log.md)

Same teacher, same shards, same initial student, same steps and the same search of learning rate and weight for every
objective. Two regimes: all of the training text, and a quarter of it repeated. The ceiling is full-vocabulary KD into
a student that shares the teacher's tokenizer, its gain counted from its own LM-only run. After `dvc repro` with
profile tiny, from the project's folder:

    python benchmarks/objectives.py prepare            # windows, shards and students under .work/benchmarks
    python benchmarks/objectives.py search             # quarter, seed 0, every learning rate and weight
    python benchmarks/objectives.py compare            # both regimes, three seeds, each objective's best pair
    python benchmarks/objectives.py table

Every finished run is a line of .work/benchmarks/runs.tsv; an interrupted command continues there.
"""

import math
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import typer
from rivals import all_chunks, full_vocabulary_kl, shared_strings, sorted_l1
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.alignment.corpus_windows import write_windows
from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.config import TinyStudent, TinyTeacher, Train, load_params
from moe_distill.losses.chunk import chunk_kl
from moe_distill.losses.kd import forward_kl
from moe_distill.losses.lm import lm_nll
from moe_distill.losses.target import NextTokens, sparse_target
from moe_distill.losses.vocabulary import VocabularyMap, continuation_map
from moe_distill.models.tiny_student import make_tiny_student
from moe_distill.pretrained import load_causal_lm, load_tokenizer
from moe_distill.runtime import seed_everything
from moe_distill.shards.windows import read_vocabulary_map
from moe_distill.teacher.run import run_teacher
from moe_distill.training.batch import Batch
from moe_distill.training.continuations import count_continuations
from moe_distill.training.data import TEXT_ALONE, Split, open_split, read_batch
from moe_distill.training.optimizer import make_optimizer, set_learning_rate
from moe_distill.training.order import batches_from
from moe_distill.training.schedule import learning_rate_fraction

HOME = Path(".work/benchmarks")
RUNS = HOME / "runs.tsv"
REGIMES = {"whole": 1.0, "quarter": 0.25}
OTHER_TOKENIZER = ("lm", "ours", "shared_strings", "uld", "alm_1", "alm_100")
SAME_TOKENIZER = ("same_lm", "same_full")
WEIGHTS, SEEDS, SEARCH_STEPS = (0.5, 0.9), (0, 1, 2), 200
CPU = torch.device("cpu")
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Run:
    regime: str
    objective: str
    seed: int
    learning_rate: float
    weight: float  # of distillation at the positions it covers; LM keeps the rest there
    steps: int


@dataclass(frozen=True)
class World:
    """What a run trains on."""

    train: Split
    validation: Split
    student: PreTrainedModel
    teacher: PreTrainedModel | None  # for the ceiling alone
    vocabulary_map: VocabularyMap
    rule_ids: Tensor  # the map's rule alone, by teacher id
    is_exact: Tensor  # bool by teacher id


@app.command()
def prepare() -> None:
    """Write windows and shards of both regimes, and a student with the teacher's tokenizer."""
    params = load_params()
    models = params.profile.models
    assert isinstance(models.student, TinyStudent)
    assert isinstance(models.teacher, TinyTeacher)
    same = models.student.model_copy(update={"tokenizer": models.teacher.tokenizer})
    corpus, teacher = Path("data/corpus"), Path("models/teacher")
    shutil.rmtree(HOME, ignore_errors=True)
    make_tiny_student(same, models.seed, corpus / "train.parquet", HOME / "student_same")
    capture = params.profile.teacher.model_copy(update={"hidden_fraction": 0.0})
    for regime, fraction in REGIMES.items():
        windows = params.profile.windows.model_copy(update={"train_fraction": fraction})
        write_windows(windows, corpus, teacher, Path("models/student_init"), HOME / regime / "windows")
        write_windows(windows, corpus, teacher, HOME / "student_same", HOME / regime / "windows_same")
        run_teacher(capture, HOME / regime / "windows/teacher", teacher, HOME / regime)


@app.command()
def search(rates: str = "2e-3,4e-3", processes: int = 2) -> None:
    """Every learning rate and weight, on a quarter of the text with seed 0, in half the steps."""
    runs = []
    for objective in OTHER_TOKENIZER + SAME_TOKENIZER:
        weights = (0.0,) if objective.endswith("lm") else WEIGHTS
        pairs = [(float(rate), weight) for rate in rates.split(",") for weight in weights]
        runs += [Run("quarter", objective, 0, rate, weight, SEARCH_STEPS) for rate, weight in pairs]
    run_all(runs, processes)


@app.command()
def compare(regimes: str = "quarter,whole", steps: int = 400, processes: int = 2) -> None:
    """Every objective with the best of its search, three seeds."""
    searched = [pair for pair in finished() if pair[0].steps == SEARCH_STEPS]
    best = {run.objective: run for run, _ in sorted(searched, key=lambda pair: -pair[1])}
    runs = [
        Run(regime, run.objective, seed, run.learning_rate, run.weight, steps)
        for regime in regimes.split(",")
        for seed in SEEDS
        for run in best.values()
    ]
    run_all(runs, processes)


@app.command()
def table() -> None:
    """Mean and spread over the seeds, gain over LM only, and share of the ceiling's gain."""
    for regime in REGIMES:
        values: dict[tuple[str, float, float], list[float]] = {}
        for run, value in finished():
            if run.regime == regime and run.steps != SEARCH_STEPS:
                values.setdefault((run.objective, run.learning_rate, run.weight), []).append(value)
        means = {name: statistics.mean(found) for (name, *_), found in values.items() if len(found) == len(SEEDS)}
        print(f"\n| {regime} | rate | weight | bits per byte | spread | gain | share of the ceiling's gain |")
        print("|---|---|---|---|---|---|---|")
        for (name, rate, weight), found in values.items():
            if len(found) < len(SEEDS):
                continue
            gain = means["same_lm" if name.startswith("same") else "lm"] - means[name]
            share = gain / (means["same_lm"] - means["same_full"])
            spread = max(found) - min(found)
            print(f"| {name} | {rate} | {weight} | {means[name]:.4f} | {spread:.4f} | {gain:.4f} | {share:.2f} |")


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
            fields = (run.regime, run.objective, run.seed, run.learning_rate, run.weight, run.steps, value)
            print(*fields, sep="\t", file=file, flush=True)


def execute(run: Run) -> tuple[Run, float]:
    """Train one student and measure it."""
    torch.set_num_threads(1)
    seed_everything(run.seed)
    world = load_world(run)
    profile = load_params().profile.train
    train = profile.model_copy(update={"max_steps": run.steps, "learning_rate": run.learning_rate})
    optimizer = make_optimizer(world.student, None, train)
    batches = batches_from(world.train.windows.token_counts, train.batch_windows, run.seed, 0)
    for step in range(run.steps):
        set_learning_rate(optimizer, learning_rate_fraction(step, train))
        take_step(run, world, next(batches), optimizer, train)
    return run, bits_per_byte(world)


def load_world(run: Run) -> World:
    folder, same = HOME / run.regime, run.objective.startswith("same")
    windows = folder / ("windows_same" if same else "windows") / "student"
    student_folder = HOME / "student_same" if same else Path("models/student_init")
    student = load_causal_lm(student_folder, torch.float32, CPU)
    by_bytes = token_bytes(load_tokenizer(student_folder), "student").by_bytes()
    table = token_bytes(load_tokenizer(Path("models/teacher")), "teacher").table
    train = open_split(windows / "train", None if run.objective == "lm" or same else folder / "shards/train")
    rule_ids = read_vocabulary_map(windows / "vocabulary_map")
    return World(
        train=train,
        validation=open_split(windows / "validation", None),
        student=student,
        teacher=load_causal_lm(Path("models/teacher"), torch.float32, CPU) if run.objective == "same_full" else None,
        vocabulary_map=continuation_map(rule_ids, count_continuations(train.windows)),
        rule_ids=rule_ids,
        is_exact=torch.tensor([token is not None and token in by_bytes for token in table]),
    )


def take_step(run: Run, world: World, numbers: list[int], optimizer: torch.optim.Optimizer, train: Train) -> None:
    batch = read_batch(world.train, numbers, TEXT_ALONE)
    logits_NV = student_logits(world.student, batch)
    nll_N = lm_nll(logits_NV, batch.labels_N)
    covered_N, distillation = objective_of(run, world, numbers, batch, logits_NV, nll_N)
    loss = ((1.0 - run.weight * covered_N) * nll_N).sum() + run.weight * distillation
    optimizer.zero_grad()
    (loss / len(nll_N)).backward()
    torch.nn.utils.clip_grad_norm_(world.student.parameters(), train.gradient_clip)
    optimizer.step()


def objective_of(
    run: Run, world: World, numbers: list[int], batch: Batch, logits_NV: Tensor, nll_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Which positions distillation covers (0 or 1, [N]), and its loss summed over them."""
    if run.objective.endswith("lm"):
        return torch.zeros_like(nll_N), torch.zeros(())
    if world.teacher is not None:
        with torch.no_grad():
            teacher_NV = world.teacher(batch.input_ids_BL, use_cache=False).logits.flatten(0, 1)[batch.places_N]
            teacher_NV = teacher_NV[:, : logits_NV.shape[1]]  # rows beyond the tokenizer's ids have no token
        return torch.ones_like(nll_N), full_vocabulary_kl(logits_NV, teacher_NV).sum()
    if run.objective.startswith("alm"):
        return alm(world, numbers, nll_N, float(run.objective.removeprefix("alm_")))
    assert batch.rows is not None
    logits_AV = logits_NV[batch.aligned_A]
    if run.objective == "ours":
        text = NextTokens(batch.next_teacher_ids_A, batch.labels_N[batch.aligned_A])
        target = sparse_target(batch.rows, world.vocabulary_map, 1.0, "temper_then_map", "sampled", text)
        loss_A = forward_kl(logits_AV, target, 1.0)
    elif run.objective == "shared_strings":
        loss_A = shared_strings(logits_AV, batch.rows, world.rule_ids, world.is_exact)
    else:
        loss_A = sorted_l1(logits_AV, batch.rows)
    return torch.zeros_like(nll_N).index_fill(0, batch.aligned_A, 1.0), loss_A.sum()


def alm(world: World, numbers: list[int], nll_N: Tensor, chunk_temperature: float) -> tuple[Tensor, Tensor]:
    targets = world.train.targets
    assert targets is not None
    rows = [world.train.windows.tokens("teacher_rows", number) for number in numbers]
    logprobs = [targets.slice("target_logprob", int(each[each >= 0][0]), int(each.max()) + 1) for each in rows]
    chunk_of_N, teacher_J = all_chunks(rows, logprobs)
    inside = chunk_of_N >= 0
    student_J = torch.zeros_like(teacher_J).index_add(0, chunk_of_N[inside], -nll_N[inside])
    return inside.float(), chunk_kl(student_J, teacher_J, chunk_temperature).sum()


def student_logits(student: PreTrainedModel, batch: Batch) -> Tensor:
    hidden_BLD = student.get_decoder()(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
    return hidden_BLD.flatten(0, 1)[batch.places_N] @ student.get_output_embeddings().weight.T


@torch.inference_mode()
def bits_per_byte(world: World) -> float:
    """Of all validation windows."""
    world.student.eval()
    nll, n_bytes = 0.0, 0
    for numbers in torch.arange(len(world.validation.windows)).split(32):
        batch = read_batch(world.validation, numbers.tolist(), TEXT_ALONE)
        nll += float(lm_nll(student_logits(world.student, batch), batch.labels_N).double().sum())
        n_bytes += batch.n_bytes
    return nll / math.log(2) / n_bytes


if __name__ == "__main__":
    app()
