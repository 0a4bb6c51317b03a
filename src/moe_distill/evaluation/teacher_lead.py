"""Whether the teacher knows more of the validation text than the student that it is to teach.

Both figures are there before a training begins: the teacher's in its shards, the student's after a pass over the text.
They stand in metrics/teacher_lead.json.
"""

from pathlib import Path

import torch

from moe_distill.errors import DataError
from moe_distill.evaluation.measure import require_same_bytes, score
from moe_distill.evaluation.metrics import bits_per_byte
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.shards.provenance import check_same_windows, check_tokenizer
from moe_distill.shards.teacher_nll import teacher_nll
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore


def measure_lead(
    windows: Path, targets: Path, student: Path, batch_windows: int, device: torch.device
) -> dict[str, float]:
    """Bits per byte of teacher and student on the validation documents, and by how many the teacher is ahead.

    Args:
        windows: data/windows.
        targets: data/teacher_shards.
        student: as it is before training.

    Raises:
        DataError: windows, shards and student do not belong together.
    """
    store = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    shards = open_targets(targets / "validation")
    check_same_windows(store.reader, shards)
    check_tokenizer(store.reader, student)
    documents = torch.cat(list(store.reader.columns("documents"))).unique()
    of_teacher = WindowStore(windows / "teacher/validation", TEACHER_WINDOWS)
    of_shards = teacher_nll(of_teacher, shards, documents)
    untrained = score(load_causal_lm(student, torch.float32, device), store, batch_windows)
    require_same_bytes(untrained, of_shards)
    teacher = bits_per_byte(*of_shards)
    return {
        "teacher_bits_per_byte": teacher,
        "student_init_bits_per_byte": untrained.bits_per_byte,
        "lead_bits_per_byte": untrained.bits_per_byte - teacher,
    }


def told(lead: dict[str, float]) -> str:
    """Both figures of metrics/teacher_lead.json side by side."""
    teacher, student = lead["teacher_bits_per_byte"], lead["student_init_bits_per_byte"]
    return f"bits per byte of the validation text: teacher {teacher:.3f}, student before training {student:.3f}"


def is_ahead(lead: dict[str, float]) -> bool:
    """Whether the teacher knows more of the text than the student, by any margin."""
    return lead["lead_bits_per_byte"] > 0.0


def require_lead(lead: dict[str, float]) -> None:
    """Refuse to distil from a teacher that knows no more of the text than the student does.

    Raises:
        DataError: naming both figures and what helps.
    """
    if not is_ahead(lead):
        raise DataError(
            f"this teacher cannot teach this text: {told(lead)}",
            "it would pull the student away from what plain training makes of it",
            "longer windows (`windows.teacher_max_length`, `windows.student_max_length`), other text "
            "(`corpus.sources`) or a teacher tuned on it (`models.teacher_correction`) help; to go on all the same, "
            "set `teacher_must_lead: false` in params.yaml",
        )
