"""The teacher's pass, with all that is kept of it written to disk, against its bare forward pass.

Random weights of the real teacher's sizes, vocabulary 151,936, over windows of 383 tokens: the whole depth, or a
quarter of it, where the output matrix weighs more and the pass looks worse.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_row import Row, Size, at_least
from interleaved import CPU, interleave
from random_pair import REAL, TOY, make_teacher, params_of
from random_run import RandomRun, capture_split, write_windows
from transformers import PreTrainedModel

from moe_distill.shards.window_store import model_inputs
from moe_distill.teacher.architecture import find_architecture
from moe_distill.utils.device import seed_everything

QUARTER = replace(REAL, teacher=replace(REAL.teacher, layers=7), student=replace(REAL.student, layers=7))


def rows(size: Size) -> Iterator[Row]:
    """One ratio of speeds."""
    seed_everything(0)
    pair = {Size.SMALLEST: TOY, Size.SHORT: QUARTER, Size.FULL: REAL}[size]
    windows = size.pick(2, 2, 4)
    teacher = make_teacher(pair, torch.float32, CPU)
    with TemporaryDirectory() as folder:
        run = RandomRun(Path(folder), pair)
        write_windows(run, "train", windows, torch.Generator().manual_seed(0))
        positions = int(run.windows("train").token_counts.sum())
        times = interleave(passes(run, teacher, CPU), size.pick(1, 3, 5))
    yield Row(
        f"teacher's pass against its bare forward pass, speed ({pair.teacher.layers} layers, vocabulary"
        f" {pair.teacher.vocabulary:,}, fp32)",
        ours=f"{positions / times.median('captured', 'cpu'):,.0f} positions/s",
        reference=f"{positions / times.median('bare', 'cpu'):,.0f} positions/s",
        ratio=times.ratio("bare", "captured", "cpu"),
        target=at_least(0.9),
    )


def passes(run: RandomRun, teacher: PreTrainedModel, device: torch.device) -> dict[str, Callable[[], None]]:
    """Both ways over the training windows: `captured`, as its stage goes, and `bare`."""
    windows, capture = run.windows("train"), params_of(run.pair).profile.teacher
    starts = range(0, len(windows), capture.batch_windows)
    numbers = [range(start, min(start + capture.batch_windows, len(windows))) for start in starts]
    inputs = [model_inputs(windows, each)[0].to(device) for each in numbers]
    architecture = find_architecture(teacher)

    @torch.inference_mode()
    def bare() -> None:
        for ids_BL in inputs:
            teacher(input_ids=ids_BL, use_cache=False)

    def captured() -> None:
        capture_split(run, teacher, architecture, "train", run.root / f"again_{time.monotonic_ns()}")

    return {"bare": bare, "captured": captured}
