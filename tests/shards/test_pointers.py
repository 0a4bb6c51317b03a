"""Rows and ids of the teacher that a student's window cannot have, under correct hashes."""

from pathlib import Path

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.shards.pointers import check_pointers
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import STUDENT_FIELDS, STUDENT_WINDOWS, WindowStore
from moe_distill.shards.writer import ShardWriter

from .conftest import OUTPUT_ROWS
from .forge import forge_column

LAST = [[-1, 0, 0, 2], [-1, -1], [-1, 4, 5, 5]]
ROWS = [[0, -1, 1, 3], [-1, -1], [4, 5, -1, 6]]  # of each window; the shards have rows 0 to 3 and 4 to 6 in two files


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """Three windows in two files."""
    folder = tmp_path / "student"
    writer = ShardWriter(folder, STUDENT_FIELDS, "tokens", 5)
    for number, (rows, last_rows) in enumerate(zip(ROWS, LAST, strict=True)):
        row, last = torch.tensor(rows), torch.tensor(last_rows)
        columns = {
            "token_ids": torch.zeros(len(rows)).int(),
            "token_counts": torch.tensor([len(rows)]).int(),
            "documents": torch.tensor([0]).int(),
            "byte_starts": torch.tensor([8 * number]),
            "byte_ends": torch.tensor([8 * number + 2 * len(rows)]),
            "teacher_rows": row,
            "next_teacher_ids": torch.where(row < 0, -1, 7).int(),
            "next_tokens": (row >= 0).to(torch.int8),
            "last_teacher_rows": last,
            "last_teacher_ids": torch.where(last < 0, -1, 5).int(),
            "last_teacher_bytes": torch.where(last < 0, 0, 1).int(),
            "token_bytes": torch.full((0 if number else 12,), 2).int(),
        }
        writer.append(columns)
    writer.finish(STUDENT_WINDOWS, "key", {"prefix_id": 0})
    return folder


def check(student: Path, targets: ShardReader) -> None:
    check_pointers(WindowStore(student, STUDENT_WINDOWS), targets)


def test_windows_that_point_where_they_may_are_taken(student: Path, targets: ShardReader) -> None:
    check(student, targets)
    assert len(WindowStore(student, STUDENT_WINDOWS).reader.index.files) == 2


@pytest.mark.parametrize(
    ("field", "place", "value", "says"),
    [
        ("teacher_rows", 3, 7, "field teacher_rows, row 3 is 7; it must be from -1 to 6"),
        ("teacher_rows", 3, 1, "row 3 of tokens has teacher_rows 1 after 1 in one window: it must be higher"),
        ("teacher_rows", 3, 0, "row 3 of tokens has teacher_rows 0 after 1 in one window"),
        ("teacher_rows", 3, 4, "row 3 of tokens has teacher_rows 4 after 1 in one window"),
        ("teacher_rows", 1, 2, "row 1 of tokens has teacher_rows 2 with next_teacher_ids -1"),
        ("teacher_rows", 3, -1, "row 3 of tokens has teacher_rows -1 with next_teacher_ids 7"),
        ("last_teacher_rows", 3, 7, "field last_teacher_rows, row 3 is 7; it must be from -1 to 6"),
        (
            "last_teacher_rows",
            2,
            3,
            "row 3 of tokens has last_teacher_rows 2 after 3 in one window: it must be no lower",
        ),
        ("last_teacher_rows", 3, 4, "row 3 of tokens has last_teacher_rows 4 after 0 in one window"),
        ("last_teacher_rows", 0, 0, "row 0 of tokens has last_teacher_rows 0 with last_teacher_ids -1"),
        ("last_teacher_ids", 3, -1, "row 3 of tokens has last_teacher_rows 2 with last_teacher_ids -1"),
        ("last_teacher_ids", 3, OUTPUT_ROWS, f"field last_teacher_ids, row 3 is {OUTPUT_ROWS}"),
        ("next_teacher_ids", 0, OUTPUT_ROWS, f"field next_teacher_ids, row 0 is {OUTPUT_ROWS}; it must be from -1 to"),
        ("next_teacher_ids", 0, -2, "field next_teacher_ids, row 0 is -2"),
        ("next_tokens", 0, 4, "field next_tokens, row 0 is 4; it must be from 0 to 3"),
    ],
)
def test_a_forged_pointer_is_named_with_its_file(
    student: Path, targets: ShardReader, field: str, place: int, value: int, says: str
) -> None:
    path = forge_column(student, 0, field, lambda column: column[place].fill_(value))
    with pytest.raises(DataError) as caught:
        check(student, targets)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "dvc repro -f tokenize" in str(caught.value)


def test_rows_of_the_second_file_are_counted_over_all(student: Path, targets: ShardReader) -> None:
    path = forge_column(student, 1, "teacher_rows", lambda column: column[1].fill_(4))
    with pytest.raises(DataError, match=r"row 7 of tokens has teacher_rows 4 after 4 in one window") as caught:
        check(student, targets)
    assert str(path) in str(caught.value)
