"""What a training step costs: KD and phase 2 against LM alone, LM alone against a bare transformers step.

    python benchmarks/row_step_cost.py tiny phase2      # shows where a step of this kind spends its time

Random models and random text of the sizes of the tiny and of the real pair. Batches are made before anything is timed:
making targets is the loader's work, once an epoch at most. On a GPU: benchmarks/gpu_check.py.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import typer
from bench_row import Row, Size, at_most
from random_pair import REAL, TINY, TOY, make_student, make_teacher, params_of, random_batch, replay_head
from step_kinds import CPU, Case, make_step, time_steps

from moe_distill.training.student import layer_pairs, make_heads
from moe_distill.utils.device import seed_everything

TARGETS = {("kd", "lm"): 1.05, ("phase2", "lm"): 1.15, ("lm", "bare"): 1.03}
NAMES = {"bare": "bare transformers step", "lm": "LM step", "kd": "KD step", "phase2": "step of phase 2"}
SHAPES = {  # pair, windows of a step, positions of a window
    "toy": (TOY, 2, 80),
    "tiny": (TINY, 16, 160),
    "real": (REAL, 1, 384),
}


def rows(size: Size) -> Iterator[Row]:
    """Three ratios for each of the shapes."""
    rounds = {"toy": 1} if size is Size.SMALLEST else {"tiny": size.pick(0, 16, 48), "real": size.pick(0, 3, 12)}
    for shapes, n_rounds in rounds.items():
        times = time_steps(random_case(shapes), n_rounds)
        for (upper, lower), target in TARGETS.items():
            yield Row(
                f"{NAMES[upper]} over {NAMES[lower]}, {shapes} shapes",
                ours=f"{times.median(upper, 'cpu'):.3f} s",
                reference=f"{times.median(lower, 'cpu'):.3f} s",
                ratio=times.ratio(upper, lower, "cpu"),
                target=at_most(target),
            )


def random_case(shapes: str) -> Case:
    """Two steps of one micro-batch each; of the teacher just the layer that is replayed."""
    seed_everything(0)
    pair, windows, length = SHAPES[shapes]
    params, generator = params_of(pair), torch.Generator().manual_seed(0)
    teacher = make_teacher(replace(pair, teacher=replace(pair.teacher, layers=1)), torch.float32, CPU.device)
    pairs = layer_pairs(params.profile.teacher.hidden_layers, pair.teacher.layers, pair.student.layers)
    return Case(
        model=make_student(pair, CPU.device),
        heads=make_heads(pairs, pair.student.hidden, pair.teacher.hidden, pair.experts, seed=0),
        teacher_head=replay_head(teacher),
        steps=[[random_batch(pair, windows, length, generator)] for _ in range(2)],
        params=params,
        runtime=CPU,
    )


def show_profile(shapes: str, kind: str) -> None:
    """Where three steps spend their time."""
    step = make_step(random_case(shapes), kind)
    step(0)
    with torch.profiler.profile() as profiler:
        for number in range(3):
            step(number)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    typer.run(show_profile)
