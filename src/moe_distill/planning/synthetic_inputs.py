"""What stages read, made up at a profile's sizes: windows of random tokens, the map between vocabularies, weights.

They are text of no language: what is timed on them depends on their shapes alone.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from moe_distill.shards.format import DTYPES, Metadata
from moe_distill.shards.provenance import windows_fingerprint
from moe_distill.shards.vocabulary_store import MAP_FIELDS, VOCABULARY_MAP
from moe_distill.shards.window_store import (
    STUDENT_FIELDS,
    STUDENT_WINDOWS,
    TEACHER_FIELDS,
    TEACHER_WINDOWS,
    NextToken,
    WindowStore,
)
from moe_distill.shards.writer import ShardWriter

TOKEN_BYTES = 3  # of every token
TOKENIZER = "synthetic"


def write_windows(
    folder: Path, count: int, lengths: tuple[int, int], rows: tuple[int, int]
) -> tuple[WindowStore, WindowStore]:
    """Write `count` full windows of the teacher and of the student below `folder`.

    Args:
        lengths: tokens of a teacher's and of a student's window.
        rows: ids of the teacher and of the student.

    Returns:
        Both stores. The student's positions are aligned with the teacher's one by one, as far as these go.
    """
    generator = torch.Generator().manual_seed(0)
    teacher = ShardWriter(folder / "teacher", TEACHER_FIELDS, "tokens", 2**31)
    student = ShardWriter(folder / "student", STUDENT_FIELDS, "tokens", 2**31)
    for number in range(count):
        ids = [torch.randint(1, n, (length,), generator=generator) for n, length in zip(rows, lengths, strict=True)]
        teacher.append(_window(number, ids[0], rows[0]))
        student.append(_window(number, ids[1], rows[1]) | _alignment(number, ids[0], lengths))
    metadata: Metadata = {"prefix_id": 0, "max_length": max(lengths) + 1, "tokenizer": TOKENIZER}
    index = teacher.finish(TEACHER_WINDOWS, "synthetic", metadata)
    student.finish(STUDENT_WINDOWS, "synthetic", metadata | {"teacher_windows": windows_fingerprint(index)})
    return WindowStore(folder / "teacher", TEACHER_WINDOWS), WindowStore(folder / "student", STUDENT_WINDOWS)


def write_vocabulary_map(folder: Path, rows: tuple[int, int]) -> None:
    """Write a map that gives each teacher id one student id; of both tokenizers nothing more is known."""
    writer = ShardWriter(folder, MAP_FIELDS, "teacher_ids", 2**31)
    writer.append(bare_map(rows))
    metadata: Metadata = {"student_ids": rows[1], "teacher_tokenizer": TOKENIZER, "student_tokenizer": TOKENIZER}
    writer.finish(VOCABULARY_MAP, "synthetic", metadata)


def bare_map(rows: tuple[int, int]) -> dict[str, Tensor]:
    """A vocabulary map's columns, of which all but the student ids of the teacher's are empty."""
    columns = {name: torch.zeros(0, dtype=DTYPES[spec.dtype]) for name, spec in MAP_FIELDS.items()}
    return columns | {"student_ids": (torch.arange(rows[0]) % rows[1]).int()}


def write_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, folder: Path) -> None:
    """Write a model of this configuration, whose weights are drawn on the device."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    logging.disable_progress_bar()  # of writing weights
    model.save_pretrained(folder)


def _window(number: int, ids: Tensor, rows: int) -> dict[str, Tensor]:
    return {
        "token_ids": ids.int(),
        "token_counts": torch.tensor([len(ids)], dtype=torch.int32),
        "documents": torch.tensor([number], dtype=torch.int32),
        "byte_starts": torch.tensor([0]),
        "byte_ends": torch.tensor([TOKEN_BYTES * len(ids)]),
        "token_bytes": torch.full((0 if number else rows,), TOKEN_BYTES, dtype=torch.int32),
    }


def _alignment(number: int, teacher_ids: Tensor, lengths: tuple[int, int]) -> dict[str, Tensor]:
    places = torch.arange(lengths[1])
    is_aligned = places < lengths[0]
    next_ids = teacher_ids[places.clamp(max=lengths[0] - 1)]
    has_last = is_aligned & (places > 0)
    return {
        "teacher_rows": torch.where(is_aligned, places + number * lengths[0], -1),
        "next_teacher_ids": torch.where(is_aligned, next_ids, -1).int(),
        "next_tokens": torch.where(is_aligned, NextToken.SAME, NextToken.UNALIGNED).to(torch.int8),
        "last_teacher_rows": torch.where(has_last, places - 1 + number * lengths[0], -1),
        "last_teacher_ids": torch.where(has_last, teacher_ids[(places - 1).clamp(0, lengths[0] - 1)], -1).int(),
        "last_teacher_bytes": torch.where(has_last, TOKEN_BYTES, 0).int(),
    }
