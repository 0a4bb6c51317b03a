"""The teacher on the windows of the curves, against one token at a time."""

import math
from pathlib import Path

import pytest
import torch

from moe_distill.evaluation.teacher_lead import measure_lead
from moe_distill.evaluation.watched_windows import watched_metrics
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from tests.chain import Chain


def slow(windows: Path, targets: Path, numbers: list[int]) -> tuple[float, int]:
    """Bits per byte and bytes, of the teacher's tokens that begin inside one of the student's windows."""
    student = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    teacher = WindowStore(windows / "teacher/validation", TEACHER_WINDOWS)
    places = {
        store: [torch.cat(list(store.reader.columns(name))).tolist() for name in ("documents", "byte_starts")]
        for store in (student, teacher)
    }
    spans = [(document, start) for document, start in zip(*places[student], strict=True)]
    wanted = [(*spans[number], spans[number][1] + int(student.byte_counts[number])) for number in numbers]
    logprobs = torch.cat(list(open_targets(targets / "validation").columns("target_logprob"))).tolist()
    nll, n_bytes, row = 0.0, 0, 0
    for window, (document, place) in enumerate(zip(*places[teacher], strict=True)):
        for token in teacher.tokens("token_ids", window).tolist():
            if any(document == each and start <= place < stop for each, start, stop in wanted):
                nll -= logprobs[row]
                n_bytes += int(teacher.token_bytes[token])
            place += int(teacher.token_bytes[token])
            row += 1
    return nll / math.log(2) / n_bytes, n_bytes


@pytest.mark.parametrize("count", [1, 3])
def test_the_teachers_line_is_of_the_windows_of_the_curves(chain: Chain, count: int) -> None:
    windows = chain.folder / "data/windows"
    student = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    numbers = [number * len(student) // count for number in range(count)]
    expected, n_bytes = slow(windows, chain.targets, numbers)
    found = watched_metrics(windows, chain.targets, count)
    assert found["teacher_watched_bits_per_byte"] == pytest.approx(expected)
    assert (found["watched_windows"], found["validation_windows"]) == (count, len(student))
    assert n_bytes == int(student.byte_counts[numbers].sum()), "no window is cut inside a token of the teacher here"


def test_of_all_windows_it_is_the_figure_of_the_evaluation(chain: Chain) -> None:
    windows = chain.folder / "data/windows"
    lead = measure_lead(windows, chain.targets, chain.folder / "models/student_init", 8, torch.device("cpu"))
    found = watched_metrics(windows, chain.targets, 10**6)
    assert found["teacher_watched_bits_per_byte"] == pytest.approx(lead["teacher_bits_per_byte"])
    assert found["watched_windows"] == found["validation_windows"]
