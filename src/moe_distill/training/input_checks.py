"""What training refuses before its first step: folders that do not belong together."""

from pathlib import Path

from moe_distill.batches.split import Split
from moe_distill.config.profile import Capture
from moe_distill.errors import DataError
from moe_distill.replay.head import read_description
from moe_distill.shards.provenance import check_capture, check_same_teacher, check_tokenizer, check_vocabulary_map
from moe_distill.shards.vocabulary_store import open_vocabulary_map


def check_inputs(splits: list[Split], capture: Capture, student: Path, vocabulary_map: Path, head: Path | None) -> None:
    """Refuse windows of another tokenizer, shards of other parameters, a map or head of another teacher.

    Args:
        splits: training and validation split.
        capture: the profile's section `teacher`.
        student: the model to begin with.
        head: models/teacher_head; None where nothing is asked of it.

    Raises:
        DataError: naming both fingerprints and the command that mends it.
    """
    for split in splits:
        check_tokenizer(split.windows.reader, student)
        if split.shards is not None:
            check_capture(split.shards, capture)
            check_vocabulary_map(open_vocabulary_map(vocabulary_map), split.windows.reader, split.shards)
        if split.shards is not None and head is not None:
            check_same_teacher(split.shards, head, read_description(head).teacher_fingerprint)


def check_student_rows(split: Split, student: Path, student_rows: int) -> None:
    """Refuse a student whose matrices have fewer rows than the windows' tokenizer has ids.

    Raises:
        DataError: naming both counts.
    """
    n_ids = len(split.windows.token_bytes)
    if student_rows < n_ids:
        raise DataError(
            f"{split.windows.reader.folder} has ids of a tokenizer of {n_ids}, {student} has {student_rows} rows",
            "the tokenizer beside the student is another model's",
            "change `models.student` in the profile",
        )
