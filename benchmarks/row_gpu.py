"""Speeds on one GPU at the real pair's sizes, beside a published speed of distillation with the teacher in the loop.

What is and is not comparable: theirs is a student of 1 B and a teacher of 4 B, asked in every step, on GPUs of another
kind and with tokens of another tokenizer; ours is the pair of profiles/p100.yaml, teacher of 1 B (0.6 B a token) and
student of 135 M, and its training asks no teacher. So the ratio says what a GPU does in an hour, not whose code is the
faster one.
"""

from collections.abc import Iterator

import torch
from bench_row import Row, Size, missing
from gpu_check import FULL, SMALL, figures
from interleaved import spread
from random_pair import REAL, TOY

from moe_distill.utils.device import Runtime, resolve_precision

PUBLISHED = 3000.0  # tokens a second and GPU
NOTE = "the reference: X-Token in NeMo RL, published: 1B student, 4B teacher, online; another pair on other GPUs"
CAPTURE = "capture: positions a second"
SPEEDS = {
    "teacher's pass, positions a second": CAPTURE,
    "kd step, tokens a second": "phase 1: tokens a second and GPU",
    "phase2 step, tokens a second": "phase 2: tokens a second and GPU",
}


def rows(size: Size) -> Iterator[Row]:
    """A line for each kind of work; the smallest size runs on any device."""
    if size is not Size.SMALLEST and not torch.cuda.is_available():
        for what in SPEEDS.values():
            yield missing(what, "there is no GPU here")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    capability = torch.cuda.get_device_capability() if device.type == "cuda" else None
    runtime = Runtime(device, resolve_precision("auto", capability))
    pair, amount = (TOY, SMALL) if size is Size.SMALLEST else (REAL, FULL)
    for figure in figures(pair, runtime, amount):
        if figure.what in SPEEDS:
            yield row(SPEEDS[figure.what], figure.value, runtime.describe())


def row(what: str, value: float, where: str) -> Row:
    """The capture is of another kind than the published figure, which is of training."""
    if what == CAPTURE:
        return Row(f"{what} ({where})", ours=f"{value:,.0f}")
    ratio = spread([value / PUBLISHED])
    return Row(f"{what} ({where})", ours=f"{value:,.0f}", reference=f"{PUBLISHED:,.0f}", ratio=ratio, note=NOTE)
