"""The ratios that a GPU must show at the real pair's sizes: a table, and with --json the same as a file.

    python benchmarks/gpu_check.py --json gpu_check.json          # on a GPU; about 10 minutes on the slowest
    python benchmarks/gpu_check.py --toy                          # the same code on small models, also on a CPU

Random weights and random text: no network and no files. Values and memory have tests of their own (`make test-gpu`).
A figure that misses its target is said to; the exit code is 0 all the same, since a ratio depends on the card.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from device_measures import busy_share, peak_memory
from interleaved import clocks, interleave
from random_pair import REAL, TOY, Pair, make_student, make_teacher, params_of, random_batch, replay_head
from random_run import RandomRun, make_run, passes
from step_kinds import KINDS, Case, make_step, on_device, time_steps
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.batches.batch_order import batches_from
from moe_distill.batches.loader import BatchReader, LoaderSettings, load_batches, requests
from moe_distill.batches.split import open_split
from moe_distill.config.values import Precision
from moe_distill.losses.output_head import OutputHead
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import WindowTargets, target_settings
from moe_distill.teacher.architecture import Architecture, find_architecture
from moe_distill.teacher.forward import forward
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.objective import Student
from moe_distill.training.schedule import LM_ONLY
from moe_distill.training.step import optimizer_step
from moe_distill.training.student import layer_pairs, make_heads
from moe_distill.training.trainer import make_trainer
from moe_distill.utils.device import Runtime, resolve_precision, seed_everything
from moe_distill.utils.tensors import to_device

PEAK_BYTES = 12e9


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    target: float | None  # None: nothing is asked
    at_most: bool = False  # else the target is the least

    @property
    def holds(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    rounds: int  # of each kind of step
    micro_batches: int  # of a step
    windows: int  # that the teacher reads
    loader_steps: int  # that the profiler watches


FULL, SMALL = Amount(6, 8, 64, 5), Amount(1, 2, 16, 1)


def figures(pair: Pair, runtime: Runtime, amount: Amount) -> Iterator[Figure]:
    """Yield each figure as it is measured."""
    seed_everything(0)
    teacher = make_teacher(pair, runtime.dtype, runtime.device)
    with TemporaryDirectory() as folder:
        run = make_run(Path(folder), pair, teacher, {"train": amount.windows, "validation": 4})
        yield from teacher_figures(run, teacher, runtime)
        case = make_case(pair, teacher, runtime, amount.micro_batches)
        in_loop = online_seconds(case, teacher, pair)
        del teacher
        yield from step_figures(case, in_loop, amount.rounds)
        busy = training_busy_share(run, runtime, amount.loader_steps)
        yield Figure("share of the time in which the device is busy, KD", busy, 0.95)


def make_case(pair: Pair, teacher: PreTrainedModel, runtime: Runtime, micro_batches: int) -> Case:
    """A step of the profile's micro-batches of the longest windows."""
    params, device = params_of(pair), runtime.device
    train, length = params.profile.train, params.profile.windows.student_max_length - 1
    generator = torch.Generator().manual_seed(0)
    batches = [random_batch(pair, train.micro_batch_windows, length, generator) for _ in range(2)]
    pairs = layer_pairs(params.profile.teacher.hidden_layers, pair.teacher.layers, pair.student.layers)
    heads = make_heads(pairs, pair.student.hidden, pair.teacher.hidden, pair.experts, seed=0)
    return Case(
        model=make_student(pair, device),
        heads=heads.to(device),
        teacher_head=replay_head(teacher),
        steps=on_device([[batches[number % 2] for number in range(micro_batches)]], device),
        params=params,
        runtime=runtime,
    )


def teacher_figures(run: RandomRun, teacher: PreTrainedModel, runtime: Runtime) -> Iterator[Figure]:
    """The capture of a split, shards written, against the model's own forward pass over the same windows."""
    positions = int(run.windows("train").token_counts.sum())
    with peak_memory(runtime.device) as peak:
        times = interleave(passes(run, teacher, runtime.device), 3, runtime.device)
    ratio = times.ratio("bare", "captured", "wall").median
    yield Figure("teacher's pass against its bare forward pass, speed", ratio, 0.9)
    yield Figure("teacher's pass, positions a second", positions / times.median("captured", "wall"), None)
    yield Figure("bare forward pass, positions a second", positions / times.median("bare", "wall"), None)
    yield from peak_figures("teacher's pass", peak)


def online_seconds(case: Case, teacher: PreTrainedModel, pair: Pair) -> float:
    """Seconds in which the teacher makes what a step of training reads from the cache, median of three.

    Without the way from its distribution to the student's vocabulary, which would come on top.
    """
    architecture, capture = find_architecture(teacher), case.params.profile.teacher
    head = architecture.decoder.head.to_dtype(torch.float32)
    ids = [batch.input_ids_BL % pair.teacher.vocabulary for batch in case.steps[0]]
    seconds = []
    for _ in range(4):
        began = clocks(case.runtime.device)[1]
        for ids_BL in ids:
            ask(teacher, architecture, head, ids_BL, capture.hidden_layers, capture.k, capture.tail_samples)
        seconds.append(clocks(case.runtime.device)[1] - began)
    return statistics.median(seconds[1:])


