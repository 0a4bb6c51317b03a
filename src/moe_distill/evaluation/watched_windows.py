"""The teacher on the windows that a training watches, so that it can be drawn beside the training's curves.

These are some of the validation windows (`train.validation_windows`); metrics/evaluate.json is of all of them.
"""

from pathlib import Path

import torch

from moe_distill.batches.batch_order import spread_windows
from moe_distill.evaluation.metrics import bits_per_byte
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore


def watched_metrics(windows: Path, targets: Path, validation_windows: int) -> dict[str, float]:
    """How many windows the curves are of, how many there are, and the teacher's bits per byte on the former.

    A teacher token belongs to the student window that its first byte lies in. Where a window had to be cut inside a
    token of the teacher, that token goes whole to the window that it begins in, with all its bytes.

    Args:
        windows: data/windows.
        targets: data/teacher_shards.
        validation_windows: that a training watches.
    """
    student = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    teacher = WindowStore(windows / "teacher/validation", TEACHER_WINDOWS)
    logprobs = torch.cat(list(open_targets(targets / "validation").columns("target_logprob"))).double()
    ids = torch.cat(list(teacher.reader.columns("token_ids"))).long()
    documents, starts, ends = (
        torch.cat(list(teacher.reader.columns(name))).long() for name in ("documents", "byte_starts", "byte_ends")
    )
    of_student = [
        torch.cat(list(student.reader.columns(name))).long() for name in ("documents", "byte_starts", "byte_ends")
    ]
    watched = spread_windows(len(student), validation_windows)
    nll, n_bytes = 0.0, 0
    for number in watched:
        document, start, stop = (int(column[number]) for column in of_student)
        for window in ((documents == document) & (starts < stop) & (ends > start)).nonzero().flatten().tolist():
            span = teacher.span(window)
            lengths = teacher.token_bytes[ids[span.start : span.stop]]
            places = lengths.cumsum(0) - lengths + starts[window]
            inside = (places >= start) & (places < stop)
            nll -= float(logprobs[span.start : span.stop][inside].sum())
            n_bytes += int(lengths[inside].sum())
    return {
        "watched_windows": float(len(watched)),
        "validation_windows": float(len(student)),
        "teacher_watched_bits_per_byte": bits_per_byte(nll, n_bytes),
    }
