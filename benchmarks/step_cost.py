"""What a training step costs: KD and phase 2 against LM alone, LM alone against a bare transformers step.

    python benchmarks/step_cost.py                     # both shapes; the tiny one needs a finished `dvc repro teacher`
    python benchmarks/step_cost.py --only tiny --profile kd
    python benchmarks/step_cost.py --json step_cost.json

Batches are read before anything is timed: making targets is the loader's work, once an epoch at most. CPU time is that
of this process, all threads. On a GPU: benchmarks/gpu_check.py.

Tiny: the profile's own windows, shards and student. Real: random models of the real pair's sizes, windows of 384.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from random_pair import REAL, make_student, make_teacher, params_of, random_batch, replay_head
from step_kinds import CPU, Case, make_step, measure

from moe_distill.batches.batch_order import epoch_batches
from moe_distill.batches.loader import BatchReader, requests
from moe_distill.batches.split import count_experts, open_split
from moe_distill.config.params import Params, load_params
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.replay.block import load_teacher_head
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from moe_distill.training.student import layer_pairs, make_heads
from moe_distill.utils.device import seed_everything

LENGTH = 384


def tiny_case(params: Params, n_steps: int) -> Case:
    """The profile's own data, phase 2 with every term at its full weight."""
    train = params.profile.train
    split = open_split(Path("data/windows/student/train"), Path("data/teacher_shards/train"))
    assert split.shards is not None
    vocabulary_map = load_vocabulary_map(Path("data/windows/student/vocabulary_map"), split.windows)
    experiment = params.experiment
    settings = TargetSettings(experiment.temperature, experiment.kd_order, experiment.kd_tail)
    targets = WindowTargets(split.windows, split.shards, vocabulary_map, settings)
    reader = BatchReader(split, targets, with_states=True, chunk_tokens=train.chunk_tokens)
    order = epoch_batches(split.windows.token_counts, train.batch_windows, experiment.seed, epoch=0)[:n_steps]
    steps = [[reader.read(each) for each in requests(windows, train.micro_batch_windows)] for windows in order]
    model = load_causal_lm(Path("models/student_init"), torch.float32, CPU.device)
    shards = split.shards.index
    layers, depth = shards.metadata["hidden_layers"], shards.metadata["layers"]
    assert isinstance(layers, list)
    assert isinstance(depth, int)
    pairs = layer_pairs(layers, depth, model.config.num_hidden_layers)
    size, experts = shards.fields["hidden"].shape[-1], count_experts(split.shards)
    return Case(
        model=model,
        heads=make_heads(pairs, model.config.hidden_size, size, experts, seed=0),
        teacher_head=load_teacher_head(Path("models/teacher_head"), CPU.device),
        steps=steps,
        params=params,
        runtime=CPU,
    )


def real_case(batch_windows: int, n_steps: int) -> Case:
    """Random weights and random text at the sizes of the real pair; of the teacher just the layer that is replayed."""
    params, device = params_of(REAL), CPU.device
    generator = torch.Generator().manual_seed(0)
    teacher = make_teacher(replace(REAL, teacher=replace(REAL.teacher, layers=1)), torch.float32, device)
    pairs = layer_pairs(params.profile.teacher.hidden_layers, REAL.teacher.layers, REAL.student.layers)
    return Case(
        model=make_student(REAL, device),
        heads=make_heads(pairs, REAL.student.hidden, REAL.teacher.hidden, REAL.experts, seed=0),
        teacher_head=replay_head(teacher),
        steps=[[random_batch(REAL, batch_windows, LENGTH, generator)] for _ in range(n_steps)],
        params=params,
        runtime=CPU,
    )


def main(
    rounds: int = 12,
    only: str = "tiny,real",
    real_windows: Annotated[int, typer.Option(help="windows of a real step")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json")] = None,
    profile: Annotated[str, typer.Option(help="show where a step of this kind spends its time, instead")] = "",
) -> None:
    """Print the ratios; with --json, write those of CPU time as {"tiny": {...}, "real": {...}}."""
    seed_everything(0)
    params = load_params()
    results = {}
    for name in only.split(","):
        case = tiny_case(params, rounds) if name == "tiny" else real_case(real_windows, n_steps=2)
        if profile:
            show_profile(case, profile)
            continue
        found = measure(case, rounds)
        results[name] = {ratio: value for ratio, value in found["cpu"].items() if "_over_" in ratio}
        for clock, values in found.items():
            print(f"{name} {clock}: " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()), flush=True)
    if json_path is not None and results:
        json_path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def show_profile(case: Case, kind: str) -> None:
    step = make_step(case, kind)
    step(0)
    with torch.profiler.profile() as profiler:
        for number in range(3):
            step(number)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    typer.run(main)