@torch.inference_mode()
def ask(
    teacher: PreTrainedModel,
    architecture: Architecture,
    head: OutputHead,
    ids_BL: Tensor,
    layers: list[int],
    k: int,
    tail_samples: int,
) -> None:
    """States and records of a micro-batch, as the cache keeps them."""
    states, _ = forward(teacher, architecture, ids_BL, layers)
    targets_N, final_NT = ids_BL.flatten(), states.final_BLT.flatten(0, 1)
    for some_NT, targets in zip(final_NT.split(1024), targets_N.split(1024), strict=True):
        uniforms_N = torch.full((len(targets),), 0.5, device=targets.device)
        sparsify(head.logits(some_NT), targets, k, tail_samples, uniforms_N)


def step_figures(case: Case, in_loop: float, rounds: int) -> Iterator[Figure]:
    """What steps cost beside each other, what they hold, and what the teacher would cost in the loop."""
    times = time_steps(case, rounds)

    def ratio(upper: str, lower: str) -> float:
        return times.ratio(upper, lower, "wall").median

    yield Figure("KD step against an LM step", ratio("kd", "lm"), 1.05, at_most=True)
    yield Figure("step of phase 2 against an LM step", ratio("phase2", "lm"), 1.15, at_most=True)
    yield Figure("LM step against a bare step of transformers", ratio("lm", "bare"), None)
    for name, kind in (("KD", "kd"), ("phase 2", "phase2")):
        cached = times.median(kind, "wall")
        yield Figure(f"{name} from the cache against the teacher in the loop, speed", (cached + in_loop) / cached, 2.5)
    tokens = sum(batch.counts.tokens for batch in case.steps[0])
    for kind in KINDS:
        yield Figure(f"{kind} step, tokens a second", tokens / times.median(kind, "wall"), None)
    for kind in ("lm", "kd", "phase2"):
        step = make_step(case, kind)
        with peak_memory(case.runtime.device) as peak:
            step(0)
        yield from peak_figures(f"{kind} step, beside the teacher's head", peak)


def training_busy_share(run: RandomRun, runtime: Runtime, steps: int) -> float:
    """Share of the time between two steps in which a kernel runs, batches being read and made by the loader."""
    params = params_of(run.pair)
    train, experiment = params.profile.train, params.experiment
    split = open_split(run.root / "windows/train", run.root / "targets/train")
    assert split.shards is not None
    settings = target_settings(experiment)
    vocabulary_map = load_vocabulary_map(run.root / "windows/vocabulary_map", split.windows)
    memory = train.target_memory_mb * 10**6 // max(1, train.loader_workers)
    targets = WindowTargets(split.windows, split.shards, vocabulary_map, settings, memory)
    reader = BatchReader(split, targets, with_states=False, chunk_tokens=train.chunk_tokens)
    order = batches_from(split.windows.token_counts, train.batch_windows, experiment.seed, 0)
    parts = train.batch_windows // train.micro_batch_windows
    warm = 2  # steps before the profiler looks
    wanted = (each for _ in range(warm + steps) for each in requests(next(order), train.micro_batch_windows))
    batches = load_batches(reader, wanted, LoaderSettings(train.loader_workers, runtime.device.type == "cuda"))
    student = Student(make_student(run.pair, runtime.device).train(), None, None)
    trainer, objective = make_trainer(student, train, runtime, 0), replace(LM_ONLY, kd_weight=0.9)

    def step() -> None:
        read = [to_device(next(batches), runtime.device) for _ in range(parts)]
        optimizer_step(student, read, objective, trainer.optimizer, trainer.scaler, runtime, train.gradient_clip)

    for _ in range(warm):
        step()

    def some_steps() -> None:
        for _ in range(steps):
            step()

    share = busy_share(some_steps, runtime.device)
    list(batches)  # its workers end
    return share


def peak_figures(what: str, peak: list[int]) -> list[Figure]:
    return [Figure(f"{what}: peak in GB", n_bytes / 1e9, PEAK_BYTES / 1e9, at_most=True) for n_bytes in peak]


def table(found: Sequence[Figure]) -> Iterator[str]:
    """Markdown."""
    yield "| what | value | asked | holds |"
    yield "|---|---|---|---|"
    for each in found:
        asked = "" if each.target is None else f"{'<=' if each.at_most else '>='} {each.target:g}"
        yield f"| {each.what} | {each.value:,.3f} | {asked} | {({None: '', True: 'yes', False: 'NO'})[each.holds]} |"


def main(
    toy: Annotated[bool, typer.Option("--toy", help="small models, for the code alone")] = False,
    precision: Annotated[Precision, typer.Option(help="fp16 or bf16; auto: as a training would choose")] = "auto",
    json_path: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not toy:
        raise typer.BadParameter("no GPU: --toy runs the same code on small models")
    capability = torch.cuda.get_device_capability() if device.type == "cuda" else None
    runtime = Runtime(device, resolve_precision(precision, capability))
    began, found = time.perf_counter(), []
    print(f"{runtime.describe()}, torch {torch.__version__}", flush=True)
    for figure in figures(TOY if toy else REAL, runtime, SMALL if toy else FULL):
        found.append(figure)
        print(f"{figure.what}: {figure.value:,.3f}", flush=True)
    print("\n".join(["", *table(found), "", f"{time.perf_counter() - began:.0f} s"]))
    if json_path is not None:
        content = {
            "device": runtime.describe(),
            "torch": torch.__version__,
            "figures": [asdict(each) | {"holds": each.holds} for each in found],
        }
        json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
