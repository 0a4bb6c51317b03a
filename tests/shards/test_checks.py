"""Values that cannot be, under correct hashes: refused where the file is opened, by file, row and both values."""

import json
import re
from pathlib import Path

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.value_checks import check_finite, check_range
from moe_distill.shards.vocabulary_store import (
    MAP_FIELDS,
    VOCABULARY_MAP,
    open_vocabulary_map,
    read_beginnings,
    read_merges,
    read_tokenizer,
    read_vocabulary_map,
)
from moe_distill.shards.window_store import TEACHER_WINDOWS, WindowStore, check_aligned
from moe_distill.shards.writer import ShardWriter
from moe_distill.utils.checksummed_json import read_json_object
from tests.shards.forge import forge_column, forge_metadata
from tests.stores import NO_TOKENIZER

from .conftest import OUTPUT_ROWS
from .toy import FORMAT, write_store

# The stores of conftest: five windows of 3, 1 | 2 | 4, 2 tokens of two bytes each, twelve ids; seven positions in
# files of four and three.


def refusal(action: object, *parts: str) -> None:
    """`action` raises a DataError that says all of `parts`."""
    assert callable(action)
    with pytest.raises(DataError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(value: float, dtype: torch.dtype) -> None:
    for row in range(5):
        column = torch.full((5, 3), torch.finfo(dtype).max, dtype=dtype)  # sums beyond fp16, or fp32, are no fault
        check_finite("place", column, 100, "fix")
        column[row, 2] = value
        refusal(lambda column=column: check_finite("place", column, 100, "fix"), f"place, row {100 + row} is {value}")


def test_two_infinities_do_not_cancel() -> None:
    column = torch.tensor([1.0, float("inf"), float("-inf")])
    refusal(lambda: check_finite("place", column, 0, "fix"), "row 1 is inf")


@pytest.mark.parametrize("value", [-2, 10, 2**31 - 1, -(2**31)])
def test_an_integer_out_of_range_is_found(value: int) -> None:
    column = torch.tensor([[0, -1], [9, value]], dtype=torch.int32)
    check_range("place", column[:1], 7, range(-1, 10), "fix")
    refusal(lambda: check_range("place", column, 7, range(-1, 10), "fix"), f"row 8 is {value};", "from -1 to 9")
    check_range("place", column[:0], 7, range(0), "fix")


@pytest.mark.parametrize("field", ["topk_logprobs", "tail_logsumexp", "tail_logprobs", "target_logprob"])
def test_nan_in_a_cached_value_names_file_field_and_row(targets: ShardReader, field: str) -> None:
    path = forge_column(targets.folder, 1, field, lambda column: column[2].fill_(float("nan")))
    forged = open_targets(targets.folder)
    forged.slice("topk_ids", 0, 4)  # the other file can be read
    refusal(lambda: forged.slice(field, 4, 5), str(path), f"field {field}, row 6 is nan", "dvc repro -f teacher")


@pytest.mark.parametrize(
    ("field", "last_row", "there_are"),
    [("topk_ids", 6, OUTPUT_ROWS), ("tail_ids", 6, OUTPUT_ROWS), ("hidden_rows", 1, 7)],
)
@pytest.mark.parametrize("is_below", [False, True])
def test_an_id_without_a_row_of_the_map_or_a_state_without_a_position_names_both_values(
    targets: ShardReader, field: str, last_row: int, there_are: int, is_below: bool
) -> None:
    wrong = -1 if is_below else there_are
    path = forge_column(targets.folder, 1, field, lambda column: column.view(-1)[-1].fill_(wrong))
    refusal(
        lambda: open_targets(targets.folder).slice("target_logprob", 4, 5),
        str(path),
        f"field {field}, row {last_row} is {wrong}",
        f"from 0 to {there_are - 1}",
    )


def test_a_range_is_asked_of_files_that_are_open_already(targets: ShardReader) -> None:
    targets.verify()
    refusal(lambda: targets.expect("topk_ids", range(42)), "row 4 is 42", "from 0 to 41")


def test_a_window_with_an_unknown_id_is_refused(windows: WindowStore) -> None:
    path = forge_column(windows.reader.folder, 2, "token_ids", lambda column: column[3].fill_(12))
    refusal(
        lambda: WindowStore(windows.reader.folder, TEACHER_WINDOWS),
        str(path),
        "token_ids, row 9 is 12",
        "from 0 to 11",
        "dvc repro -f tokenize",
    )


@pytest.mark.parametrize("field", ["byte_starts", "byte_ends"])
def test_a_window_whose_tokens_do_not_fill_its_bytes_names_both_lengths(windows: WindowStore, field: str) -> None:
    path = forge_column(windows.reader.folder, 2, field, lambda column: column[1].add_(1))
    spans = 5 if field == "byte_ends" else 3
    refusal(
        lambda: WindowStore(windows.reader.folder, TEACHER_WINDOWS),
        str(path),
        f"row 4 of windows spans {spans} bytes; its tokens are 4 bytes long",
    )


def test_a_token_of_other_bytes_is_found_by_its_length(windows: WindowStore) -> None:
    forge_column(windows.reader.folder, 0, "token_bytes", lambda column: column[3].fill_(7))
    refusal(lambda: WindowStore(windows.reader.folder, TEACHER_WINDOWS), "row 1 of windows spans 2 bytes", "7 bytes")


def test_windows_that_do_not_count_their_tokens_are_refused(windows: WindowStore) -> None:
    path = forge_column(windows.reader.folder, 0, "token_counts", lambda column: column[1].add_(1))
    refusal(lambda: WindowStore(windows.reader.folder, TEACHER_WINDOWS), f"{path} has 4 tokens, its windows count 5")
    forge_column(windows.reader.folder, 0, "token_counts", lambda column: column[1].fill_(0))
    refusal(lambda: WindowStore(windows.reader.folder, TEACHER_WINDOWS), "token_counts, row 1 is 0")


def test_a_map_to_an_id_that_the_student_lacks_is_refused(vocabulary_map: Path) -> None:
    forge_column(vocabulary_map, 0, "student_ids", lambda column: column[2].fill_(6))
    refusal(lambda: read_vocabulary_map(vocabulary_map), "field student_ids, row 2 is 6", "from -1 to 5")


def test_a_merge_of_an_id_that_the_student_lacks_is_refused(vocabulary_map: Path) -> None:
    forge_column(vocabulary_map, 0, "merge_results", lambda column: column[1].fill_(6))
    refusal(lambda: read_merges(vocabulary_map), "field merge_results, row 1 is 6", "from 0 to 5")


def test_a_tokenizer_is_read_with_the_bytes_of_its_ids_which_must_be_as_many_as_there_are(vocabulary_map: Path) -> None:
    assert read_tokenizer(vocabulary_map) == ("{}", [b"a", b"b", b"", b"c", b"d", b"\xc3"])
    forge_column(vocabulary_map, 0, "student_bytes", lambda column: column[1].fill_(2))
    refusal(lambda: read_tokenizer(vocabulary_map), f"{vocabulary_map} spells 6 ids of 6 bytes with 5")


def test_a_tokenizer_spells_every_id(vocabulary_map: Path) -> None:
    """One id less, whose byte its neighbour has: as many bytes as before."""
    reader = open_vocabulary_map(vocabulary_map)
    columns = {name: torch.cat(list(reader.columns(name))).clone() for name in MAP_FIELDS}
    columns["student_bytes"] = torch.tensor([2, 0, 1, 1, 1]).int()
    writer = ShardWriter(vocabulary_map.with_name("less"), MAP_FIELDS, "teacher_ids", 2**31)
    writer.append(columns)
    writer.finish(VOCABULARY_MAP, "key", reader.index.metadata)
    refusal(lambda: read_tokenizer(vocabulary_map.with_name("less")), "spells 5 ids of 5 bytes with 5")


@pytest.mark.parametrize(("field", "value"), [("merge_lefts", 4), ("merge_rights", 4), ("merge_rights", 5)])
def test_a_merge_of_a_token_that_is_made_later_is_refused(tmp_path: Path, field: str, value: int) -> None:
    """Ids 0 to 3 are bytes; 0 and 1 make 4, 2 and 3 make 5: forged, 4 is made of itself or of what is made of it."""
    writer = ShardWriter(tmp_path, MAP_FIELDS, "teacher_ids", 1)
    columns = {
        "student_ids": torch.tensor([0]).int(),
        "merge_lefts": torch.tensor([0, 2]).int(),
        "merge_rights": torch.tensor([1, 3]).int(),
        "merge_results": torch.tensor([4, 5]).int(),
    }
    writer.append(columns | NO_TOKENIZER)
    writer.finish(VOCABULARY_MAP, "key", {"student_ids": 6})
    assert read_merges(tmp_path)[0].results.tolist() == [4, 5]
    path = forge_column(tmp_path, 0, field, lambda column: column[0].fill_(value))
    refusal(lambda: read_merges(tmp_path), f"{path}: row 0 of merges makes token 4 of", str(value), "a later row makes")


@pytest.mark.parametrize("prefix", [12, -1, None])
def test_a_prefix_that_is_no_token_is_refused(windows: WindowStore, prefix: int | None) -> None:
    forge_metadata(windows.reader.folder, prefix_id=prefix)
    refusal(lambda: WindowStore(windows.reader.folder, TEACHER_WINDOWS), f"begins windows with id {prefix} of 12")


def test_every_flipped_bit_of_an_index_is_found(tmp_path: Path) -> None:
    write_store(tmp_path)
    path = tmp_path / "index.json"
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        path.write_bytes(flipped)
        refusal(lambda: ShardReader(tmp_path, FORMAT), str(path))
    path.write_bytes(content)
    ShardReader(tmp_path, FORMAT)


def test_a_seal_names_both_hashes(tmp_path: Path) -> None:
    write_store(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"toy"', '"tom"'))
    recorded = json.loads(path.read_text())["sha256"]
    with pytest.raises(DataError, match=rf"is corrupt; sha256 [0-9a-f]{{64}}, it says {recorded}") as caught:
        read_json_object(path)
    assert len(set(re.findall("[0-9a-f]{64}", str(caught.value)))) == 2


@pytest.fixture
def aligned_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The windows of real tokenizers over a text, so that aligned rows mean something; a file for each document."""
    from tests.alignment.test_tokenize import STUDENT, TEACHER
    from tests.alignment.toy import make_split

    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", 1)
    make_split(["the quick brown fox 12345 jumps", "over the lazy dog"], TEACHER, STUDENT, tmp_path, shard_tokens=8)
    return tmp_path / "student", tmp_path / "teacher"


@pytest.mark.parametrize("place", [1, -1], ids=["first_file", "last_file"])
def test_a_position_that_points_at_other_bytes_names_both_places(aligned_stores: tuple[Path, Path], place: int) -> None:
    student, teacher = aligned_stores

    def check() -> None:
        check_aligned(WindowStore(student, "moe-distill/student-windows"), WindowStore(teacher, TEACHER_WINDOWS))

    check()
    store = WindowStore(student, "moe-distill/student-windows")
    rows = torch.cat(list(store.reader.columns("teacher_rows")))
    row = int((rows > 0).nonzero()[place])
    file_number, local = store.reader.locate("tokens", row)
    assert file_number == (0 if place > 0 else len(store.reader.index.files) - 1)
    assert len(store.reader.index.files) > 1
    forge_column(student, file_number, "teacher_rows", lambda column: column[local].sub_(1))
    refusal(check, f"row {row} of tokens stands at byte ", f"the teacher's row {int(rows[row]) - 1} at byte ")
    forge_column(student, file_number, "teacher_rows", lambda column: column[local].fill_(10_000))
    refusal(check, f"teacher_rows, row {row} is 10000")


def test_a_position_that_points_at_the_same_byte_of_another_document_names_both(
    aligned_stores: tuple[Path, Path],
) -> None:
    """Both documents begin at byte 0 of themselves: the first token of one points at the first of the other."""
    student, teacher = (WindowStore(folder, f"moe-distill/{folder.name}-windows") for folder in aligned_stores)
    starts = [int((torch.cat(list(each.reader.columns("documents"))) == 1).nonzero()[0]) for each in (student, teacher)]
    first = student.span(starts[0]).start
    assert int(torch.cat(list(student.reader.columns("teacher_rows")))[first]) == teacher.span(starts[1]).start
    file_number, local = student.reader.locate("tokens", first)
    forge_column(aligned_stores[0], file_number, "teacher_rows", lambda column: column[local].fill_(0))
    refusal(
        lambda: check_aligned(WindowStore(aligned_stores[0], "moe-distill/student-windows"), teacher),
        f"row {first} of tokens stands at byte 0 of document 1",
        "by teacher_rows the teacher's row 0 at byte 0 of document 0",
    )


@pytest.mark.parametrize("place", [1, -1], ids=["first_file", "last_file"])
@pytest.mark.parametrize("field", ["last_teacher_rows", "last_teacher_bytes"])
def test_a_last_token_that_begins_at_another_byte_names_both_places(
    aligned_stores: tuple[Path, Path], field: str, place: int
) -> None:
    student, teacher = aligned_stores
    store = WindowStore(student, "moe-distill/student-windows")
    row = int((torch.cat(list(store.reader.columns("last_teacher_rows"))) > 0).nonzero()[place])
    file_number, local = store.reader.locate("tokens", row)
    forge_column(student, file_number, field, lambda column: column[local].sub_(1))
    refusal(
        lambda: check_aligned(
            WindowStore(student, "moe-distill/student-windows"), WindowStore(teacher, TEACHER_WINDOWS)
        ),
        f"row {row} of tokens stands at byte ",
        "by last_teacher_rows the teacher's row ",
    )


def test_a_file_whose_teacher_positions_lie_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.alignment.test_tokenize import STUDENT
    from tests.alignment.toy import byte_level, encoder, make_split

    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", 1)
    texts = ["the quick brown fox 12345 jumps", "over the lazy dog"] * 3
    make_split(texts, encoder(byte_level(257)), STUDENT, tmp_path, shard_tokens=20)
    student = WindowStore(tmp_path / "student", "moe-distill/student-windows")
    teacher = WindowStore(tmp_path / "teacher", TEACHER_WINDOWS)
    rows = student.reader.column("teacher_rows", 0)
    assert int(rows[0]) < teacher.reader.first_row("tokens", 1) <= int(rows.max())
    check_aligned(student, teacher)


def test_beginnings_are_as_many_as_the_tokens_have_bytes(vocabulary_map: Path) -> None:
    found = read_beginnings(vocabulary_map)
    assert found.numbers.tolist() == [0, 1, 0, 1, 2, 0, 3]
    forge_column(vocabulary_map, 0, "teacher_bytes", lambda column: column[0].fill_(3))
    refusal(lambda: read_beginnings(vocabulary_map), f"{vocabulary_map} has 7 beginnings of tokens of 8 bytes")


@pytest.mark.parametrize(("field", "value"), [("rests", 3), ("rest_student_ids", 6), ("beginnings", -1)])
def test_a_beginning_that_points_nowhere_is_refused(vocabulary_map: Path, field: str, value: int) -> None:
    forge_column(vocabulary_map, 0, field, lambda column: column[1].fill_(value))
    refusal(lambda: read_beginnings(vocabulary_map), f"field {field}, row 1 is {value}")
