"""The teacher's pass, with all that is kept of it written to disk, against its bare forward pass.

Random weights of the real teacher's sizes, vocabulary 151,936, over windows of 383 tokens: the whole depth, or a
quarter of it, where the output matrix weighs more and the pass looks worse.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_row import Row, Size, at_least
from interleaved import CPU, interleave
from random_pair import QUARTER, REAL, TOY, make_teacher
from random_run import RandomRun, passes, write_windows

from moe_distill.utils.device import seed_everything


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
